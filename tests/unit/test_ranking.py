"""FLARE's ranking against ranks worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from flarecps.evaluation.ranking import rank_methods


def test_three_methods_two_cases_by_hand() -> None:
    """Methods A B C; ranks per case, best 1.

    DSC   case 1: .9 .8 .7 → 1 2 3      case 2: .9 .9 .5 → 1.5 1.5 3      mean 1.25 1.75 3
    NSD   case 1: .5 .6 .7 → 3 2 1      case 2: .5 .6 .7 → 3 2 1          mean 3    2    1
    Time  case 1: 10 20 5  → 2 3 1      case 2: 10 10 10 → 2 2 2          mean 2    2.5  1.5
    GPU   case 1: 0 0 9    → 1.5 1.5 3  case 2: 1 2 3    → 1 2 3          mean 1.25 1.75 3
    CPU   case 1: 7 6 5    → 3 2 1      case 2: 7 6 5    → 3 2 1          mean 3    2    1
    Score A (1.25 + 3 + 2 + 1.25/2 + 3/2) / 4 = 2.09375; B (1.75 + 2 + 2.5 + 0.875 + 1) / 4 = 2.03125;
    C (3 + 1 + 1.5 + 1.5 + 0.5) / 4 = 1.875.
    """
    values = {
        "DSC": np.array([[0.9, 0.9], [0.8, 0.9], [0.7, 0.5]]),
        "NSD": np.array([[0.5, 0.5], [0.6, 0.6], [0.7, 0.7]]),
        "Time": np.array([[10.0, 10], [20, 10], [5, 10]]),
        "AUC_GPU_Time": np.array([[0.0, 1], [0, 2], [9, 3]]),
        "AUC_CPU_Time": np.array([[7.0, 7], [6, 6], [5, 5]]),
    }
    found = rank_methods(["A", "B", "C"], values)
    assert [(one.method, one.place) for one in found] == [("C", 1), ("B", 2), ("A", 3)]
    assert [one.score for one in found] == pytest.approx([1.875, 2.03125, 2.09375])
    by_name = {one.method: one.ranks for one in found}
    assert by_name["A"] == {"DSC": 1.25, "NSD": 3, "Time": 2, "AUC_GPU_Time": 1.25, "AUC_CPU_Time": 3}


def test_equal_scores_share_the_better_place() -> None:
    same = np.array([[1.0], [1.0], [2.0]])
    worse = np.array([[0.5], [0.5], [0.4]])
    values = {"DSC": worse, "NSD": worse, "Time": same, "AUC_GPU_Time": same, "AUC_CPU_Time": same}
    assert [(one.method, one.place) for one in rank_methods(["A", "B", "C"], values)] == [("A", 1), ("B", 1), ("C", 3)]
