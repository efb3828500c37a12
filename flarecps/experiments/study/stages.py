"""A study as stages: data, plan, stores, trainings, label maps of the scans that judge, post-processing, scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flarecps.case_names import composed
from flarecps.experiments.stages import Stage, command_stage, fit_stage, last_checkpoint, store_stages
from flarecps.experiments.study.cost import Costs
from flarecps.experiments.study.given import link_given, state_of
from flarecps.experiments.study.protocol import ALL, FOLD, Arm, Protocol
from flarecps.experiments.study.splits import DATA, HELD_OUT, StudySplits, link_study, split_name, validation_name
from flarecps.inference.postprocessing import determine_rules, pairs_of, rules_for, write_rules

SEEDS_APART = 10  # initial seeds of two trainings: a training's siblings take two
MODEL = "model"  # folder of OUT for what is recommended
RUNS = "runs"  # of the trainings
JUDGING = ("segment_", "apply_", "score_")  # stages of the scans that judge
VALIDATION = "validation"  # of the scans that trainings keep for it


@dataclass(frozen=True)
class Cell:
    """An arm with so many labels, judged on a fold, from a seed; ``fold`` is None for a model of all labels."""

    arm: str
    labels: str
    fold: int | None
    seed: int

    @property
    def name(self) -> str:
        """Of its stages."""
        return f"{self.labels}.{self.arm}.{'all' if self.fold is None else f'fold_{self.fold}'}.seed_{self.seed}"

    @property
    def folder(self) -> Path:
        """Of its files, below a study's folders."""
        place = "all_labels" if self.fold is None else f"fold_{self.fold}"
        return Path(self.labels, self.arm, place, f"seed_{self.seed}")


@dataclass(frozen=True)
class StudyStages:
    """Makes the stages of a protocol on a data set, everything in ``out``; ``workers`` for plan and preprocess."""

    protocol: Protocol
    costs: Costs
    splits: StudySplits
    dataset: Path
    out: Path
    workers: int = 2

    def replicates(self, arm: Arm) -> range:
        """The seeds of which an arm has a figure: one of two trainings that are neighbours, and of predictions without
        {seed}."""
        paired = arm.average_of and self.protocol.pairs == "neighbours"
        single = (paired and self.protocol.seeds < 3) or (arm.predictions and "{seed}" not in arm.predictions)
        return range(1 if single else self.protocol.seeds)

    def cells(self) -> Iterator[Cell]:
        """All that is judged, the primary question's first seeds first."""
        for seed in range(self.protocol.seeds):
            for fold in range(self.protocol.folds):
                for arm in self.protocol.arms:
                    if arm.siblings and seed in self.replicates(arm):
                        yield from (Cell(arm.name, labels, fold, seed) for labels in self.protocol.labels_of(arm))

    def before_training(self) -> list[Stage]:
        """Links, inspection, and every plan with its case store."""
        data, report, pool = self.out / DATA, self.out / "inspection.json", ("--workers", self.workers)
        found = [
            Stage("data", (), (data / "dataset.json",), action=partial(link_study, self.splits, self.out),
                  description="links to the scans, and splits.json", depends_on=self.splits.listing, protected=True),
            *(self._given(cell) for cell in self.cells() if self.protocol.arm(cell.arm).predictions),
            command_stage("inspect", ("inspect", data, "--json", report, *pool), report, "data", cure=(
                f"mend what it calls an error above and go on with the same command, or remove {self.out} and begin "
                "anew --without these scans")),
        ]  # fmt: skip
        first = next(iter(self.splits.splits)) if self.protocol.judged.by != "folds" else ALL
        for name, arm in self.planned().items():
            options = {**self.protocol.plan, **self.protocol.plans.get(arm.plan, {})}
            words = ("--split", first, *option_words(options), "--intensity", arm.intensity)
            found += store_stages(data, self.out / f"plan_{name}.json", self.store(arm), words,
                                  ("--fingerprints", self.out / "fingerprints", *pool), pool, ("inspect",),
                                  suffix=f"_{name}")  # fmt: skip
        return found

    def plan_name(self, arm: Arm) -> str:
        """What an arm's plan and store are called: by the name of its plan, if any, and the scaling of intensities."""
        return f"{arm.plan}_{arm.intensity}" if arm.plan else arm.intensity

    def planned(self) -> dict[str, Arm]:
        """For every plan, by `plan_name`, an arm that is trained by it."""
        trained = [arm for arm in self.protocol.arms if not arm.average_of and not arm.predictions]
        return {self.plan_name(arm): arm for arm in trained}

    def store(self, arm: Arm) -> Path:
        """Where the cases by an arm's plan lie."""
        return self.out / f"store_{self.plan_name(arm)}"

    def run(self, cell: Cell) -> Path:
        """The folder of a training."""
        return self.out / RUNS / cell.folder

    def judges(self, cell: Cell) -> set[str]:
        """The names of the scans that judge a cell."""
        return {composed(case.name) for case in self.splits.held_out[self.split(cell)]}

    def checkpoints(self, cell: Cell) -> list[Path]:
        """What segments for a cell: a training's checkpoint, or those of two that are averaged."""
        name = f"{self.protocol.checkpoint}.ckpt"
        return [last_checkpoint(self.run(one)).with_name(name) for one in self._averaged(cell)]

    def judged_stages(self) -> list[Stage]:
        """Trainings, label maps, post-processing and scores of all cells, each stage once."""
        found: dict[str, Stage] = {}
        for cell in self.cells():
            for one in self._of_cell(cell):
                found.setdefault(one.name, one)
        for cell in self.cells():
            for one in self._scored(cell):
                found.setdefault(one.name, one)
        why = self.splits.lacking
        return [replace(one, lacking=why) if one.name.startswith(JUDGING) else one for one in found.values()]

    def model_stages(self, arm: str, sibling: str) -> list[Stage]:
        """The recommended arm trained on all labelled scans, and the rules that its held-out predictions call for; []
        for one whose predictions were given."""
        if self.protocol.arm(arm).predictions:
            return []
        cell = self.final_cell(arm)
        found = {one.name: one for one in self.trained(cell)}
        if "determined" in self.protocol.post_processing:
            folds = [
                Cell(arm, cell.labels, fold, 0) for fold in range(self.protocol.folds)
            ]  # without folds it is the cell
            rules = self._rules(f"model.{sibling}", folds, sibling, self.out / MODEL / "postprocessing.json")
            found[rules.name] = rules
        return list(found.values())

    def final_cell(self, arm: str) -> Cell:
        """The model of all labels."""
        labels = self.protocol.labels_of(self.protocol.arm(arm))[0]
        return Cell(arm, labels, None if self.protocol.judged.by == "folds" else 0, 0)

    def segment_words(self, sibling: str) -> list[str]:
        """The words after the folders of ``segment``."""
        return ["--sibling", sibling, *option_words(self.protocol.segment)]

    def scores(self, cell: Cell, sibling: str, way: str) -> Path:
        """The table of a cell's scores after one way of post-processing."""
        return self.out / "scores" / way / cell.folder / sibling / "scores.csv"

    def _averaged(self, cell: Cell) -> list[Cell]:
        arm = self.protocol.arm(cell.arm)
        if not arm.average_of:
            return [cell]
        return [Cell(arm.average_of, cell.labels, cell.fold, seed) for seed in self.protocol.pair(cell.seed)]

    def _of_cell(self, cell: Cell) -> list[Stage]:
        """Trainings, and the label maps of the scans that judge, by every sibling."""
        arm = self.protocol.arm(cell.arm)
        if arm.predictions:
            return []
        found = self.trained(cell)
        trained = [f"train_{one.name}" for one in self._averaged(cell)]
        for sibling in arm.siblings:
            labels = self.labels("none", cell, sibling)
            found.append(
                self._segment(self._segmented(cell, sibling), cell, sibling, self.split(cell), labels, trained)
            )
            if self.by_validation:
                name, labels = self._validation(cell, sibling), self.labels(VALIDATION, cell, sibling)
                found.append(self._segment(name, cell, sibling, validation_name(self.split(cell)), labels, trained))
        return found

    def _validation(self, cell: Cell, sibling: str) -> str:
        """The stage that segments what a cell's training kept for validation."""
        return f"validation_{cell.name}.{sibling}"

    def _segment(self, name: str, cell: Cell, sibling: str, scans: str, labels: Path, after: Sequence[str]) -> Stage:
        words = ("segment", *self.checkpoints(cell), self.out / HELD_OUT / scans / "images", labels,
                 *self.segment_words(sibling))  # fmt: skip
        return command_stage(name, words, labels, *after)

    def _given(self, cell: Cell) -> Stage:
        """Another program's predictions for a cell."""
        name, out = self.split(cell), self.labels("none", cell, "1")
        pattern = self.protocol.arm(cell.arm).predictions
        for word, value in (("labels", cell.labels), ("fold", cell.fold), ("seed", cell.seed)):
            pattern = pattern.replace(f"{{{word}}}", str(value))
        folder = Path(pattern)
        link = partial(link_given, folder, self.splits.held_out.get(name, ()), self.splits.catalogue.labels, out,
                       self.out / HELD_OUT / name / "images")  # fmt: skip
        return Stage(self._segmented(cell, "1"), (), (out,), ("data",), link, f"links to the label maps in {folder}",
                     depends_on=state_of(folder))  # fmt: skip

    def _segmented(self, cell: Cell, sibling: str) -> str:
        """The stage that leaves a cell's label maps."""
        kind = "predictions" if self.protocol.arm(cell.arm).predictions else "segment"
        return f"{kind}_{cell.name}.{sibling}"

    def trained(self, cell: Cell) -> list[Stage]:
        """The cell's training, last, and those that it needs."""
        arm = self.protocol.arm(cell.arm)
        if arm.average_of:
            return [stage for one in self._averaged(cell) for stage in self.trained(one)]
        found: list[Stage] = []
        store, run = self.store(arm), self.run(cell)
        split = self.split(cell)
        after, more = f"preprocess_{self.plan_name(arm)}", []
        if arm.teachers:
            teachers = [Cell(arm.teachers, cell.labels, cell.fold, seed) for seed in self.protocol.pair(cell.seed)]
            found += [stage for one in teachers for stage in self.trained(one)]
            trained, other = [f"train_{one.name}" for one in teachers], list[object]()
            if (theirs := self.protocol.arm(arm.teachers)).plan != arm.plan:
                trained, other = [*trained, after], ["--teacher-store", self.store(theirs)]
            labels = run.with_name(f"{run.name}_pseudo_labels")
            words = ("pseudo-label", *(path for one in teachers for path in self.checkpoints(one)), store, labels,
                     "--split", split, "--largest", "all", *other)  # fmt: skip
            after = f"label_{cell.name}"
            found.append(command_stage(after, words, labels, *trained))
            more = [f"--data.pseudo_labels={labels}"]
        config = self.costs.find(arm.config) if arm.config else None
        seed = cell.seed * self.protocol.folds + (cell.fold or 0)
        given = self.costs.settings(arm)
        fixed = {"data.store": store, "trainer.default_root_dir": run, "data.split": split, "seed_everything": seed,
                 "data.seed": seed, "model.initial_seed": SEEDS_APART * seed}  # fmt: skip
        if FOLD not in given:
            fixed[FOLD] = ALL
        settings = [*(f"--{key}={value}" for key, value in fixed.items()), *self.costs.words(arm), *more]
        fit = ("fit", *(("--config", config) if config else ()), *settings)
        return [*found, fit_stage(f"train_{cell.name}", fit, config, run, after)]

    def labels(self, way: str, cell: Cell, sibling: str) -> Path:
        """The folder of a cell's label maps after one way of post-processing."""
        return self.out / "labels" / way / cell.folder / sibling

    def rules(self, way: str, cell: Cell, sibling: str) -> Path:
        """The file of the rules by which a cell's label maps are post-processed."""
        return self.out / "rules" / way / cell.folder / f"{sibling}.json"

    def split(self, cell: Cell) -> str:
        """The name of the split that a cell is trained and judged by."""
        return split_name(self.protocol.judged, cell.labels, cell.fold)

    @property
    def by_validation(self) -> bool:
        """Whether post-processing is determined on what trainings keep for validation."""
        return "determined" in self.protocol.post_processing and self.protocol.judged.by != "folds"

    def _scored(self, cell: Cell) -> list[Stage]:
        """Post-processing in the protocol's ways, and the scores after each."""
        found = []
        references = self.out / HELD_OUT / self.split(cell) / "labels"
        for sibling in self.protocol.arm(cell.arm).siblings:
            for way in self.protocol.post_processing:
                labels, name = self.labels(way, cell, sibling), f"{way}_{cell.name}.{sibling}"
                after = self._segmented(cell, sibling)
                if way != "none":
                    rules = self.rules(way, cell, sibling)
                    if way == "determined":
                        others = [Cell(cell.arm, cell.labels, fold, cell.seed) for fold in range(self.protocol.folds)
                                  if fold != cell.fold]  # fmt: skip
                        stage = self._rules(name, [cell] if self.by_validation else others, sibling, rules)
                    else:
                        stage = Stage(f"rules_{name}", (), (rules,), ("data",), description="largest pieces",
                                      action=partial(_write_largest, rules, self.splits.catalogue.labels))  # fmt: skip
                    apply = ("postprocess", "apply", self.labels("none", cell, sibling), labels, "--rules", rules)
                    found += [stage, command_stage(f"apply_{name}", apply, labels, after, stage.name)]
                    after = f"apply_{name}"
                table = self.scores(cell, sibling, way)
                score = ("score", labels, references, "--protocol", self.protocol.scoring, "--out", table.parent,
                         "--workers", 1)  # fmt: skip
                found.append(command_stage(f"score_{name}", score, table, after))
        return found

    def _rules(self, name: str, cells: list[Cell], sibling: str, path: Path) -> Stage:
        folders, after = dict[Path, Path](), []
        for one in cells:
            way, scans, stage = "none", self.split(one), self._segmented(one, sibling)
            if self.by_validation:
                way, scans, stage = VALIDATION, validation_name(scans), self._validation(one, sibling)
            folders[self.labels(way, one, sibling)] = self.out / HELD_OUT / scans / "labels"
            after.append(stage)
        whose = "held-out scans" if self.by_validation else "other folds"
        return Stage(f"rules_{name}", (), (path,), tuple(after), description=f"post-processing that {whose} call for",
                     action=partial(_write_determined, path, folders, self.splits.catalogue.labels))  # fmt: skip


def option_words(options: Mapping[str, Any]) -> list[str]:
    """A protocol's options as words of a command."""
    found = []
    for key, value in options.items():
        name = key.replace("_", "-")
        found += [f"--{name}" if value else f"--no-{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return found


def _write_largest(path: Path, labels: Mapping[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rules(path, rules_for(dict(labels), (), None, ("all",)))


def _write_determined(path: Path, folders: Mapping[Path, Path], labels: Mapping[str, int]) -> None:
    """The rules that do good on the predictions of ``folders``, held against the references of each."""
    pairs = {name: pair for predicted, true in folders.items() for name, pair in pairs_of(predicted, true).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rules(path, determine_rules(pairs, labels, progress=False)[0])
