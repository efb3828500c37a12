"""The protocol of a study: arms, what judges them, seeds, endpoints. One YAML file, written before the study runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from flarecps.case_names import why_not_plain
from flarecps.datasets.splits import FOLDS
from flarecps.errors import ConfigError, did_you_mean, first_few, visible
from flarecps.json_fields import is_whole

EXPECTED = "expected a study's protocol; 'flarecps study DATASET --out OUT --dry-run' prints one to begin with"
SIBLINGS = ("1", "2", "average")
INTENSITIES = ("global", "foreground")
POST_PROCESSING = ("none", "largest", "determined")
SCORING = ("strict", "official")  # protocols of 'flarecps score'
CHECKPOINTS = ("last", "best")
FOLD = "data.fold"  # the setting by which trainings hold out labelled scans
MOST_SEEDS = 100  # every arm, fold and seed is a training
BY = ("folds", "test", "withheld")
PAIRS = ("disjoint", "neighbours")
MEASURES = ("dsc", "nsd")
ALL = "all"  # labelled scans of a fold
LONGEST_TITLE = 200  # characters
_NAME = re.compile(r"\w[\w-]{0,59}")  # a part of the names of stages, folders and files, and of command lines
_TRAINING, _EXAMPLE = ("model.", "data.", "trainer."), "trainer.max_epochs"
_STUDYS = (  # settings that a study gives every training itself, so that it learns and writes where it should
    "data.store", "data.split", "data.seed", "data.pseudo_labels", "model.initial_seed", "trainer.default_root_dir",
    "trainer.fast_dev_run",
)  # fmt: skip
_STUDYS_OPTIONS = {
    "plan": ("out", "split", "intensity", "fingerprints", "shard", "help"),
    "segment": ("sibling", "shard", "format", "overwrite", "help"),
}
Settings: TypeAlias = Mapping[str, Any]  # of a training, by dotted name


@dataclass(frozen=True)
class Arm:
    """One way of training: a config's settings, and what differs from it.

    ``compute_of`` names the arm whose whole compute this one is given, times ``share``, by the methods' declared cost.
    ``teachers`` names the arm of which two trainings label the unlabelled scans first, ``average_of`` the one of which
    two are averaged: such an arm has no training of its own. ``plan``: one of the study's ``plans``, where it has some.
    ``siblings`` are scored, the first is the arm's figure; an arm without any only serves others. ``splits`` are those
    of the study it runs on, by default all. ``predictions``: instead of a training, a folder of another program's label
    maps, in which {labels}, {fold} and {seed} stand for those of a training; without {seed} there is one.
    """

    name: str
    title: str = ""
    config: str = ""  # a config's name or file; "": fit's own defaults
    settings: Settings = field(default_factory=dict)
    plan: str = ""
    intensity: str = "global"
    compute_of: str = ""
    share: float = 1.0
    teachers: str = ""
    average_of: str = ""
    predictions: str = ""
    siblings: tuple[str, ...] = ("1",)
    splits: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """What people read."""
        return self.title or self.name

    def title_of(self, sibling: str) -> str:
        """What tables call one of its siblings."""
        if len(self.siblings) == 1:
            return self.shown
        return f"{self.shown}, {'siblings averaged' if sibling == 'average' else f'sibling {sibling}'}"

    def word_of(self, sibling: str) -> str:
        """The same as a NAME of ``flarecps compare``: with no equals sign, and no dash at its beginning."""
        return self.title_of(sibling).replace("=", " ").lstrip(" -") or self.name


@dataclass(frozen=True)
class Judged:
    """Which scans judge: held-out ``folds`` of the labelled ones; the ``test`` scans of named ``splits``; or the last
    ``scans`` unlabelled ones, in order of their names, whose labels are there and are ``withheld``.

    ``learning_curve``: with folds, shares of a fold's labelled scans that the primary baseline is trained with, too.
    """

    by: str = "folds"
    folds: int = 5
    splits: tuple[str, ...] = ()
    scans: int = 0
    learning_curve: tuple[float, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """How many labelled scans trainings have: names of splits, or "all" and the learning curve's shares."""
        return self.splits if self.by != "folds" else (ALL, *(f"{share:g}" for share in self.learning_curve))


@dataclass(frozen=True)
class Primary:
    """The question: ``method`` minus ``baseline`` in ``measure``; all else is secondary."""

    method: str
    baseline: str
    measure: str = "dsc"


@dataclass(frozen=True)
class Protocol:
    """A study. ``settings`` are those that all arms share; ``plan`` and ``segment`` are options of these commands.

    ``plans``: several by name, such as 2D and 3D, of which an arm names one: options beside those in ``plan``.

    ``pairs``: whether two trainings that are averaged, or teach, are of seeds of their own (``disjoint``: 2s, 2s + 1)
    or of this seed and the next (``neighbours``). ``post_processing``: the first is what the verdict is about;
    ``determined`` is decided for a fold on the others' predictions, else on what the trainings hold out (data.fold in
    ``settings``); of these is ``checkpoint`` the best. ``scoring``: by which rules scores are made. ``without``: scans
    that are left out of everything. ``remarks`` are kept for the reader.
    """

    arms: tuple[Arm, ...]
    judged: Judged
    primary: Primary
    seeds: int = 1
    pairs: str = "disjoint"
    settings: Settings = field(default_factory=dict)
    plan: Settings = field(default_factory=dict)
    plans: Mapping[str, Settings] = field(default_factory=dict)
    segment: Settings = field(default_factory=dict)
    post_processing: tuple[str, ...] = ("determined",)
    scoring: str = "strict"
    checkpoint: str = "last"
    without: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(one for one in self.arms if one.name == name)

    @property
    def folds(self) -> int:
        """How many parts of scans judge, each those it was not trained on."""
        return self.judged.folds if self.judged.by == "folds" else 1

    @property
    def held_out_fold(self) -> int | None:
        """The fifth of the labelled scans that every training keeps for validation; None where they learn from all."""
        found = self.settings.get(FOLD)
        return found if isinstance(found, int) and is_whole(found) and found < FOLDS else None

    def pair(self, seed: int) -> tuple[int, int]:
        """The seeds of the two trainings that are averaged, or teach, in the study's ``seed``."""
        return (2 * seed, 2 * seed + 1) if self.pairs == "disjoint" else (seed, (seed + 1) % max(self.seeds, 2))

    def plans_in(self, names: Iterable[str]) -> set[str]:
        """The names of the plans by which these arms are trained, and their teachers; "" is the one without a name."""
        trained = [self.arm(self.arm(name).average_of or name) for name in names]
        return {one.plan for one in (*trained, *(self.arm(arm.teachers) for arm in trained if arm.teachers))}

    def labels_of(self, arm: Arm) -> tuple[str, ...]:
        """The numbers of labels that an arm is trained and judged with."""
        if arm.splits or self.judged.by != "folds":
            return arm.splits or self.judged.labels
        return self.judged.labels if arm.name == self.primary.baseline else (ALL,)


def _check(found: Protocol) -> None:
    """Raise ConfigError where a protocol names what it does not have, or can't be run."""
    names = [arm.name for arm in found.arms]

    def known(name: str, what: str, of: Sequence[str] = names, kind: str = "arm") -> None:
        if name not in of:
            raise ConfigError(
                f"{what} is {name!r}, which is no {kind}{did_you_mean(name, of) or f'; {kind}s: {first_few(of)}'}"
            )

    if not names:
        raise ConfigError("'arms' is empty; expected at least a baseline and a method")
    for kind, some in (("arm", names), ("plan", found.plans)):
        for name in some:
            if not _NAME.fullmatch(name) or why_not_plain(name):
                raise ConfigError(
                    f"{kind} '{name}': its name is no plain one; expected letters, digits, - and _, at most 60, such "
                    "as cps_long"
                )
    for arm in found.arms:
        where = f"arm '{arm.name}'"
        is_line = len(arm.title) <= LONGEST_TITLE and arm.title.isprintable() and arm.title == arm.title.strip()
        if not is_line or visible(arm.title) != arm.title:
            raise ConfigError(
                f"{where}: 'title' is {ascii(arm.title)[:80]}; expected a line of at most {LONGEST_TITLE} characters"
            )
        for key in ("compute_of", "teachers", "average_of"):
            if name := getattr(arm, key):
                known(name, f"{where}: '{key}'")
                served = found.arm(name)
                if (
                    name == arm.name
                    or served.average_of
                    or served.predictions
                    or (key != "compute_of" and served.teachers)
                ):
                    raise ConfigError(f"{where}: '{key}' is {name!r}; expected another arm with a training of its own")
        if arm.predictions:
            _check_predictions(arm, where, found.labels_of(arm))
        if arm.plan or (found.plans and not arm.average_of and not arm.predictions):
            known(arm.plan, f"{where}: 'plan'", [*found.plans], "plan")
        for key, of in (("siblings", SIBLINGS), ("splits", found.judged.labels)):
            for one in getattr(arm, key):
                known(one, f"{where}: '{key}'", of, key[:-1])
        if arm.average_of and (arm.config or arm.settings or arm.compute_of or arm.teachers or arm.plan):
            raise ConfigError(f"{where}: averages '{arm.average_of}' and has no training; give settings to that arm")
        if arm.compute_of and (found.arm(arm.compute_of).compute_of or arm.compute_of in (arm.teachers, "")):
            raise ConfigError(f"{where}: 'compute_of' is {arm.compute_of!r}; expected an arm with epochs of its own")
    for arm in found.arms:
        if arm.compute_of and len(found.plans_in((arm.name, arm.compute_of))) > 1:
            raise ConfigError(
                f"arm '{arm.name}': 'compute_of' is {arm.compute_of!r}, but passes by another plan can't be counted "
                "against its own; expected arms, and teachers, of one plan"
            )
    for options in (found.plan, *found.plans.values()):
        _check_options(options, "plan")
    _check_options(found.segment, "segment")
    _check_settings(found.settings, "'settings'")
    for arm in found.arms:
        _check_settings(arm.settings, f"arm '{arm.name}': 'settings'")
    titles = [arm.word_of(sibling).strip() for arm in found.arms for sibling in arm.siblings]
    if twice := next((title for title in titles if titles.count(title) > 1), None):
        raise ConfigError(f"two arms are called '{twice}'; expected a 'title' of its own for each")
    for key in ("method", "baseline"):
        known(getattr(found.primary, key), f"primary: '{key}'")
        if not found.arm(getattr(found.primary, key)).siblings:
            raise ConfigError(f"primary: '{key}' is an arm without 'siblings', which nothing is known of")
    if found.primary.method == found.primary.baseline:
        raise ConfigError("primary: method and baseline are one arm; expected two")
    for name in found.judged.splits:
        if reason := why_not_plain(name):
            raise ConfigError(f"judged: the split {ascii(name)[:80]} {reason}; expected a plain name")
    for one in found.post_processing:
        known(one, "'post_processing'", POST_PROCESSING, "way of it")
    if not found.post_processing:
        raise ConfigError(f"'post_processing' is empty; expected one of {', '.join(POST_PROCESSING)}")
    if found.seeds > MOST_SEEDS:
        raise ConfigError(f"'seeds' is {found.seeds}; expected at most {MOST_SEEDS}")
    judged = found.judged
    if judged.by == "folds" and (judged.splits or judged.scans):
        raise ConfigError("judged: by folds, so 'splits' and 'scans' say nothing; remove them, or judge by test")
    if judged.by != "folds" and (not judged.splits or judged.learning_curve):
        raise ConfigError(f"judged: by {judged.by} needs 'splits', names in splits.json, and has no 'learning_curve'")
    fold = found.held_out_fold
    if judged.by != "folds" and "determined" in found.post_processing and fold is None:
        raise ConfigError(
            "'post_processing' is determined on held-out folds; by test and withheld scans take none or largest, or "
            f"let the trainings hold out a fifth of the labelled scans (settings: {{{FOLD}: 0}})"
        )
    if found.checkpoint == "best" and fold is None:
        raise ConfigError(
            f"'checkpoint' is best, by scans that trainings hold out; expected a fold of them (settings: {{{FOLD}: 0}})"
        )
    for arm in found.arms:
        if fold is not None and FOLD in arm.settings:
            raise ConfigError(f"arm '{arm.name}': holds {FOLD}, which is the study's 'settings'; remove one of them")
        if arm.predictions and judged.by != "folds" and "determined" in found.post_processing:
            raise ConfigError(
                f"arm '{arm.name}': another program's 'predictions' are of test scans, on which no post-processing is "
                "determined; expected none or largest"
            )
    if judged.by == "withheld" and not judged.scans:
        raise ConfigError("judged: by withheld needs 'scans', how many are withheld")
    method, baseline = (found.labels_of(found.arm(name)) for name in (found.primary.method, found.primary.baseline))
    if baseline[0] not in method:
        raise ConfigError(
            f"primary: the baseline's first split is {baseline[0]!r}, on which '{found.primary.method}' is not judged; "
            "expected the first of the baseline's 'splits' among the method's"
        )


def _check_predictions(arm: Arm, where: str, labels: Sequence[str]) -> None:
    """Raise ConfigError where an arm of given predictions asks for a training, too, or they can't be told apart."""
    if arm != Arm(arm.name, arm.title, predictions=arm.predictions, splits=arm.splits):
        raise ConfigError(
            f"{where}: has 'predictions', so it is not trained; expected 'title' and 'splits' beside, no more"
        )
    shown = f"{where}: 'predictions' is {ascii(arm.predictions)[:80]}"
    if not arm.predictions.isprintable() or re.search(r"[{}]", re.sub(r"\{(labels|fold|seed)\}", "", arm.predictions)):
        raise ConfigError(f"{shown}; expected a folder, in which {{labels}}, {{fold}} and {{seed}} may stand")
    if len(labels) > 1 and "{labels}" not in arm.predictions:
        raise ConfigError(f"{shown}, the same for {first_few(labels)}; expected {{labels}} in it, or one of 'splits'")


def _check_options(options: Settings, command: str) -> None:
    for key in options:
        if key.replace("-", "_") in _STUDYS_OPTIONS[command]:
            raise ConfigError(f"'{command}' holds {ascii(key)[:80]}, which the study decides itself; remove it")


def _check_settings(settings: Settings, where: str) -> None:
    for key in settings:
        if not key.startswith(_TRAINING) or not all(re.fullmatch(r"\w+", part) for part in key.split(".")):
            raise ConfigError(
                f"{where} holds {ascii(key)[:80]}; expected a training's setting by its dotted name, as {_EXAMPLE}"
            )
        if key in _STUDYS:
            raise ConfigError(f"{where} holds {key}, which the study decides itself; remove it")
