"""``flarecps score``: predictions against references, per organ and case."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console

    from flarecps.evaluation.scores import ScoreTable
    from flarecps.reporting.run_folder import Scores

MOST_WORKERS = 8
SHOWN_NAMES = 5
FAILED = 1  # exit code: some cases could not be scored


def score(
    predictions: Path,
    references: Path,
    *,
    out: Path,
    protocol: Literal["official", "strict"] = "official",
    labels: Path | None = None,
    workers: int = 0,
) -> int:
    """Score label maps against references: DSC and NSD per organ and case, mean ± SD over cases.

    Files belong together by name. OUT gets scores.csv (FLARE22's columns), scores.json and scores.md. The exit code is
    1 when a case could not be scored; the others are scored all the same.

    The label set is that of --labels, else of a dataset.json in or above the references' folder or in the predictions'
    folder, else FLARE22's 13 organs. NSD tolerances are FLARE22's, in mm (2 to 7 by organ), 2 mm for other structures.

    Args:
        predictions: folder of predicted label maps (NIfTI, NRRD, MHA), or one file.
        references: folder of reference label maps with the same names, or one file.
        out: folder for the scores; made if needed.
        protocol: official is FLARE22's evaluation with all its rules (empty in both = 1, three tubes cropped along the
            slices, NSD 0 below DSC 0.2, 4 decimals, missing predictions left out); strict counts missing predictions as
            0, crops nothing, requires equal grids, leaves empty-in-both out of means, and adds HD95 and ASSD in mm.
        labels: dataset.json (or its folder) that names the structures.
        workers: processes that score cases in parallel; 0 takes one per core, at most 8.
    """
    from rich.console import Console

    from flarecps.atomic import write_text
    from flarecps.evaluation.label_sets import label_set
    from flarecps.evaluation.scores import score_folders, write_scores
    from flarecps.reporting.run_folder import read_scores
    from flarecps.reporting.tables import scores_markdown

    console, problems = Console(), Console(stderr=True)
    structures, origin = label_set(labels, predictions, references)
    table = score_folders(predictions, references, structures, protocol, workers or _cores())
    if table.cases:
        write_scores(table, out)
        scores = read_scores(out / "scores.csv")
        notes = _notes(table)
        write_text(out / "scores.md", scores_markdown(scores, f"Scores ({protocol} protocol)", notes))
        _show(table, scores, console)
        console.print(f"labels: {origin}", *notes, sep="\n", highlight=False, markup=False, soft_wrap=True)
        written = f"written: {out}/scores.csv, scores.json, scores.md"
        console.print(written, highlight=False, markup=False, soft_wrap=True)
    for name, error in table.failed.items():
        problems.print(f"not scored: {name}: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
    if table.failed:
        left_out = f"{len(table.failed)} of {len(table.failed) + len(table.cases)} cases could not be scored"
        means = "; the means leave them out" if table.cases else "; nothing was written"
        problems.print(left_out + means, highlight=False, soft_wrap=True)
    return FAILED if table.failed else 0


def _notes(table: ScoreTable) -> list[str]:
    """What a reader of the means must know."""
    notes = []
    if table.missing:
        fate = "left out, as FLARE22's script does" if table.protocol == "official" else "scored 0"
        notes.append(f"{_count(len(table.missing), 'reference')} without a prediction, {fate}: {_some(table.missing)}")
    warned = [name for name, case in table.cases.items() if case.warnings]
    if warned:
        first = table.cases[warned[0]].warnings[0]
        notes.append(f"{_count(len(warned), 'case')} with a warning: {_some(warned)}; the first: {first}")
    empty = sum(score.remark == "both empty" for case in table.cases.values() for score in case.organs.values())
    if empty:
        fate = "counted as 1 (FLARE22's rule)" if table.protocol == "official" else "left out of the means"
        notes.append(f"{_count(empty, 'organ')} empty in prediction and reference, {fate}")
    single = [name for name, case in table.cases.items() if any("uncropped" in s.remark for s in case.organs.values())]
    if single:
        notes.append(f"a one-slice tube (FLARE22's script fails there) was scored uncropped in: {_some(single)}")
    if table.failed:
        notes.append(f"{_count(len(table.failed), 'case')} could not be scored, left out: {_some(tuple(table.failed))}")
    return notes


def _show(table: ScoreTable, scores: Scores, console: Console) -> None:
    from rich.table import Table

    from flarecps.reporting.tables import MEAN_ROW, score_rows

    title = f"{_count(len(table.cases), 'case')}, {table.protocol} protocol: mean ± SD over cases"
    shown = Table("organ", title=title, title_justify="left")
    for heading in ("DSC", "NSD", "cases"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in score_rows(scores):
        if row.title == MEAN_ROW:
            shown.add_section()
        shown.add_row(row.title, *row.cells, str(row.n))
    console.print(shown)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", …" if len(names) > SHOWN_NAMES else "")


def _cores() -> int:
    """Processor cores this process may use (a cluster job's share), at most ``MOST_WORKERS``."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, MOST_WORKERS)
