"""The oracles against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from flarecps.evaluation.oracles import atlas_oracle, interval_oracle


def dsc(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


@pytest.mark.parametrize("seed", range(5))
def test_best_interval_is_the_best_of_all(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    image = (generator.integers(-6, 7, labels.shape) + 2 * labels).astype(np.int16)
    found = interval_oracle(image, labels, (1, 2))
    levels = range(int(image.min()), int(image.max()) + 1)
    for label in (1, 2):
        every = [
            dsc((image >= low) & (image <= high), labels == label)
            for low, high in itertools.combinations_with_replacement(levels, 2)
        ]
        assert found[label] == pytest.approx(max(every))


def test_interval_that_separates_scores_one() -> None:
    labels = np.array([[[0, 1, 1, 0]]], np.uint8)
    assert interval_oracle(np.array([[[-1000, 40, 60, 90]]], np.int16), labels, (1,)) == {1: 1.0}


def test_absent_organ_is_nan() -> None:
    labels = np.zeros((2, 2, 2), np.uint8)
    assert np.isnan(interval_oracle(labels.astype(np.int16), labels, (4,))[4])
    assert np.isnan(atlas_oracle([labels], labels, (4,))[4])


def test_atlas_of_itself_is_perfect() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.uint8)
    assert atlas_oracle([labels], labels, (1, 2, 3)) == {1: 1.0, 2: 1.0, 3: 1.0}


def test_atlas_takes_the_best_number_of_votes() -> None:
    reference = np.zeros((1, 1, 8), np.uint8)
    reference[..., 2:6] = 1
    maps = []
    for shift in (-1, 0, 1):
        moved = np.zeros_like(reference)
        moved[..., 2 + shift : 6 + shift] = 1
        maps.append(moved)
    votes = np.sum([one == 1 for one in maps], axis=0)
    expected = max(dsc(votes >= least, reference == 1) for least in (1, 2, 3))
    assert atlas_oracle(maps, reference, (1,))[1] == pytest.approx(expected)
    assert expected == 1.0  # a majority finds it here


def test_atlas_stretches_to_the_field_of_view() -> None:
    fine = np.zeros((4, 8, 8), np.uint8)
    fine[1:3, 2:6, 4:8] = 1
    coarse = fine[::2, ::2, ::2].repeat(1, axis=0)
    assert atlas_oracle([coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)], fine, (1,))[1] == pytest.approx(
        atlas_oracle([coarse], fine, (1,))[1]
    )


def test_without_training_cases_the_atlas_finds_nothing() -> None:
    assert atlas_oracle([], np.ones((2, 2, 2), np.uint8), (1,)) == {1: 0.0}
