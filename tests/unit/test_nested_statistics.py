"""Differences over scans and trainings: against SciPy where both can, by coverage where nothing else can."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from flarecps.evaluation.nested import NestedMean, judge, nested_mean, spread


def drawn(
    generator: np.random.Generator, folds: int, scans: int, seeds: int, scan: float, training: float, rest: float
) -> list[np.ndarray]:
    return [
        generator.normal(0, scan, (scans, 1)) + generator.normal(0, training, (1, seeds))
        + generator.normal(0, rest, (scans, seeds))
        for _ in range(folds)
    ]  # fmt: skip


def test_one_seed_is_students_t_over_the_folds() -> None:
    folds = drawn(np.random.default_rng(0), 5, 6, 1, 0.01, 0.2, 0.01)  # trainings differ far more than scans
    found = nested_mean(folds)
    assert found is not None
    assert found.interval is not None
    expected = stats.ttest_1samp([fold.mean() for fold in folds], 0.0)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.interval.low, found.interval.high) == pytest.approx(expected.confidence_interval())


def test_scans_that_differ_more_than_their_folds_say_widen_it() -> None:
    """Fold means that happen to be alike promise nothing about scans that are not."""
    folds = [np.array([[-1.0], [1.0]]), np.array([[-1.0], [1.001]])]
    found = nested_mean(folds)
    assert found is not None
    assert found.interval is not None
    assert found.interval.high > 1


def test_a_fixed_test_set_by_hand() -> None:
    """Two scans × two seeds: mean squares 8 (scans), 2 (trainings), 0 (rest); the mean's variance is 10 / 4."""
    found = nested_mean([np.array([[3.0, 1.0], [-1.0, -3.0]])])
    assert found is not None
    assert found.mean == 0
    assert found.interval is not None
    freedom = (16 + 4) ** 2 / (16**2 + 4**2)
    assert found.interval.high == pytest.approx(stats.t.ppf(0.975, freedom) * (20 / 4) ** 0.5)


@pytest.mark.parametrize(("folds", "seeds"), [(1, 3), (5, 1), (3, 2)])
def test_intervals_cover_what_they_say(folds: int, seeds: int) -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(500):
        found = nested_mean(drawn(generator, folds, 30 // folds, seeds, 0.04, 0.01, 0.03))
        assert found is not None
        assert found.interval is not None
        covered += found.interval.low <= 0 <= found.interval.high
    assert covered >= 0.93 * 500


def test_what_one_training_cannot_tell() -> None:
    one = nested_mean([np.array([[0.1], [0.2]])])
    assert one == NestedMean(pytest.approx(0.15), None, None, 2, 1, 1)
    assert judge([[np.array([[0.1], [0.2]])]])[0].verdict == "not known"  # type: ignore[union-attr]
    assert nested_mean([np.full((2, 2), np.nan)]) is None
    equal = nested_mean([np.zeros((3, 2)), np.zeros((3, 2))])
    assert equal is not None
    assert equal.p == 1.0


def test_scans_without_a_number_are_left_out() -> None:
    folds = drawn(np.random.default_rng(2), 2, 5, 2, 0.1, 0.1, 0.1)
    holed = [np.vstack([fold, [[np.nan, 1.0]]]) for fold in folds]
    assert nested_mean(holed) == nested_mean(folds)


def test_spread_is_found_again() -> None:
    found = spread(drawn(np.random.default_rng(3), 40, 40, 10, 0.04, 0.01, 0.03))
    assert (found.scan, found.training, found.rest) == pytest.approx((0.04, 0.01, 0.03), rel=0.1)


def test_the_study_keeps_its_level() -> None:
    """The committed simulation of 1000 studies, again with fewer: hardly ever "better" where nothing is."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "study" / "simulate.py"
    spec = importlib.util.spec_from_file_location("simulate_study", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for own in (False, True):
        _, wrongly = module.simulate((25, 5, 1), 0.0, 100, own)
        assert wrongly <= 0.05
    first, _ = module.simulate((50, 5, 3), 0.05, 40, False)
    assert first > 0.9
