"""What a run left behind: plan, curves, environment, predictions and scores, read from its folder as far as they exist.

Runs that differ by nothing but chance, by seeds (or folds), are one method: `groups_of` finds them.

RUN/config.yaml  RUN/plan.json  RUN/environment.json  RUN/csv/metrics.csv
RUN/segmentations/NAME.nii.gz   RUN/scores/scores.csv
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flarecps.anatomy import Organ, organs_of
from flarecps.errors import ConfigError, DatasetError, PlanError
from flarecps.evaluation.score_table import MethodScores, Scores, read_scores
from flarecps.json_fields import Reader
from flarecps.method_config import method_of, with_method
from flarecps.named_paths import shortest_ends
from flarecps.planning.plan import Plan, read_plan
from flarecps.reporting.curves import Curve, read_metrics
from flarecps.reporting.tables import organ_title
from flarecps.text_files import read_json, read_yaml
from flarecps.volumes.io import scan_name

CHANCE = (("seed_everything",), ("data", "seed"), ("model", "initial_seed"))
FOLD = ("data", "fold")
PLACES = (("trainer", "default_root_dir"), ("ckpt_path",), ("overwrite",), ("data", "workers"), ("pictures",))
EXPECTED, SETTINGS = "expected what 'flarecps fit' writes there", "expected the settings of a run"


@dataclass(frozen=True)
class Run:
    """One training run and what is known of it. Missing parts are None or empty; ``notes`` says what was unreadable."""

    name: str
    folder: Path
    plan: Plan | None = None
    metrics: Mapping[str, Curve] = field(default_factory=dict)
    scores: Scores | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    predictions: Mapping[str, Path] = field(default_factory=dict)  # case name -> label map
    notes: tuple[str, ...] = ()

    @property
    def organs(self) -> tuple[Organ, ...]:
        """The organs of the plan; without a plan those of the score table, FLARE22's by their columns."""
        if self.plan is not None:
            return organs_of(self.plan.labels)
        columns = self.scores.organs if self.scores else ()
        return organs_of({organ_title(column): label for label, column in enumerate(columns, start=1)})


def read_run(folder: Path, name: str, predictions: Path, scores: Path) -> Run:
    """The run in ``folder``, finished or still growing, called ``name`` in the report.

    Relative to it, ``predictions`` is the folder of label maps, ``scores`` that of ``scores.csv``, or the file itself.

    Raises DatasetError when the folder is missing or holds nothing of a run. A damaged part becomes a note.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such run folder; 'flarecps fit' makes one (trainer.default_root_dir)")
    table = folder / scores
    table = table if table.suffix == ".csv" else table / "scores.csv"
    parts: dict[str, Any] = {}
    notes = []
    for part, path, reader in (
        ("plan", folder / "plan.json", read_plan),
        ("environment", folder / "environment.json", _read_environment),
        ("config", folder / "config.yaml", partial(read_yaml, kind=DatasetError, expected=SETTINGS)),
        ("metrics", folder / "csv" / "metrics.csv", read_metrics),
        ("scores", table, read_scores),
    ):
        if path.is_file():
            try:
                parts[part] = reader(path)
            except (PlanError, DatasetError) as error:
                notes.append(f"{name}: {part} left out: {' '.join(str(error).split())}")
    parts["predictions"] = scans_by_name(folder / predictions)
    if not any(parts.values()) and not notes:
        raise DatasetError(
            f"{folder}: holds nothing of a run (plan.json, csv/metrics.csv, {predictions}/, {scores}/scores.csv): "
            "give the folder named by trainer.default_root_dir in the config"
        )
    return Run(name, folder, notes=tuple(notes), **parts)


def read_runs(folders: Sequence[Path], names: Sequence[str] | None, predictions: Path, scores: Path) -> list[Run]:
    """Several runs of one label set, in the order given; their names default to the shortest distinct folder names.

    Raises ConfigError for a repeated folder or a wrong number of names, DatasetError when label sets differ.
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise ConfigError(f"{_commas(folders)}: the same run twice; name every run once")
    if names is None:
        names = shortest_ends([path.parts for path in resolved])
    if len(names) != len(folders) or len(set(names)) < len(names):
        raise ConfigError(f"names {_commas(names)}: expected {len(folders)} different names, one per run, in order")
    runs = [read_run(path, name, predictions, scores) for path, name in zip(folders, names, strict=True)]
    planned = [run for run in runs if run.plan is not None]
    for run in planned[1:]:
        if run.plan.labels != planned[0].plan.labels:  # type: ignore[union-attr]  # both are planned
            raise DatasetError(f"{run.folder}: another label set than {planned[0].folder}; report them one by one")
    return runs


def scans_by_name(folder: Path | None) -> dict[str, Path]:
    """Image files in a folder by case name (without suffix and channel ``_0000``), sorted; {} without a folder.

    Of several channels only the first is listed: CASE_0001 is another channel where CASE_0000 lies beside it; elsewhere
    it is a case of that name (FLARE22_Tr_0001).
    """
    if folder is None or not folder.is_dir():
        return {}
    scans = {scan_name(path): path for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    scans = {name: path for name, path in scans.items() if name != path.name or path.is_dir()}
    found = {}
    for name, path in scans.items():
        stem = re.sub(r"(?<=.)_\d{4}$", "", name)
        if stem == name or f"{stem}_0000" not in scans:
            found[name] = path
        elif name == f"{stem}_0000":
            found[stem] = path
    return found


@dataclass(frozen=True)
class Group:
    """Runs of one method, by their place among all; one alone is a group, too."""

    name: str
    places: tuple[int, ...]
    kind: str  # what they differ by: "seed", "fold" or "run"


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The runs by method, in the order in which each method is first met.

    Two runs belong together when their configs say the same but for seeds, fold and folders. A run without a config is
    alone.
    """
    together: dict[str, list[int]] = {}
    chances: list[dict[Sequence[str], Any]] = []
    for place, run in enumerate(runs):
        kept = json.loads(json.dumps(run.config, default=str))
        chances.append({path: _taken_out(kept, path) for path in (*CHANCE, FOLD, *PLACES)})
        if isinstance(kept.get("model"), dict):  # runs from before and after methods were classes belong together
            kept["model"] = {**with_method(kept["model"]), "method": method_of(kept)}
        together.setdefault(json.dumps(kept, sort_keys=True) if run.config else f"run {place}", []).append(place)
    groups = []
    for places in together.values():
        kind = "run"
        for word, paths in (("fold", (FOLD,)), ("seed", CHANCE)):
            if any(len({str(chances[place][path]) for place in places}) > 1 for path in paths):
                kind = word
        groups.append(Group(common_name([runs[place].name for place in places]), tuple(places), kind))
    return groups


def _taken_out(config: Any, path: Sequence[str]) -> Any:
    """What a config says at a path, and no longer says then; None where it says nothing."""
    *way, last = path
    for key in way:
        config = config.get(key) if isinstance(config, dict) else None
    return config.pop(last, None) if isinstance(config, dict) else None


def averaged_over_runs(runs: Sequence[Run], group: Group) -> Run:
    """A group as if it were one run: every case's scores are the means over the group's scored runs."""
    first = runs[group.places[0]]
    scored = MethodScores(group.name, tuple(s for place in group.places if (s := runs[place].scores) is not None))
    scores = scored.seeds[0] if len(scored.seeds) == 1 else None
    if len(scored.seeds) > 1:  # of the cases that all have, so that every row says the same thing
        scores = scored.over_seeds(scored.complete_cases, scored.organs)
    return Run(group.name, first.folder, first.plan, scores=scores, config=first.config)


def common_name(names: Sequence[str]) -> str:
    """What the names of a group have in common; the first and a count where that is nothing.

    >>> common_name(["cps_seed_0", "cps_seed_1"]), common_name(["one"]), common_name(["a", "b"])
    ('cps', 'one', 'a and 1 more')
    """
    if len(names) == 1:
        return names[0]
    alike = itertools.takewhile(lambda signs: len(set(signs)) == 1, zip(*names, strict=False))
    start = "".join(signs[0] for signs in alike).rstrip("0123456789 _-./")
    for word in ("seed", "fold", "run"):
        start = start.removesuffix(word).rstrip(" _-./")
    return start or f"{names[0]} and {len(names) - 1} more"


def _read_environment(path: Path) -> dict[str, Any]:
    return Reader(read_json(path, DatasetError, EXPECTED), str(path), kind=DatasetError, again=EXPECTED).content


def _commas(words: Sequence[object]) -> str:
    return ", ".join(map(str, words))
