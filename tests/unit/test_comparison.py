"""Comparison of hand-made tables: every number below is worked out in the comments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from flarecps.errors import DatasetError
from flarecps.evaluation.comparison import OVERALL, compare_methods, remarks
from flarecps.evaluation.score_table import MethodScores, Scores
from flarecps.evaluation.statistics import Counts, wilcoxon_p

NAN = float("nan")
ORGANS = ("Liver", "Spleen")


def table(rows: Sequence[Sequence[float]], origin: str = "a.csv", first: int = 0, **more: object) -> Scores:
    """A score table of two organs whose NSD is its DSC; cases c0, c1 … from ``first``."""
    values = np.array(rows, float)
    cases = tuple(f"c{number}" for number in range(first, first + len(rows)))
    return Scores(cases, ORGANS, {"dsc": values, "nsd": values}, origin, **more)  # type: ignore[arg-type]


A = [[0.90, 0.50], [0.80, 0.60], [0.70, 0.70]]
B = [[0.95, 0.50], [0.82, 0.50], [0.90, 0.90]]


def test_means_and_spreads_by_hand() -> None:
    """Liver of A: mean 0.8, SD √((0.1² + 0 + 0.1²)/2) = 0.1. Case means 0.7 0.7 0.7: overall 0.7 with SD 0."""
    found = compare_methods([MethodScores("A", (table(A),)), MethodScores("B", (table(B),))])
    liver, overall = (found.means["dsc"]["A"][organ] for organ in ("Liver", OVERALL))
    assert (liver.mean, liver.sd, liver.seeds_sd, liver.n) == (pytest.approx(0.8), pytest.approx(0.1), None, 3)
    assert (overall.mean, overall.sd) == (pytest.approx(0.7), pytest.approx(0.0, abs=1e-12))


def test_differences_by_hand() -> None:
    """B - A: Liver .05 .02 .20: mean .09, three gains: p = 2/8; Spleen 0 -.1 .2: mean .1/3, ranks 1 (-) and 2 (+):
    subsets of {1, 2} with sum ≤ 1: {} and {1}: p = 2 · 2/4 = 1. Holm: .25 · 2 = .5, then 1.
    Case means .025 -.04 .2: mean .185/3; sizes rank 1 (+) 2 (-) 3 (+), W- = 2: {} {1} {2} of 8: p = 6/8.
    """
    found = compare_methods([MethodScores("A", (table(A),)), MethodScores("B", (table(B),))]).differences["nsd"]["B"]
    liver, spleen, overall = found["Liver"], found["Spleen"], found[OVERALL]
    assert (liver.n, liver.mean, liver.p, liver.p_holm) == (3, pytest.approx(0.09), 0.25, 0.5)
    assert (spleen.mean, spleen.p, spleen.p_holm) == (pytest.approx(0.1 / 3), 1.0, 1.0)
    assert (liver.counts, spleen.counts) == (Counts(3, 0, 0), Counts(1, 1, 1))
    assert (overall.mean, overall.p, overall.p_holm) == (pytest.approx(0.185 / 3), 0.75, None)
    assert overall.counts == Counts(2, 0, 1)
    assert liver.interval is not None
    assert liver.interval.low < 0.09 < liver.interval.high


def test_seeds_are_averaged_per_case_and_spread_apart() -> None:
    """Liver, seeds .9 .8 and .7 .8: per case .8 .8, so SD over cases 0; seed means .85 and .75: SD .1/√2."""
    one, two = table([[0.9, 0.5], [0.8, 0.5]]), table([[0.7, 0.5], [0.8, 0.5]], "b.csv")
    cell = compare_methods([MethodScores("A", (one, two))]).means["dsc"]["A"]["Liver"]
    assert (cell.mean, cell.sd, cell.n) == (pytest.approx(0.8), pytest.approx(0.0, abs=1e-12), 2)
    assert cell.seeds_sd == pytest.approx(0.1 / np.sqrt(2))


def test_a_case_without_number_is_left_out_of_its_organ_only() -> None:
    """Spleen of c1 is empty in both: A's mean over c0 and c2 is .6; B gave it 0 (a false find): its mean is over all.

    Pairs: spleen c0 and c2 (0, .2); overall c1 has only the liver: .02.
    """
    a = [[0.90, 0.50], [0.80, NAN], [0.70, 0.70]]
    b = [[0.95, 0.50], [0.82, 0.0], [0.90, 0.90]]
    found = compare_methods([MethodScores("A", (table(a),)), MethodScores("B", (table(b),))])
    assert (found.means["dsc"]["A"]["Spleen"].mean, found.means["dsc"]["A"]["Spleen"].n) == (pytest.approx(0.6), 2)
    assert found.means["dsc"]["B"]["Spleen"].n == 3
    spleen, overall = found.differences["dsc"]["B"]["Spleen"], found.differences["dsc"]["B"][OVERALL]
    assert (spleen.n, spleen.mean) == (2, pytest.approx(0.1))
    assert (overall.n, overall.mean) == (3, pytest.approx((0.025 + 0.02 + 0.2) / 3))
    said = " ".join(remarks(found))
    assert "A: 2 cells without a number" in said  # one of DSC, one of NSD
    assert "B:" not in said


def test_missing_cases_are_said_and_differences_are_over_the_common_ones() -> None:
    """A has c0 c1 c2, B c1 c2 c3, and one seed of B lacks c2: paired over c1 alone."""
    b = MethodScores("B", (table(B, "b1.csv", first=1), table(B[:1], "b2.csv", first=1)))
    found = compare_methods([MethodScores("A", (table(A),)), b])
    assert found.means["dsc"]["B"]["Liver"].n == 3
    liver = found.differences["dsc"]["B"]["Liver"]
    assert (liver.n, liver.mean, liver.interval, liver.p) == (1, pytest.approx(0.15), None, 1.0)
    said = remarks(found)
    assert any("1 case not in a.csv (A): c3" in one for one in said)
    assert any("3 cases not in b2.csv (B): c0, c2, c3" in one for one in said)
    assert any("those in common with A (B 1 of 4)" in one for one in said)


def test_organs_of_one_method_only() -> None:
    """Spleen is the baseline's alone: no pairs there, and Holm's family is the liver alone."""
    only = Scores(("c0", "c1", "c2"), ("Liver",), {m: np.array(B)[:, :1] for m in ("dsc", "nsd")})
    found = compare_methods([MethodScores("A", (table(A),)), MethodScores("B", (only,))])
    assert (found.means["dsc"]["B"]["Spleen"].mean, found.means["dsc"]["B"]["Spleen"].n) == (None, 0)
    spleen, liver = found.differences["dsc"]["B"]["Spleen"], found.differences["dsc"]["B"]["Liver"]
    assert (spleen.n, spleen.mean, spleen.p, spleen.p_holm) == (0, None, None, None)
    assert (liver.p, liver.p_holm) == (0.25, 0.25)
    assert found.differences["dsc"]["B"][OVERALL].mean == pytest.approx(0.09)
    assert any("B lacks Spleen" in one for one in remarks(found))


def test_rules_that_differ_are_said() -> None:
    a = table(A, "a.csv", protocol="official", tolerances_mm={"liver": 5.0})
    b = table(B, "b.csv", protocol="strict", tolerances_mm={"liver": 3.0})
    said = remarks(compare_methods([MethodScores("A", (a,)), MethodScores("B", (b,))]))
    assert "different protocols" in said[0]
    assert any("other tolerances than in a.csv: b.csv" in one for one in said)


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(DatasetError, match="no case in common"):
        compare_methods([MethodScores("A", (table(A),)), MethodScores("B", (table(B, first=9),))])
    other = Scores(("c0",), ("Heart",), {m: np.array([[0.5]]) for m in ("dsc", "nsd")})
    with pytest.raises(DatasetError, match="no organ in common"):
        compare_methods([MethodScores("A", (table(A),)), MethodScores("B", (other,))])


def test_a_table_without_nsd_is_compared_by_dsc_alone() -> None:
    bare = Scores(("c0", "c1"), ("Liver",), {"dsc": np.array([[0.5], [0.7]]), "nsd": np.full((2, 1), NAN)})
    found = compare_methods([MethodScores("A", (bare,)), MethodScores("B", (bare,))])
    assert found.measures == ("dsc",)
    assert found.differences["dsc"]["B"]["Liver"].p == wilcoxon_p([0.0, 0.0]) == 1.0
