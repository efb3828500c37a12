"""A study from its first word to its model: which protocol, which stages are left, and how long they take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from flarecps.atomic import write_json, write_text
from flarecps.datasets.catalogue import Catalogue, read_catalogue
from flarecps.durations import duration_in_words
from flarecps.errors import ConfigError, StoreError, first_few
from flarecps.experiments.stages import Stage, StageRecords
from flarecps.experiments.study.closing import VERDICT, chosen_model, closing_stages, model_command, page_stage
from flarecps.experiments.study.cost import Costs
from flarecps.experiments.study.drafting import draft, only_arms
from flarecps.experiments.study.forecast import CALIBRATION, Forecast, calibration_stage, within_budget
from flarecps.experiments.study.protocol import MOST_SEEDS, Judged, Protocol
from flarecps.experiments.study.protocol_file import protocol_content, protocol_text, read_protocol
from flarecps.experiments.study.slurm import submit_chain, write_chain
from flarecps.experiments.study.splits import StudySplits, link_study, study_splits, suffice
from flarecps.experiments.study.stages import RUNS, StudyStages
from flarecps.preprocessing.sources import changed_sources
from flarecps.preprocessing.store import CaseStore
from flarecps.text_files import read_own_json
from flarecps.training.defaults import EPOCHS, ITERATIONS

RECORDS, PROTOCOL = "stages", "protocol.yaml"
LEARNING_CURVE = (0.5,)
SEEDS = 2  # of one, a study can tell next to nothing (benchmarks/results/study)


@dataclass(frozen=True)
class Asked:
    """What the command line says of the protocol; nothing of it is None or False where the protocol decides."""

    file: Path | None = None
    arms: Sequence[str] | None = None
    folds: int | None = None
    seeds: int | None = None
    hours: float | None = None
    learning_curve: bool = False
    without: Sequence[str] | None = None

    @property
    def anything(self) -> bool:
        """Whether a protocol that is there already is asked to be another."""
        named = (self.file, self.arms, self.folds, self.seeds, self.without)
        return any(one is not None for one in named) or self.learning_curve

    def protocol(self, catalogue: Catalogue) -> Protocol:
        """The file's protocol, else a draft for the data set, with what else was asked."""
        from torch import cuda

        if self.folds is not None and self.folds < 2:
            raise ConfigError(f"--folds {self.folds}: expected 2 or more")
        if self.seeds is not None and not 1 <= self.seeds <= MOST_SEEDS:
            raise ConfigError(f"--seeds {self.seeds}: expected 1 or more, at most {MOST_SEEDS}")
        found = read_protocol(self.file) if self.file else None
        if found is not None:  # it is kept in the study's folder, and read there from anywhere
            given = (one.predictions and str(Path(one.predictions).absolute()) for one in found.arms)
            arms = tuple(replace(one, predictions=path) for one, path in zip(found.arms, given, strict=True))
            found = replace(found, arms=arms)
        else:
            left_out = {*(self.without or ())}
            gpu, scans = cuda.is_available(), sum(case.name not in left_out for case in catalogue.labelled)
            folds = self.folds or next((one for one in (5, 3, 2) if suffice(scans, one)), 2)
            found = draft(folds, self.seeds or SEEDS, EPOCHS[gpu], ITERATIONS[gpu], bool(catalogue.unlabelled))
        if self.folds or self.learning_curve:
            if found.judged.by != "folds":
                raise ConfigError(
                    f"--folds and --learning-curve: this protocol judges by {found.judged.by} scans; leave them out"
                )
            curve = found.judged.learning_curve or (LEARNING_CURVE if self.learning_curve else ())
            found = replace(found, judged=Judged("folds", self.folds or found.judged.folds, learning_curve=curve))
        if self.seeds is not None:
            found = replace(found, seeds=self.seeds)
        if self.without:
            found = replace(found, without=tuple(dict.fromkeys(self.without)))
        return only_arms(found, self.arms) if self.arms else found


class Study:
    """A study of ``dataset`` in ``out``; ``find`` finds configs by name. Nothing is written before `parts` runs.

    The protocol is the one that is kept in ``out``, else the one that is asked for. ConfigError where both are there
    and differ, or where the kept one was changed since the study began. ``splits``: the scans' roles, where the data
    set does not say them; ``more``: stages beside the study's own, before its model's.
    """

    def __init__(
        self, dataset: Path, out: Path, asked: Asked, find: Callable[[str], Path], workers: int = 2,
        splits: Callable[[Protocol], StudySplits] | None = None,
        more: Callable[[StudyStages, StageRecords], list[Stage]] = lambda *_: [],
    ) -> None:  # fmt: skip
        self.dataset, self.out, self.asked, self.find, self.workers = dataset, out, asked, find, workers
        self.splits, self.more = splits or self._data_set_splits, more
        self.said: list[str] = []
        self.is_fixed = (out / PROTOCOL).exists()
        self._use(self._kept() if self.is_fixed else asked.protocol(read_catalogue(dataset)))
        self.said += [f"left out: {why}" for why in self.made.splits.catalogue.faults.values()]

    def stages(self) -> list[Stage]:
        """All stages that are known: those of the model only once there is a verdict."""
        judged = self.made.judged_stages()
        found = [*self.made.before_training(), calibration_stage(self.made), *judged]
        found += [*closing_stages(self.made, self.records, judged), *self.more(self.made, self.records)]
        if chosen := chosen_model(self.made):
            model = [one for one in self.made.model_stages(*chosen) if one.name not in {known.name for known in found}]
            found += [*model, page_stage(self.made, self.records, ("verdict", *(one.name for one in model)))]
        return found

    def parts(self) -> Iterator[list[Stage]]:
        """The stages to run, part by part: until a few steps are timed; until the verdict; the model and the page.

        The protocol is written before the first part, or, where a budget decides it, before the second.
        """
        first = [*self.made.before_training(), calibration_stage(self.made)]
        if self.asked.hours is None or self.is_fixed:
            self.fix()
        yield first
        if not self.is_fixed and self.asked.hours is not None:
            if self.records.state(first[-1]) != "done":
                return
            forecast = Forecast(self.out / CALIBRATION, self.made.costs, self.records)
            self._use(within_budget(self.made, forecast, self.asked.hours))
            self.said.append(self.made.protocol.remarks[-1])
            self.fix()
        known = {one.name for one in first}
        second = [one for one in self.records.stages.values() if one.name not in known and one.name != "report"]
        yield second
        last = self.stages()
        self.records.stages = {one.name: one for one in last}
        yield [one for one in last if one.name not in {*known, *(done.name for done in second)}]

    def time_left(self) -> str:
        """ " · about 2 h 05 min to the end"; empty while no step was timed."""
        forecast = Forecast(self.out / CALIBRATION, self.made.costs, self.records)
        return (
            f" · about {duration_in_words(forecast.left_s(self.records.stages.values()))} to the end"
            if forecast.timed
            else ""
        )

    def fix(self) -> None:
        """Write the protocol, and what it is recognised by. ConfigError where another process wrote one meanwhile."""
        if not self.is_fixed:
            self.records.folder.mkdir(parents=True, exist_ok=True)
            if (self.out / PROTOCOL).exists():
                raise ConfigError(f"{self.out}: another study began here meanwhile; choose another --out")
            write_json(self._seal, {"sha256": _digest(self.made.protocol), "dataset": str(self.dataset)})
            write_text(self.out / PROTOCOL, protocol_text(self.made.protocol))
            self.is_fixed = True
        self._follow_data()

    def submit(self, again: Sequence[str], options: Sequence[str]) -> list[str]:
        """Write and submit the chain of jobs; a line for each. ``again``: the words of ``flarecps`` that go on."""
        if self.asked.hours is not None and not self.is_fixed:
            raise ConfigError(
                "--budget with --submit: the login node times no steps; choose --folds and --seeds instead"
            )
        self.fix()
        before = [*self.made.before_training(), calibration_stage(self.made)]
        todo = [
            [one for one in part if self.records.state(one) != "done"] for part in (before, self.made.judged_stages())
        ]
        return submit_chain(write_chain(self.out / "slurm", again, *todo), options)

    def closing_lines(self) -> list[str]:
        """The verdict and what to type next; nothing before there is one."""
        if not (chosen := chosen_model(self.made)) or not (self.out / "verdict.md").is_file():
            return []
        content = read_own_json(self.out / VERDICT)
        said = [one for key in ("sentences", "remarks") for one in content.get(key, ())]
        command = model_command(self.made, *chosen)
        return [*(f"- {one}" for one in said), f"written: {self.out}/report.html, verdict.md, results/",
                *([f"next: {command}"] if command else [])]  # fmt: skip

    @property
    def _seal(self) -> Path:
        return self.out / RECORDS / "protocol.json"

    def _use(self, protocol: Protocol) -> None:
        costs, splits = Costs(protocol, self.find), self.splits(protocol)
        self.made = StudyStages(protocol, costs, splits, self.dataset, self.out, self.workers)
        for arm in (one for one in protocol.arms if not one.predictions):
            self.made.costs.total(arm.name)  # what can't be computed is said before anything runs
        self.records = StageRecords([], self.out / RECORDS)
        self.records.stages = {one.name: one for one in self.stages()}

    def _data_set_splits(self, protocol: Protocol) -> StudySplits:
        fold = protocol.held_out_fold if "determined" in protocol.post_processing else None
        return study_splits(self.dataset, protocol.judged, protocol.without, fold)

    def _kept(self) -> Protocol:
        kept = read_protocol(self.out / PROTOCOL)
        if read_own_json(self._seal).get("sha256") != _digest(kept):
            raise ConfigError(
                f"{self.out / PROTOCOL}: is not what {self._seal} says the study began with: one of them was changed, "
                "and a protocol is written before its results. Put it back as it was, or begin another study with "
                "--protocol and another --out"
            )
        if self.asked.hours is not None and f"chosen for {self.asked.hours:g} h" not in " ".join(kept.remarks):
            self.said.append("--budget: the protocol was written before, for another one or none, and stays as it is")
        if self.asked.anything:
            ours, theirs = (protocol_content(one) for one in (kept, self.asked.protocol(read_catalogue(self.dataset))))
            if differing := [
                key for key in {**ours, **theirs} if key != "remarks" and ours.get(key) != theirs.get(key)
            ]:
                raise ConfigError(
                    f"{self.out / PROTOCOL}: this study began with another protocol (its {first_few(differing)} differ)"
                    "; leave the options out to go on with it, or choose another --out"
                )
        return kept

    def _follow_data(self) -> None:
        """Link to where the scans lie now. ConfigError where they are not what the stores were made from."""
        sealed = read_own_json(self._seal)
        data = self.made.before_training()[0]
        if sealed.get("dataset", str(self.dataset)) != str(self.dataset) and self.records.state(data) == "done":
            self.said.append(f"the study began with scans in {sealed['dataset']}; they come from {self.dataset} now")
            link_study(self.made.splits, self.out)
            write_json(self._seal, {**sealed, "dataset": str(self.dataset)})
        for folder in map(self.made.store, self.made.planned().values()) if (self.out / RUNS).is_dir() else ():
            with suppress(StoreError):  # whoever reads the store tells what it lacks
                store = CaseStore(folder)
                changed, _ = changed_sources(
                    store.path, {name: list(store.record(name).sources) for name in store.names}
                )
                if changed:
                    raise ConfigError(
                        f"{self.dataset}: scans or labels changed since the study began ({first_few(changed)}), so its "
                        "trainings can't be compared; put them back, or begin another study with another --out"
                    )


def _digest(protocol: Protocol) -> str:
    return hashlib.sha256(protocol_text(protocol).encode()).hexdigest()
