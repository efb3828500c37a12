"""The report's tables of scores, by hand; and that they mark and round as a comparison does."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flarecps.evaluation.comparison import compare_methods
from flarecps.evaluation.score_table import MethodScores, Scores
from flarecps.metric_names import LOSS_TOTAL, learning_rate, supervised_loss
from flarecps.reporting.comparison import comparison_latex, comparison_markdown, differences_csv, means_csv
from flarecps.reporting.curves import Curve
from flarecps.reporting.html import hardest_first, pair_change, report_page, runs_table
from flarecps.reporting.run_folder import Run
from flarecps.reporting.tables import best_as_shown, clearly_best, scores_markdown


def scores_of(values: dict[str, list[float]], columns: tuple[str, ...] = ("Liver", "RK")) -> Scores:
    array = np.array(list(values.values()), float)
    return Scores(tuple(values), columns, {"dsc": array, "nsd": array / 2})


def test_the_best_of_a_row_is_marked() -> None:
    assert best_as_shown([0.8, 0.9, 0.90004]) == [False, True, True]  # equal as shown: a tie
    assert best_as_shown([0.9]) == [False]
    assert best_as_shown([0.9, 0.90004]) == [False, False]
    assert best_as_shown([0.9, math.nan, None]) == [False, False, False]
    assert best_as_shown([]) == []


def test_a_lead_that_may_be_chance_is_not_marked() -> None:
    """0.902 against 0.897 where cases differ by more than that, and the same lead in every case."""
    spread = np.array([0.06, -0.05, 0.04, -0.03, 0.05, -0.04, 0.0, 0.01])
    base = 0.897 + spread[::-1]
    for change, marked in ((0.005 + spread - spread.mean(), False), (np.full(8, 0.005), True)):
        methods = [
            MethodScores(name, (scores_of({str(case): [value] for case, value in enumerate(values)}, ("Liver",)),))
            for name, values in (("new", base + change), ("old", base))
        ]
        for organ in ("Liver", None):
            assert clearly_best(methods, "dsc", organ) == [marked, False]


def test_scans_without_an_organ_that_count_as_one_are_said() -> None:
    values = {str(case): [0.9, 1.0 if case < 2 else 0.0] for case in range(6)}
    scores = replace(scores_of(values, ("Liver", "Gallbladder")), protocol="official", empty={"Gallbladder": 2})
    page = report_page([Run("A", Path("A"), scores=scores)], [], [])
    assert "Counted as 1" in page
    assert "gallbladder 2 of 6 cases" in page
    assert "over 6 cases" in page
    assert 'gallbladder<span class="sd"> (2 empty)</span>' in page
    assert "Counted as 1" not in report_page([Run("A", Path("A"), scores=replace(scores, empty={}))], [], [])
    (line,) = (line for line in scores_markdown(scores).splitlines() if "gallbladder" in line)
    assert line.endswith("| 6 (2 empty) |")
    for one, marked in ((scores, True), (replace(scores, empty={}), False), (replace(scores, protocol=None), False)):
        found = compare_methods([MethodScores(name, (one,)) for name in "AB"], 100)
        for text in (comparison_markdown(found, []), comparison_latex(found)):
            assert ("Gallbladder (2 empty)" in text) == ("each counted as 1" in text) == marked
        assert "empty" not in means_csv(found) + differences_csv(found)


def test_an_axis_that_does_not_begin_at_0_is_said() -> None:
    """A Dice loss below 0 and one above; the learning rate's scale is logarithmic and says so itself."""
    for values, cut in (([-0.2, -0.7], True), ([0.9, 0.3], False)):
        curves = {name: Curve(np.array([1, 2]), np.array(values)) for name in (LOSS_TOTAL, supervised_loss(1))}
        curves[learning_rate(1)] = Curve(np.array([1, 2]), np.array([0.2, 0.1]))
        page = report_page([Run("A", Path("A"), metrics=curves)], [], [])
        assert page.count("The axis does not begin at 0.") == (2 if cut else 0)


def test_report_and_compare_show_and_mark_alike() -> None:
    """Three runs: a tie at four decimals that three would widen, one at the top, an organ without a score."""
    rows = {
        "A": {case: [0.81234, 0.5] for case in "abcdef"},
        "B": {case: [0.81231, 0.6 if case in "ace" else 0.6004] for case in "abcdef"},
        "C": {case: [0.81199, math.nan] for case in "abcdef"},
    }
    tables = {name: scores_of(values) for name, values in rows.items()}
    page = report_page([Run(name, Path(name), scores=scores) for name, scores in tables.items()], [], [])
    body = page[page.index("<tbody>") : page.index("</tfoot>")]
    reported = [
        [re.sub(r"<span.*?</span>", "", cell).replace("<b>", "**").replace("</b>", "**").strip() for cell in cells]
        for cells in (re.findall(r"<td>(.*?)</td>", row, re.S) for row in re.split("<tr>", body)[1:])
    ]
    methods = [MethodScores(name, (scores,)) for name, scores in tables.items()]
    text = comparison_markdown(compare_methods(methods, resamples=100), [])
    compared = [
        [cell.split("±")[0].strip() for cell in line.strip("|").split("|")[1:]]
        for line in text.split("## Differences")[0].splitlines()
        if line.startswith("| ") and not line.startswith("| organ")
    ]
    dsc, nsd = compared[:3], compared[3:]  # three methods: a table per measure
    assert [row[:6] for row in reported] == [[*one, *other] for one, other in zip(dsc, nsd, strict=True)]
    assert reported[0][:3] == ["**0.8123**", "**0.8123**", "0.8120"]
    assert reported[1][:3] == ["0.5000", "**0.6002**", "–"]


def test_runs_side_by_side_by_hand() -> None:
    first = Run("CPS", Path("x"), scores=scores_of({"a": [0.9, 0.5], "b": [0.8, 0.7], "c": [0.1, 0.1]}))
    second = Run("control", Path("y"), scores=scores_of({"a": [0.8, 0.5], "b": [0.9, 0.4]}))
    found = runs_table([first, Run("not scored", Path("z")), second], first.organs)
    assert found is not None
    assert found["runs"] == [(0, "CPS"), (2, "control")]
    liver, kidney = found["rows"]
    assert liver["organ"].name == "liver"
    assert [cell.mean for cell, _ in liver["dsc"]] == pytest.approx([0.6, 0.85])
    assert [cell.sd for cell, _ in liver["dsc"]] == pytest.approx(
        [np.std([0.9, 0.8, 0.1], ddof=1), np.std([0.8, 0.9], ddof=1)]
    )
    assert [best for _, best in liver["dsc"]] == [False, False], "two cases in common tell nothing"
    assert [cell.mean for cell, _ in kidney["nsd"]] == pytest.approx([1.3 / 6, 0.225])
    assert liver["change"] == pytest.approx(0.0)  # over the common cases a and b alone
    assert kidney["change"] == pytest.approx(0.15)
    assert found["mean"]["dsc"][0][0].mean == pytest.approx((0.6 + 1.3 / 3) / 2)
    assert found["mean"]["change"] == pytest.approx(0.075)
    assert not found["partial"]
    between = pair_change([first, second])
    assert between is not None
    assert (between["higher"], between["cases"]) == (2, 2)
    assert between["mean"] == pytest.approx((0.05 + 0.10) / 2)
    assert [name for name, _ in hardest_first([first, second])] == ["c", "a", "b"]
    assert pair_change([first]) is None
    assert pair_change([first, Run("z", Path("z"))]) is None
    assert runs_table([Run("z", Path("z"))], first.organs) is None


def test_organs_without_a_score_in_some_case_are_counted() -> None:
    run = Run("r", Path("x"), scores=scores_of({"a": [0.9, math.nan], "b": [0.8, 0.7]}))
    found = runs_table([run], run.organs)
    assert found is not None
    assert found["partial"]
    assert [row["counts"] for row in found["rows"]] == [[2], [1]]
