"""Voxel counts and DSC against plain counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flarecps.evaluation import overlap
from flarecps.evaluation.overlap import Overlap, dice_per_label, exchanged_labels, joint_histogram

SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)


def pairs() -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    def pair(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
        maps = hnp.arrays(np.uint8, shape, elements=st.integers(0, 3))
        return st.tuples(maps, maps)

    return SHAPES.flatmap(pair)


def test_counts_and_dsc_by_hand() -> None:
    prediction = np.array([[[1, 1, 2, 0], [2, 2, 0, 0]]], dtype=np.uint8)
    reference = np.array([[[1, 0, 2, 2], [2, 0, 0, 1]]], dtype=np.uint8)
    found = dice_per_label(prediction, reference, labels=(1, 2, 7))
    assert found[1] == Overlap(prediction=2, reference=2, shared=1)
    assert found[1].dsc == 0.5
    assert found[2] == Overlap(prediction=3, reference=3, shared=2)
    assert found[2].dsc == pytest.approx(2 / 3)
    assert found[7] == Overlap(0, 0, 0)
    assert math.isnan(found[7].dsc)


def test_one_empty_is_zero() -> None:
    assert Overlap(prediction=0, reference=9, shared=0).dsc == 0.0
    assert Overlap(prediction=9, reference=0, shared=0).dsc == 0.0


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_counts_equal_plain_counting_and_dsc_is_symmetric(maps: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, reference = maps
    forth, back = dice_per_label(prediction, reference, (1, 2, 3)), dice_per_label(reference, prediction, (1, 2, 3))
    for label in (1, 2, 3):
        a, b = prediction == label, reference == label
        assert forth[label] == Overlap(int(a.sum()), int(b.sum()), int((a & b).sum()))
        assert forth[label].dsc == back[label].dsc or (math.isnan(forth[label].dsc) and math.isnan(back[label].dsc))


def test_large_maps_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_SLAB_VOXELS", 7)
    rng = np.random.default_rng(0)
    prediction, reference = rng.integers(0, 256, (2, 3, 5, 9), dtype=np.uint8)
    found = joint_histogram(prediction, reference)
    assert found.sum() == prediction.size
    for p, r in ((0, 0), (int(prediction[0, 0, 0]), int(reference[0, 0, 0])), (255, 3)):
        assert found[p, r] == np.sum((prediction == p) & (reference == r))


def test_transposed_views_are_paired_voxel_by_voxel() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.trace(joint_histogram(array.T, np.ascontiguousarray(array.T))) == 24


def test_unfitting_arrays_are_refused() -> None:
    one = np.zeros((2, 2, 2), np.uint8)
    with pytest.raises(ValueError, match="one shape"):
        joint_histogram(one, one[:1])
    with pytest.raises(ValueError, match="uint8"):
        joint_histogram(one, one.astype(np.int16))


def test_exchanged_labels() -> None:
    """Labels 1 and 2 trade places; 3 is only half found; 4 misses its own and meets nothing; 5 is nowhere."""
    reference = np.repeat(np.array([1, 1, 2, 2, 3, 3, 4, 0, 0], np.uint8), 20)[None, None]
    prediction = np.repeat(np.array([2, 2, 1, 1, 3, 0, 0, 4, 0], np.uint8), 20)[None, None]
    found = exchanged_labels(joint_histogram(prediction, reference), (1, 2, 3, 4, 5))
    assert found == [(1, 2, 1.0), (2, 1, 1.0)]
    assert exchanged_labels(joint_histogram(reference, reference), (1, 2, 3, 4, 5)) == []
