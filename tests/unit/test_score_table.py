"""Scores: read by name, averaged over cases, then organs; seeds together, methods paired; as written, so read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from flarecps.anatomy import FLARE22_ORGANS
from flarecps.errors import DatasetError
from flarecps.evaluation.flare22 import OrganScore
from flarecps.evaluation.score_table import (
    CaseScore,
    MethodScores,
    ScoredCases,
    Scores,
    Summary,
    mean_of,
    paired_change,
    read_scores,
    summarise,
    write_scores,
)

NAN = float("nan")
CSV = (
    "Name,Liver_DSC,RK_DSC,Liver_NSD,RK_NSD\n"
    "a.nii.gz,0.9,0.5,0.8,0.4\n"
    "b.nii.gz,0.7,,0.6,\n"
)  # fmt: skip


def test_scores_are_read_by_column_name(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(CSV)
    scores = read_scores(tmp_path / "s.csv")
    assert scores.cases == ("a", "b")
    assert scores.organs == ("Liver", "RK")
    assert scores.at("a", "RK") == 0.5
    assert scores.at("a", "RK", "nsd") == 0.4
    assert math.isnan(scores.at("b", "RK"))
    assert math.isnan(scores.at("c", "RK"))
    assert math.isnan(scores.at("a", "Spleen"))


def test_means_are_over_cases_then_organs(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(CSV)
    scores = read_scores(tmp_path / "s.csv")
    assert scores.mean() == pytest.approx((0.8 + 0.5) / 2)  # not the mean of all three numbers, 0.7
    assert scores.of("a") == pytest.approx(0.7)
    assert scores.of("b") == pytest.approx(0.7)
    assert scores.of("a", "nsd") == pytest.approx(0.6)
    assert scores.summary() == Summary(pytest.approx(0.65), pytest.approx(0.0, abs=1e-12), 2)
    assert scores.organ("RK").tolist() == [0.5]
    assert scores.organ("Spleen").size == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a table of scores"),
        ("Name,Liver\na,0.5\n", "not a table of scores"),
        ("Case,Liver_DSC,Liver_NSD\na,0.5,0.5\n", "not a table of scores"),
        ("Name,Liver_DSC,Liver_NSD\na,good,0.5\n", "not a number"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_scores(tmp_path / "s.csv")


def test_summaries_are_of_finite_values() -> None:
    assert summarise([1.0, math.nan, None, 3.0]) == Summary(2.0, pytest.approx(math.sqrt(2)), 2)
    assert summarise([1.0]) == Summary(1.0, None, 1)
    assert summarise([math.nan]) == summarise([]) == Summary(None, None, 0)
    assert math.isnan(mean_of([math.nan, None]))


def test_cases_and_organs_are_selected_by_name() -> None:
    scores = Scores(("a", "b"), ("Liver", "RK"), {"dsc": np.array([[1.0, 2.0], [3.0, 4.0]])}, "a.csv", "strict")
    found = scores.select(("b", "c", "a"), ("RK", "Spleen", "Liver"))
    np.testing.assert_array_equal(found.values["dsc"], [[4, NAN, 3], [NAN] * 3, [2, NAN, 1]])
    assert (found.cases, found.organs) == (("b", "c", "a"), ("RK", "Spleen", "Liver"))
    assert (found.origin, found.protocol) == ("a.csv", "strict")


def test_a_change_is_over_what_both_methods_have() -> None:
    """b alone is in every table. Its liver: .6 - (.4 + .6)/2; of its kidney one method has no number."""

    def one(cases: tuple[str, ...], rows: list[list[float]], organs: tuple[str, ...] = ("Liver", "RK")) -> Scores:
        return Scores(cases, organs, {"dsc": np.array(rows), "nsd": np.array(rows) / 2})

    base = MethodScores("base", (one(("a", "b"), [[0.1, 0.1], [0.4, 0.3]]), one(("b",), [[0.6, 0.5]])))
    change = paired_change(base, MethodScores("new", (one(("c", "b", "a"), [[1, 1], [0.6, NAN], [1, 1]]),)))
    assert change.cases == ("b",)
    np.testing.assert_allclose(change.values["dsc"], [[0.1, NAN]])
    np.testing.assert_allclose(change.case_means("nsd"), [0.05])


def test_scored_cases_are_the_table_that_is_written(tmp_path: Path) -> None:
    """`score` shows what `compare` and `report` later read from its CSV: no number stays no number."""
    organs = FLARE22_ORGANS[:2]
    cases = {
        name: CaseScore(f"{name}.nii.gz", {one.name: score for one, score in zip(organs, scores, strict=True)})
        for name, scores in {
            "a": (OrganScore(0.9, 0.8, hd95_mm=2.0), OrganScore(None, None)),
            "b": (OrganScore(0.5, 0.25), OrganScore(1 / 3, 0.0)),
        }.items()
    }
    scored = ScoredCases("strict", organs, cases, {}, ())
    write_scores(scored, tmp_path)
    read = read_scores(tmp_path / "scores.csv")
    assert (read.cases, read.organs, read.protocol) == (scored.scores.cases, scored.scores.organs, "strict")
    assert read.tolerances_mm == scored.scores.tolerances_mm == {one.name: one.tolerance_mm for one in organs}
    for measure in ("dsc", "nsd"):
        np.testing.assert_allclose(read.values[measure], scored.scores.values[measure], atol=1e-6)
    np.testing.assert_array_equal(scored.scores.values["hd95_mm"], [[2.0, NAN], [NAN, NAN]])
    means = json.loads((tmp_path / "scores.json").read_text())["mean"]
    assert means["dsc"] == {"mean": pytest.approx((0.7 + 1 / 3) / 2), "sd": pytest.approx(0.34176, abs=1e-5), "n": 2}
    assert means["hd95_mm"] == {"mean": 2.0, "sd": None, "n": 1}
