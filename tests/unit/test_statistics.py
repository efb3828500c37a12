"""Paired statistics against numbers worked out by hand, against enumeration of every outcome, and against SciPy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import scipy.stats

from flarecps.evaluation.statistics import Counts, bootstrap_interval, count_wins, holm, wilcoxon_p


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        # Five gains: only + + + + + and its mirror are as extreme: 2 / 2⁵.
        ([0.01, 0.02, 0.03, 0.04, 0.05], 2 / 32),
        # Ranks 1 2 3 4 5, rank 1 negative: W- = 1. Sums of 0 or 1 are made in 2 ways ({}, {1}): 2 · 2 / 32.
        ([-0.01, 0.02, 0.03, 0.04, 0.05], 4 / 32),
        # W- = 3 (rank 3 negative): subsets with sum ≤ 3: {} 1 2 3 {1,2} = 5 ways: 2 · 5 / 32.
        ([0.01, 0.02, -0.03, 0.04, 0.05], 10 / 32),
        # The zero is left out; four gains remain: 2 / 2⁴.
        ([0.0, 0.01, 0.02, 0.03, 0.04], 2 / 16),
        # Ties: sizes 1 1 2 have ranks 1.5 1.5 3. Negative: one 1.5. Subsets of {1.5, 1.5, 3} with sum ≤ 1.5: {} and
        # two of one: 3 ways of 8: 2 · 3 / 8.
        ([0.1, -0.1, 0.2], 6 / 8),
        # W+ = W-: everything is at least as extreme.
        ([0.1, -0.1], 1.0),
        ([0.0, 0.0, 0.0], 1.0),
        ([0.3], 1.0),
    ],
)
def test_wilcoxon_by_hand(differences: list[float], expected: float) -> None:
    assert wilcoxon_p(differences) == pytest.approx(expected, abs=1e-15)


def test_wilcoxon_of_nothing() -> None:
    assert wilcoxon_p([]) is None


def test_wilcoxon_takes_the_noise_of_subtraction_for_ties() -> None:
    """0.3 - 0.2, 0.4 - 0.3 and 0.2 - 0.1 differ in the last bits: untied, their ranks would be 1 2 3."""
    noisy = [0.3 - 0.2, 0.4 - 0.3, -(0.2 - 0.1), 0.5]
    assert len({abs(one) for one in noisy}) == 4
    assert wilcoxon_p(noisy) == wilcoxon_p([0.1, 0.1, -0.1, 0.5])


@pytest.mark.parametrize("seed", range(5))
def test_wilcoxon_with_ties_is_the_share_of_all_signs(seed: int) -> None:
    """Every one of the 2⁹ ways to sign the ranks is written down and counted."""
    differences = np.random.default_rng(seed).integers(-4, 6, 9) / 10
    signed = differences[differences != 0]
    ranks = scipy.stats.rankdata(np.abs(signed))
    middle = ranks.sum() / 2
    seen = abs(ranks[signed > 0].sum() - middle)
    outcomes = [abs(np.dot(ranks, signs) - middle) for signs in product([0, 1], repeat=ranks.size)]
    expected = np.mean(np.array(outcomes) >= seen - 1e-9)
    assert wilcoxon_p(differences) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [6, 20, 50])
def test_wilcoxon_is_scipys_exact_one(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.2, 1, n)
    assert wilcoxon_p(differences) == pytest.approx(scipy.stats.wilcoxon(differences, method="exact").pvalue, rel=1e-10)


def test_wilcoxon_of_many_pairs_is_the_normal_approximation() -> None:
    differences = np.random.default_rng(0).normal(0.1, 1, 400).round(1)  # with ties and zeros
    expected = scipy.stats.wilcoxon(differences, zero_method="wilcox", correction=False, method="approx").pvalue
    assert wilcoxon_p(differences) == pytest.approx(expected, rel=1e-9)


def test_holm_by_hand() -> None:
    """Sorted 0.005 0.01 0.03 0.04 × 4 3 2 1 = 0.02 0.03 0.06 0.04; the last may not fall below 0.06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_caps_at_one_and_leaves_out_what_is_none() -> None:
    assert holm([0.6, None, 0.7]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_bootstrap_against_every_resample() -> None:
    """Of 5 cases all 5⁵ resamples can be written down: BCa computed from them exactly is what sampling approaches."""
    values = np.array([-0.02, 0.0, 0.01, 0.05, 0.11])
    means = np.array([values[list(drawn)].mean() for drawn in product(range(5), repeat=5)])
    below = (np.mean(means < values.mean() - 1e-12) + np.mean(means <= values.mean() + 1e-12)) / 2
    bias = scipy.stats.norm.ppf(below)
    left_out = np.array([np.delete(values, one).mean() for one in range(5)])
    away = left_out.mean() - left_out
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    ends = []
    for quantile in (0.025, 0.975):
        towards = bias + scipy.stats.norm.ppf(quantile)
        ends.append(np.quantile(means, scipy.stats.norm.cdf(bias + towards / (1 - acceleration * towards))))
    found = bootstrap_interval(values, resamples=200_000, seed=3)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(ends, abs=0.0011)  # the means lie 0.002 apart


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_bootstrap_is_scipys_bca(confidence: float) -> None:
    values = np.random.default_rng(4).exponential(0.03, 40) - 0.02
    found = bootstrap_interval(values, resamples=40_000, confidence=confidence, seed=1)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, confidence_level=confidence, method="BCa", batch=4000,
        random_state=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert found is not None
    width = theirs.high - theirs.low
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02 * width)


def test_bootstrap_is_repeatable_and_covers_edges() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_interval(values, seed=7) == bootstrap_interval(values, seed=7)
    assert bootstrap_interval(values, seed=7) != bootstrap_interval(values, seed=8)
    assert bootstrap_interval([0.5]) is None
    equal = bootstrap_interval([0.25, 0.25, 0.25])
    assert equal is not None
    assert (equal.low, equal.high) == (0.25, 0.25)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    """300 samples of 25 skewed differences with mean 0: 95 % intervals miss it in about 5 to 9 % (skewness costs)."""
    generator = np.random.default_rng(0)
    missed = 0
    for trial in range(300):
        found = bootstrap_interval(generator.exponential(1.0, 25) - 1.0, resamples=1000, seed=trial)
        assert found is not None
        missed += not found.low <= 0.0 <= found.high
    assert 0.02 < missed / 300 < 0.12


def test_wins_by_hand() -> None:
    assert count_wins([0.1, 0.3 - 0.1 - 0.2, -0.2, 0.4]) == Counts(wins=2, ties=1, losses=1)
    assert count_wins([]) == Counts(0, 0, 0)
