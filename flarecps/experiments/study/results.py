"""The scores of a study: one figure per arm, sibling, labels, fold, seed and scan; tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flarecps.atomic import write_text
from flarecps.case_names import composed
from flarecps.errors import DatasetError, first_few
from flarecps.evaluation.score_table import DSC, MEASURES, NSD, Scores, read_scores
from flarecps.experiments.study.protocol import Protocol
from flarecps.experiments.study.stages import StudyStages
from flarecps.text_files import csv_text

LONG = ("post_processing", "arm", "sibling", "labels", "fold", "seed", "case", *MEASURES)


@dataclass(frozen=True)
class Column:
    """What is judged: an arm's sibling with so many labels, after one way of post-processing."""

    arm: str
    sibling: str
    labels: str
    way: str

    @property
    def folder(self) -> Path:
        """Of its tables, below OUT/results."""
        return Path(self.way, self.labels, self.arm if self.sibling == "1" else f"{self.arm}.{self.sibling}")


@dataclass(frozen=True)
class StudyScores:
    """Tables by column, then by (fold, seed)."""

    protocol: Protocol
    tables: Mapping[Column, Mapping[tuple[int, int], Scores]]

    def figure(self, arm: str, labels: str = "") -> Column:
        """The column that stands for an arm: its first sibling, the first way of post-processing."""
        one = self.protocol.arm(arm)
        return Column(arm, one.siblings[0], labels or self.protocol.labels_of(one)[0], self.protocol.post_processing[0])

    def values(self, column: Column, measure: str) -> list[np.ndarray]:
        """Of each fold (scans, seeds): means over organs, in order of the scans' names."""
        found = []
        for fold in range(self.protocol.folds):
            tables = [one for (where, _), one in sorted(self.tables[column].items()) if where == fold]
            cases = sorted(tables[0].cases)
            found.append(np.stack([one.select(cases, tables[0].organs).case_means(measure) for one in tables], 1))
        return found

    def differences(self, column: Column, baseline: Column, measure: str) -> list[np.ndarray]:
        """Column minus baseline of each fold, over the seeds that both have and the organs that both have in a scan."""
        found = []
        for fold in range(self.protocol.folds):
            ours, theirs = self.tables[column], self.tables[baseline]
            seeds = [seed for where, seed in sorted(ours) if where == fold and (fold, seed) in theirs]
            pairs = [(ours[fold, seed], theirs[fold, seed]) for seed in seeds]
            cases, organs = sorted(pairs[0][0].cases), pairs[0][0].organs
            change = [one.select(cases, organs).values[measure] - other.select(cases, organs).values[measure]
                      for one, other in pairs]  # fmt: skip
            found.append(
                np.stack([Scores(tuple(cases), organs, {measure: one}).case_means(measure) for one in change], 1)
            )
        return found

    def seed_means(self, column: Column, measure: str) -> np.ndarray:
        """The mean over all scans of every seed."""
        return np.nanmean(np.concatenate(self.values(column, measure)), axis=0)


def read_study(stages: StudyStages) -> StudyScores:
    """All scores of a study whose stages are done. DatasetError for a table that is missing, or not of its scans."""
    tables: dict[Column, dict[tuple[int, int], Scores]] = {}
    again = "remove it, and the same command makes it again"
    for cell in stages.cells():
        for sibling in stages.protocol.arm(cell.arm).siblings:
            for way in stages.protocol.post_processing:
                column = Column(cell.arm, sibling, cell.labels, way)
                try:
                    table = read_scores(stages.scores(cell, sibling, way))
                except DatasetError as error:
                    raise DatasetError(f"{error}; {again}") from None
                judges = stages.judges(cell)
                if any(((one < 0) | (one > 1)).any() for one in table.values.values()):
                    raise DatasetError(f"{table.origin}: holds scores outside 0 to 1; {again}")
                if differing := sorted(judges ^ {composed(case) for case in table.cases}):
                    raise DatasetError(
                        f"{table.origin}: holds {len(table.cases)} scans of the {len(judges)} that judge "
                        f"({first_few(differing)} differ); {again}"
                    )
                tables.setdefault(column, {})[cell.fold or 0, cell.seed] = table
    for column, found in tables.items():
        if not any(np.isfinite(one.values[measure]).any() for one in found.values() for measure in MEASURES):
            raise DatasetError(
                f"{stages.out}: no scan has a score of arm '{column.arm}'; look at its labels and scores"
            )
    return StudyScores(stages.protocol, tables)


def write_study_tables(scores: StudyScores, out: Path) -> None:
    """``OUT/scores.csv``, every scan's means; and for each column and seed a table of all folds' scans by organ.

    The latter have FLARE's columns, as ``flarecps compare`` reads them.
    """
    rows: list[Sequence[object]] = [LONG]
    for column, tables in scores.tables.items():
        for (fold, seed), table in sorted(tables.items()):
            where = (column.way, column.arm, column.sibling, column.labels, fold, seed)
            means = [[_cell(value) for value in table.case_means(measure)] for measure in MEASURES]
            rows += [(*where, *one) for one in zip(table.cases, *means, strict=True)]
        for seed in sorted({seed for _, seed in tables}):
            mine = [table for (_, own), table in sorted(tables.items()) if own == seed]
            (out / column.folder).mkdir(parents=True, exist_ok=True)
            write_text(out / column.folder / f"seed_{seed}.csv", _by_organ(mine))
    write_text(out / "scores.csv", csv_text(rows))


def _by_organ(tables: Sequence[Scores]) -> str:
    organs = tables[0].organs
    rows: list[Sequence[object]] = [["Name", *(organ + kind for kind in (DSC, NSD) for organ in organs)]]
    for table in tables:
        for case in table.cases:
            found = [_cell(table.at(case, organ, measure)) for measure in MEASURES for organ in organs]
            rows.append([f"{case}.nii.gz", *found])
    return csv_text(rows)


def _cell(value: float) -> float | str:
    return round(float(value), 6) if np.isfinite(value) else ""


def compare_words(stages: StudyStages, out: Path, labels: str, way: str) -> list[str]:
    """The words of ``flarecps compare`` on the written tables, the primary baseline first."""
    protocol, found = stages.protocol, []
    first = (protocol.primary.baseline, protocol.primary.method)
    for arm in sorted(protocol.arms, key=lambda one: first.index(one.name) if one.name in first else len(first)):
        for sibling in arm.siblings if labels in protocol.labels_of(arm) else ():
            column = Column(arm.name, sibling, labels, way)
            files = [str(out / column.folder / f"seed_{seed}.csv") for seed in stages.replicates(arm)]
            found.append(f"{arm.word_of(sibling)}={','.join(files)}")
    return found
