"""Volumes predicted against volumes of the reference: pairs, bias and limits by hand, what the chart shows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flarecps.anatomy import FLARE22_ORGANS
from flarecps.evaluation.flare22 import OrganScore
from flarecps.evaluation.score_table import CaseScore, ScoredCases
from flarecps.reporting.score_charts import agreement_in_words, limits_of_agreement, volume_figure, volume_pairs

LIVER = FLARE22_ORGANS[0]


def table(*pairs: tuple[float, float]) -> ScoredCases:
    cases = {
        f"case_{number}": CaseScore(
            f"case_{number}.nii.gz", {LIVER.name: OrganScore(0.5, 0.5, reference_ml=one, prediction_ml=two)}
        )
        for number, (one, two) in enumerate(pairs)
    }
    return ScoredCases("official", (LIVER,), cases, {}, ())


def test_a_case_without_the_organ_is_no_pair() -> None:
    assert volume_pairs(table((10, 12), (0, 0), (0, 3), (5, 0)), LIVER.name).tolist() == [[10, 12], [0, 3], [5, 0]]


def test_bias_and_limits_by_hand() -> None:
    found = limits_of_agreement(np.array([[100.0, 110.0], [200.0, 190.0], [300.0, 330.0]]))  # differences 10, -10, 30
    assert found == pytest.approx((10, 10 - 1.96 * 20, 10 + 1.96 * 20))  # their SD is 20
    assert math.isnan(limits_of_agreement(np.array([[1.0, 2.0]]))[1])
    assert agreement_in_words(limits_of_agreement(np.empty((0, 2)))) == "no case"
    assert agreement_in_words(found) == "+10 ml (−29 to +49)"


def test_the_chart_has_equal_axes_the_line_and_every_case() -> None:
    figure = volume_figure([table((10, 12), (20, 18)), table((10, 0), (20, 40))], ["A", "B"])
    (axes,) = figure.axes
    line, first, second = axes.get_lines()
    assert line.get_xdata()[1] == line.get_ydata()[1] == axes.get_xlim()[1] == axes.get_ylim()[1]
    assert axes.get_xlim()[1] > 40
    assert np.column_stack(first.get_data()).tolist() == [[10, 12], [20, 18]]
    assert np.column_stack(second.get_data()).tolist() == [[10, 0], [20, 40]]
    assert figure.texts[0].get_text() == "liver, n = 2"
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts()] == ["A", "B"]
