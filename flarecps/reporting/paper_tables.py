"""The paper's result tables beside one's own numbers: Tables 3 to 6 of Huang et al., FLARE 2022.

The paper's numbers stand in ``flare22_paper.json``, typed from its tables. A cell of one's own is a number, or words
that say why there is none.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from flarecps.evaluation.score_table import Scores, mean_of
from flarecps.reporting.tables import markdown_table, organ_title

PAPER = Path(__file__).with_name("flare22_paper.json")
MEAN = "mean"  # the last row of each table
METHOD_TITLES = {
    "2d_supervised": "2D Baseline",
    "2d_cps": "2D Baseline+CPS",
    "3d_supervised": "3D Baseline",
    "3d_cps": "3D Baseline+CPS",
    "3d_cps_test": "3D-CPS",
}
Column: TypeAlias = tuple[str, str]  # key of the method, "dsc" or "nsd"


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables: organs (FLARE's column names, then ``MEAN``) as rows."""

    number: int
    title: str
    cases: int
    remark: str
    columns: tuple[Column, ...]
    rows: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class OwnScores:
    """What there is for one method: a score table and the cases of it that count, or ``lacking``: why there is none."""

    scores: Scores | None = None
    cases: tuple[str, ...] = ()
    lacking: str = "not run"


def read_paper() -> dict[str, Any]:
    """The content of the paper's data file."""
    content: dict[str, Any] = json.loads(PAPER.read_text(encoding="utf-8"))
    return content


def paper_tables() -> list[PaperTable]:
    """Tables 3 to 6."""
    return [
        PaperTable(
            one["number"],
            one["title"],
            one["cases"],
            one["remark"],
            tuple((method, measure) for method, measure in one["columns"]),
            {row: tuple(values) for row, values in one["rows"].items()},
        )
        for one in read_paper()["scores"]
    ]


def own_cell(own: OwnScores, row: str, measure: str) -> float | str:
    """The mean over cases of one organ, or the mean of the organs' means; else words.

    An organ that a table lacks has no number: its cell, and the mean's, say so.
    """
    if own.scores is None:
        return own.lacking
    counted = own.scores.select([case for case in own.scores.cases if case in own.cases], own.scores.organs)
    if not counted.cases:
        return "no case scored"
    if row != MEAN:
        return mean_of(counted.organ(row, measure)) if row in counted.organs else "not scored"
    if any(not counted.organ(organ, measure).size for organ in counted.organs):
        return "an organ without a score"
    return counted.mean(measure)


def filled_rows(table: PaperTable, own: Mapping[str, OwnScores]) -> list[list[float | str]]:
    """Rows of one's own cells, in the table's order of rows and columns."""
    return [[own_cell(own[method], row, measure) for method, measure in table.columns] for row in table.rows]


def filled_markdown(table: PaperTable, own: Mapping[str, OwnScores]) -> str:
    """The table as Markdown: for every column the paper's number and one's own."""
    heading = ["organ"]
    for method, measure in table.columns:
        heading += [f"{METHOD_TITLES[method]} {measure.upper()}, paper", "here"]
    body = []
    for (row, printed), cells in zip(table.rows.items(), filled_rows(table, own), strict=True):
        line = ["**mean**" if row == MEAN else organ_title(row)]
        for number, cell in zip(printed, cells, strict=True):
            line += [f"{number:.4f}", _words(cell)]
        body.append(line)
    remarks = [table.remark] if table.remark else []
    remarks += _counts(table, own)
    said = "".join(f"- {remark}\n" for remark in remarks)
    return f"## Table {table.number}: {table.title}\n\n{markdown_table(heading, body)}" + (f"\n{said}" if said else "")


def filled_csv(table: PaperTable, own: Mapping[str, OwnScores]) -> str:
    """The table as CSV: organ, method, measure, paper, here, difference, cases, and why a number is missing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["organ", "method", "measure", "paper", "here", "difference", "cases", "lacking"])
    for (row, printed), cells in zip(table.rows.items(), filled_rows(table, own), strict=True):
        for (method, measure), number, cell in zip(table.columns, printed, cells, strict=True):
            found = isinstance(cell, float) and math.isfinite(cell)
            line = [f"{cell:.4f}", f"{cell - number:+.4f}"] if found else ["", ""]  # type: ignore[operator]  # a float
            count = len(own[method].cases) if own[method].scores is not None else 0
            writer.writerow([row, METHOD_TITLES[method], measure.upper(), f"{number:.4f}", *line, count,
                             "" if found else _words(cell)])  # fmt: skip
    return text.getvalue()


def _counts(table: PaperTable, own: Mapping[str, OwnScores]) -> list[str]:
    """How many cases the numbers are of, where there are numbers."""
    there = {len(own[method].cases) for method, _ in table.columns if own[method].scores is not None}
    if not there:
        return []
    counts = " or ".join(str(count) for count in sorted(there))
    same = there == {table.cases}
    return [f"Here: mean over {counts} cases" + ("." if same else f"; the paper's are over {table.cases}.")]


def _words(cell: float | str) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell:.4f}" if math.isfinite(cell) else "no number"
