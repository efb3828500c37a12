"""The two small things that all rooms share: Dice of counts, and how a duration is written."""

from __future__ import annotations

import math
from datetime import timedelta
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.segmentation import dice_score

from flarecps.dice import dice_coefficient
from flarecps.durations import clock, duration_in_words

COUNTS = st.tuples(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**40))


@given(COUNTS)
def test_whole_numbers_are_divided_exactly(counts: tuple[int, int, int]) -> None:
    """Against exact fractions: the nearest float64."""
    shared, more, other = counts
    total = 2 * shared + more + other
    found = dice_coefficient(shared, total)
    assert math.isnan(found) if not total else found == float(Fraction(2 * shared, total))


def test_masks_have_the_dice_of_torchmetrics() -> None:
    one, other = torch.randint(0, 2, (2, 1, 1, 6, 7, 8), generator=torch.Generator().manual_seed(1))
    expected = dice_score(one, other, num_classes=1, include_background=True, input_format="one-hot")
    assert dice_coefficient((one & other).sum(), one.sum() + other.sum()) == pytest.approx(float(expected))


@pytest.mark.parametrize("library", [np.array, torch.tensor])
def test_arrays_and_tensors_keep_their_kind(library: type) -> None:
    found = dice_coefficient(library([2.0, 0.0, 0.0]), library([8.0, 3.0, 0.0]), smooth=1e-5)
    assert type(found) is type(library([1.0]))
    assert found.tolist() == pytest.approx([(4 + 1e-5) / (8 + 1e-5), 1e-5 / (3 + 1e-5), 1.0])
    assert torch.isnan(dice_coefficient(torch.zeros(2), torch.zeros(2))).all()


@given(st.integers(0, 10**6))
def test_the_clock_is_that_of_timedelta(seconds: int) -> None:
    expected = str(timedelta(seconds=seconds))
    if " day" in expected:  # hours go on counting
        hours, rest = divmod(seconds, 3600)
        expected = f"{hours}:{str(timedelta(seconds=rest)).partition(':')[2]}"
    assert ("0:0" + clock(seconds))[-7:] == expected if seconds < 600 else expected.endswith(clock(seconds))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "–"), (29.4, "29 s"), (89 * 60, "89 min"), (90 * 60, "1 h 30 min"), (7500, "2 h 05 min")],
)
def test_durations_in_words(seconds: float | None, words: str) -> None:
    assert duration_in_words(seconds) == words
