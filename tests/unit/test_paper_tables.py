"""The paper's numbers, and how one's own stand beside them."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from flarecps.anatomy import FLARE22_ORGANS
from flarecps.evaluation.score_table import Scores
from flarecps.experiments.paper_tables import (
    MEAN,
    METHOD_TITLES,
    OwnScores,
    filled_csv,
    filled_markdown,
    own_cell,
    paper_tables,
    read_paper,
)

COLUMNS = tuple(organ.column for organ in FLARE22_ORGANS)


def scores() -> Scores:
    """Three cases, 13 organs; DSC of case i and organ j is (i + j) / 100, NSD twice that."""
    dsc = np.add.outer(np.arange(3), np.arange(13)) / 100
    return Scores(("a", "b", "c"), COLUMNS, {"dsc": dsc, "nsd": 2 * dsc})


@pytest.mark.parametrize("table", paper_tables(), ids=lambda table: f"table {table.number}")
def test_the_papers_tables_are_whole_and_their_means_are_the_organs_means(table) -> None:  # type: ignore[no-untyped-def]
    """A typing error in one organ would move its column's mean; the paper's own slip is known."""
    assert tuple(table.rows) == (*COLUMNS, MEAN)
    assert {len(values) for values in table.rows.values()} == {len(table.columns)}
    assert {method for method, _ in table.columns} <= set(METHOD_TITLES)
    organs = np.array([table.rows[column] for column in COLUMNS])
    off = np.abs(organs.mean(axis=0) - table.rows[MEAN])
    if table.number == 6:
        assert off[0] == pytest.approx(0.0023, abs=1e-4)
        assert "0.6943" in table.remark
        off = off[1:]
    assert (off < 0.0001).all()


def test_what_the_paper_says_of_its_tables_is_in_the_numbers() -> None:
    """Section 4.1: +0.0223 in 2D, +0.0167 in 3D; abstract: 0.881 and 0.913 on 20 cases."""
    third, _, fifth, _ = paper_tables()
    two, two_cps, three, three_cps = third.rows[MEAN]
    assert (round(two_cps - two, 4), round(three_cps - three, 4)) == (0.0223, 0.0167)
    assert (round(fifth.rows[MEAN][1], 3), round(fifth.rows[MEAN][3], 3)) == (0.881, 0.913)
    protocols = read_paper()["protocols"]["rows"]
    assert protocols["Number of model parameters"] == ["41.29M", "30.79M"]


def test_a_cell_is_the_mean_over_the_cases_that_count() -> None:
    own = OwnScores(scores(), ("a", "c"))
    assert own_cell(own, "RK", "dsc") == pytest.approx(0.02)  # organ 1 of cases 0 and 2
    assert own_cell(own, MEAN, "nsd") == pytest.approx(0.14)  # twice (mean organ 6 + mean case 1) / 100
    assert own_cell(OwnScores(lacking="hidden"), "RK", "dsc") == "hidden"
    assert own_cell(OwnScores(scores(), ()), "RK", "dsc") == "no case scored"


def test_a_table_holds_both_numbers_and_says_what_is_lacking() -> None:
    table = paper_tables()[2]
    own = {"3d_supervised": OwnScores(scores(), ("a", "b", "c")), "3d_cps": OwnScores(lacking="not run")}
    page = filled_markdown(table, own)
    liver = next(line for line in page.splitlines() if line.startswith("| liver"))
    assert [cell.strip() for cell in liver.split("|")[1:-1]] == [
        "liver", "0.9790", "0.0100", "0.9754", "not run", "0.9736", "0.0200", "0.9707", "not run",
    ]  # fmt: skip
    assert "Here: mean over 3 cases; the paper's are over 20." in page
    rows = list(csv.DictReader(io.StringIO(filled_csv(table, own))))
    assert len(rows) == 14 * 4
    first, second = rows[:2]
    assert (first["paper"], first["here"], first["difference"], first["cases"]) == ("0.9790", "0.0100", "-0.9690", "3")
    assert (second["here"], second["lacking"]) == ("", "not run")
