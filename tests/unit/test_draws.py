"""Draws: the same numbers for any number of ranks, the foreground quota, and where patches lie."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from flarecps.data.draws import Draw, DrawSequence, check_ranks, choose_case, choose_lower, is_forced_foreground
from flarecps.errors import ConfigError


def test_address_alone_decides_the_numbers():
    addresses = [
        Draw(seed, epoch, stream, index)
        for seed in (0, 1)
        for epoch in (0, 1)
        for stream in ("labelled", "unlabelled")
        for index in (0, 1, 250)
    ]
    np.random.seed(3)  # noqa: NPY002 - the global state must not matter
    first = [tuple(address.generator().random(3)) for address in addresses]
    np.random.seed(4)  # noqa: NPY002
    assert first == [tuple(address.generator().random(3)) for address in addresses]
    assert len(set(first)) == len(addresses)


@pytest.mark.parametrize(
    ("batch", "share", "forced"),
    [(2, 0.33, 1), (4, 0.33, 1), (8, 0.33, 3), (12, 0.33, 4), (4, 0.75, 3), (4, 0.0, 0), (4, 1.0, 4)],
)
def test_foreground_quota_belongs_to_the_last_of_a_global_batch(batch, share, forced):
    for number in range(3):
        flags = [is_forced_foreground(number * batch + place, batch, share) for place in range(batch)]
        assert flags == [False] * (batch - forced) + [True] * forced


@pytest.mark.parametrize("ranks", [2, 3, 6])
def test_ranks_together_draw_what_one_rank_draws(ranks):
    batch, iterations = 6, 2
    alone = DrawSequence(7, "labelled", batch, iterations)
    whole = list(islice(alone.starting_at(0, 0), batch * iterations * 2))
    assert [draw.index for draw in whole] == 2 * list(range(batch * iterations))
    assert [draw.epoch for draw in whole] == [0] * 12 + [1] * 12
    shares = [DrawSequence(7, "labelled", batch, iterations, rank, ranks) for rank in range(ranks)]
    assert [sequence.share for sequence in shares] == [batch // ranks] * ranks
    drawn = [list(islice(sequence.starting_at(0, 0), len(whole) // ranks)) for sequence in shares]
    for number in range(iterations * 2):
        one = set(whole[number * batch : (number + 1) * batch])
        parts = [share[number * batch // ranks : (number + 1) * batch // ranks] for share in drawn]
        assert set().union(*parts) == one
        assert sum(map(len, parts)) == batch


def test_sequence_can_start_anywhere():
    sequence = DrawSequence(7, "unlabelled", 4, 3, rank=1, ranks=2)
    whole = list(islice(sequence.starting_at(0, 0), 18))
    assert list(islice(sequence.starting_at(1, 2), 4)) == whole[10:14]


def test_processes_that_cannot_share_the_batch_are_told_how_many_can():
    check_ranks({"labelled": 4, "unlabelled": 8}, 4)
    with pytest.raises(ConfigError, match=r"labelled: 4, unlabelled: 6\).*3 processes.*1 or 2:"):
        check_ranks({"labelled": 4, "unlabelled": 6}, 3)


def test_cases_are_drawn_uniformly():
    generator = np.random.default_rng(0)
    counts = Counter(choose_case(generator, ["a", "b", "c", "d"]) for _ in range(8000))
    assert all(abs(count - 2000) < 150 for count in counts.values())  # 4 SD


def test_unforced_patches_lie_anywhere_within_the_scan():
    generator = np.random.default_rng(0)
    lowers = np.array([choose_lower(generator, (12, 9, 6), (8, 8, 6)) for _ in range(3000)])
    assert lowers.min(axis=0).tolist() == [0, 0, 0]
    assert lowers.max(axis=0).tolist() == [4, 1, 0]
    assert np.allclose(np.bincount(lowers[:, 0]) / 3000, 0.2, atol=0.03)


def test_scan_smaller_than_the_patch_lies_in_its_middle():
    generator = np.random.default_rng(0)
    assert choose_lower(generator, (4, 5, 30), (8, 8, 8))[:2] == (-2, -1)


def test_forced_patches_are_centred_on_a_voxel_of_a_uniformly_drawn_label():
    generator = np.random.default_rng(0)
    samples = {
        1: np.array([[10, 10, 10]] * 500),
        2: np.array([[20, 12, 14]], dtype=np.uint16),
        3: np.zeros((0, 3)),
        0: np.array([[5, 5, 5]]),
    }
    lowers = Counter(choose_lower(generator, (40, 40, 40), (8, 8, 8), samples) for _ in range(2000))
    assert set(lowers) == {(6, 6, 6), (16, 8, 10)}
    assert abs(lowers[6, 6, 6] - 1000) < 100  # by label, not by voxel


def test_forced_patches_start_within_the_scan_but_may_reach_beyond_it():
    generator = np.random.default_rng(0)
    samples = {1: np.array([[1, 39, 20]])}
    assert choose_lower(generator, (40, 40, 40), (8, 8, 8), samples) == (0, 35, 16)


def test_forced_without_labels_is_uniform():
    generator = np.random.default_rng(0)
    lowers = {choose_lower(generator, (10, 10, 10), (8, 8, 8), {}) for _ in range(300)}
    assert len(lowers) == 27


def test_two_dimensional_patch_takes_the_slice_of_the_drawn_voxel():
    generator = np.random.default_rng(0)
    assert choose_lower(generator, (30, 40, 40), (1, 16, 16), {1: np.array([[29, 20, 20]])}) == (29, 12, 12)
