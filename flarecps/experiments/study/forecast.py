"""How long a study takes: a few steps of every arm are timed first, and what is done replaces what was foretold."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flarecps.atomic import write_json
from flarecps.durations import duration_in_words
from flarecps.errors import ConfigError, FlarecpsError, counted
from flarecps.experiments.runner import FLARECPS
from flarecps.experiments.stages import Stage, StageRecords
from flarecps.experiments.study.cost import Costs, scaled
from flarecps.experiments.study.protocol import ALL, Protocol
from flarecps.experiments.study.stages import Cell, StudyStages
from flarecps.json_fields import is_number
from flarecps.text_files import read_own_json
from flarecps.training.defaults import DRY_RUN_FILE

CALIBRATION = "calibration.json"
_SHARE = {"segment": 1.0, "postprocess": 0.5, "score": 0.7, "compare": 0.7}  # of a training's start, until one is done
CHOICES = (  # of --budget, the best first: folds, seeds, share of the epochs; one seed could tell next to nothing
    (5, 3, 1.0), (5, 2, 1.0), (3, 2, 1.0), (2, 2, 1.0), (3, 2, 0.5), (2, 2, 0.5), (3, 2, 0.25), (2, 2, 0.25),
)  # fmt: skip


def calibration_stage(stages: StudyStages) -> Stage:
    """The stage that times a few steps of every arm into OUT/calibration.json."""
    path = stages.out / CALIBRATION
    words, served = (
        {},
        {one.average_of for one in stages.protocol.arms} | {one.teachers for one in stages.protocol.arms},
    )
    for arm in stages.protocol.arms:
        if (arm.siblings or arm.name in served) and not (
            arm.average_of or arm.teachers or arm.predictions
        ):  # whose labels are not there yet
            cell = Cell(arm.name, stages.protocol.labels_of(arm)[0], 0, 0)
            words[arm.name] = (stages.trained(cell)[-1].words, stages.costs.recipe(arm.name).cost())
    after = tuple(f"preprocess_{one}" for one in stages.planned())
    return Stage("calibrate", (), (path,), after, action=lambda: _calibrate(path, words),
                 description=f"a few steps of each arm timed: {', '.join(words)}")  # fmt: skip


def _calibrate(path: Path, words: Mapping[str, tuple[tuple[str, ...], float]]) -> None:
    """Write, by arm, the seconds that its training takes, those until it begins, and its declared cost."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (one, cost) in words.items():
            began, told = time.monotonic(), Path(folder, f"{name}.json")
            done = subprocess.run([*FLARECPS, *one, "--dry-run"], check=False, capture_output=True, text=True,
                                  errors="replace", env={**os.environ, DRY_RUN_FILE: str(told)})  # fmt: skip
            training_s = read_own_json(told).get("training_s")
            if done.returncode or not is_number(training_s):
                last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
                raise FlarecpsError(f"arm '{name}': a few steps of its training could not be made: {last}")
            found[name] = {"training_s": training_s, "start_s": round(time.monotonic() - began, 1), "cost": cost}
    write_json(path, found)


class Forecast:
    """Seconds that stages take: as others of their kind took, else as the calibration says."""

    def __init__(self, calibration: Path, costs: Costs, records: StageRecords) -> None:
        self.costs, self.records = costs, records
        content = read_own_json(calibration)
        self.timed = {name: one for name, one in content.items() if isinstance(one, dict)
                      and all(is_number(one.get(key), at_least=0) for key in ("training_s", "start_s"))
                      and is_number(one.get("cost"), above=0)}  # fmt: skip
        trained = any(not arm.predictions for arm in costs.protocol.arms)
        if calibration.exists() and not self.timed and trained:
            raise ConfigError(f"{calibration}: damaged; remove it, and the same command makes it again")

    @property
    def start_s(self) -> float:
        """What a training takes before its first step, and a little of it."""
        return max((one["start_s"] for one in self.timed.values()), default=20.0)

    def training_s(self, arm: str, cost: float) -> float:
        """Of one training of an arm of that declared cost, by its own timed steps or, without, by another's."""
        if not self.timed:
            return 0.0
        timed = self.timed.get(arm) or next(iter(self.timed.values()))
        return float(self.start_s + timed["training_s"] * cost / timed["cost"])

    def left_s(self, stages: Iterable[Stage]) -> float:
        """Of all stages that are not done."""
        took: dict[tuple[str, str], list[float]] = {}
        left = []
        for stage in stages:
            record: dict[str, Any] = self.records.read(stage)
            if record.get("state") != "done":
                left.append(stage)
            elif is_number(record.get("wall_s")):
                took.setdefault(_kind(stage), []).append(float(record["wall_s"]))
        return sum(self.of(stage, took.get(_kind(stage), [])) for stage in left)

    def of(self, stage: Stage, took: Sequence[float] = ()) -> float:
        """Of a stage, where others of its kind ``took`` so long."""
        command, arm = _kind(stage)
        if took:
            return sum(took) / len(took)
        if command == "fit":
            return self.training_s(arm, self.costs.recipe(arm).cost())
        return self.start_s * _SHARE.get(command, 1.0) if stage.words else 0.0


def _kind(stage: Stage) -> tuple[str, str]:
    """A stage's command, and of a training its arm: ``train_LABELS.ARM.fold_0.seed_0``."""
    command = stage.words[0] if stage.words else stage.name.split("_")[0]
    return command, stage.name.rsplit(".", 3)[1] if command == "fit" else ""


def within_budget(stages: StudyStages, forecast: Forecast, hours: float) -> Protocol:
    """The protocol with the folds, seeds and epochs that fit into ``hours``, and a remark that says so.

    ConfigError where not even the smallest study fits.
    """
    needed = 0.0
    for folds, seeds, share in CHOICES:
        protocol = stages.protocol
        judged = replace(protocol.judged, folds=folds) if protocol.judged.by == "folds" else protocol.judged
        protocol = replace(protocol, judged=judged, seeds=seeds)
        if share < 1:
            own = {arm.name: max(1, round(share * stages.costs.recipe(arm.name).epochs))
                   for arm in protocol.arms if not (arm.average_of or arm.compute_of or arm.predictions)}  # fmt: skip
            protocol = scaled(protocol, own, stages.costs)
        costs = Costs(protocol, stages.costs.find)
        tried = replace(stages, protocol=protocol, costs=costs)
        if protocol.judged.by == "folds" and f"{ALL}.fold_0_of_{folds}" not in stages.splits.splits:
            continue  # too few labelled scans
        needed = _seconds_of(tried, forecast)
        if needed <= 3600 * hours:
            parts = counted(folds, "fold") + " × " if protocol.judged.by == "folds" else ""
            said = f"{hours:g} h: {parts}{counted(seeds, 'seed')}, {share:.0%} of the epochs"
            return replace(protocol, remarks=(*protocol.remarks, f"chosen for {said}; foretold "
                                              f"{duration_in_words(needed)}"))  # fmt: skip
    raise ConfigError(f"--budget {hours:g}: the smallest study takes about {duration_in_words(needed)}; "
                      "give more hours, or fewer arms (--arms)")  # fmt: skip


def _seconds_of(stages: StudyStages, forecast: Forecast) -> float:
    """Of all trainings and judging, none of it done, and the model at the end, taken for one training more."""
    own, total, longest = Forecast(stages.out / CALIBRATION, stages.costs, forecast.records), 0.0, 0.0
    for stage in stages.judged_stages():
        taken = own.of(stage)
        total, longest = total + taken, max(longest, taken)
    return total + longest
