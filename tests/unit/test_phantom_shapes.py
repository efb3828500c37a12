"""The phantom's shapes: signed distances against geometry worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from flarecps.datasets.phantom_shapes import (
    Shape,
    clipped,
    column,
    displaced,
    draw_waves,
    ellipsoid,
    grown,
    repeated,
    rotation,
    tube,
    union,
)


def at(*places: tuple[float, float, float]) -> np.ndarray:
    """Places (superior, anterior, right) in mm as points (3, n)."""
    return np.array(places, np.float32).T


def test_sphere_distance_is_exact() -> None:
    sphere = ellipsoid((10, 0, 0), (20, 20, 20))
    places = at((10, 0, 25), (30, 0, 0), (10, 12, 0), (10, 15, 20))
    assert sphere.distance_mm(places) == pytest.approx([5, 0, -8, 5], abs=1e-4)


def test_ellipsoid_is_zero_on_its_turned_surface() -> None:
    shape = ellipsoid((1, 2, 3), (30, 20, 10), (25, -40, 60))
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(3, 50))
    directions /= np.linalg.norm(directions, axis=0)
    surface = rotation((25, -40, 60)).T @ (directions * np.array([[30], [20], [10]])) + np.array([[1], [2], [3]])
    assert np.abs(shape.distance_mm(surface.astype(np.float32))).max() < 1e-3


def test_rotation_is_a_rotation() -> None:
    turn = rotation((10, 20, 30))
    assert turn @ turn.T == pytest.approx(np.eye(3))
    assert np.linalg.det(turn) == pytest.approx(1)
    assert rotation((90, 0, 0)) @ [1, 0, 0] == pytest.approx([1, 0, 0])  # about the superior axis


def test_straight_tube_is_a_capsule() -> None:
    shape = tube(((0, 0, 0), (40, 0, 0)), (5, 5))
    places = at((20, 8, 0), (20, 0, 1), (48, 0, 0), (44, 3, 0))
    assert shape.distance_mm(places) == pytest.approx([3, -4, 3, 0], abs=1e-4)


def test_tube_passes_through_its_places() -> None:
    places = ((0.0, 0.0, 0.0), (20.0, 10.0, 0.0), (30.0, 30.0, 15.0), (10.0, 50.0, 20.0))
    shape = tube(places, (4, 5, 6, 7))
    assert shape.distance_mm(at(*places)) == pytest.approx([-4, -5, -6, -7], abs=1e-4)


def test_tube_is_far_from_far_points() -> None:
    assert (tube(((0, 0, 0), (10, 0, 0)), (3, 3)).distance_mm(at((500, 0, 0), (490, 5, 5))) > 400).all()


def test_column_ends_at_floor_and_ceiling() -> None:
    shape = column((5, 0), (10, 20), floor_mm=-30, ceiling_mm=40)
    places = at((0, 5, 0), (0, 15, 0), (0, 5, 26), (44, 5, 0), (-32, 5, 0))
    assert shape.distance_mm(places)[1:] == pytest.approx([0, 6, 4, 2], abs=1e-4)
    assert shape.distance_mm(places)[0] < 0


def test_stacked_repeats_upwards() -> None:
    discs = repeated(column((0, 0), (30, 30)), period_mm=20, height_mm=12, start_mm=3)
    heights = np.array([3, 8.9, 9.1, 16.9, 17.1, 23, -17, 43])
    inside = discs.distance_mm(at(*((float(h), 0.0, 0.0) for h in heights))) < 0
    assert inside.tolist() == [True, True, False, False, True, True, True, True]


def test_carved_is_what_is_left() -> None:
    ball = ellipsoid((0, 0, 0), (20, 20, 20))
    core = ellipsoid((0, 0, 0), (5, 5, 5))
    left = clipped(ball, within=column((0, 0), (15, 15)), without=(core,), inset_mm=1, gap_mm=2)
    inside = left.distance_mm(at((0, 0, 0), (0, 0, 6.5), (0, 0, 7.5), (0, 0, 13.5), (0, 0, 14.5), (19, 0, 0))) < 0
    assert inside.tolist() == [False, False, True, True, False, True]


def test_union_and_blend() -> None:
    left, right = ellipsoid((0, 0, -11), (10, 10, 10)), ellipsoid((0, 0, 11), (10, 10, 10))
    assert union((left, right), 8).distance_mm(at((0, 0, 0))) == pytest.approx([-1], abs=1e-4)
    assert union((left, right), 1).distance_mm(at((0, 0, -3))) == pytest.approx([-2], abs=1e-4), "no seam there"


def test_grown_and_its_shell() -> None:
    ball = ellipsoid((0, 0, 0), (10, 10, 10))
    assert grown(ball, 3).distance_mm(at((0, 0, 13), (0, 0, 0.5)))[0] == pytest.approx(0, abs=1e-4)
    assert grown(ball, 3, wall_mm=2).distance_mm(at((0, 0, 13), (0, 0, 14.5))) == pytest.approx([-1, 0.5], abs=1e-4)


def test_waves_have_unit_deviation() -> None:
    waves = draw_waves(np.random.default_rng(1), 30, count=8)
    grid = np.stack(np.meshgrid(*(np.linspace(0, 400, 40, dtype=np.float32),) * 3, indexing="ij"))
    field = waves(grid)
    assert field.std() == pytest.approx(1, abs=0.05)
    assert abs(field.mean()) < 0.1


SHAPES: dict[str, Shape] = {
    "ellipsoid": ellipsoid((5, -10, 20), (40, 25, 12), (30, 50, -20)),
    "tube": tube(((0, 0, 0), (20, 10, 0), (30, 30, 15)), (6, 9, 4)),
    "union": union((ellipsoid((0, 0, -9), (15, 15, 10)), ellipsoid((0, 0, 9), (15, 15, 10))), 20),
    "clipped": clipped(
        ellipsoid((0, 0, 0), (40, 40, 40)), within=column((0, 0), (20, 20), floor_mm=-10, ceiling_mm=10)
    ),
    "displaced": displaced(ellipsoid((0, 0, 0), (20, 20, 20)), draw_waves(np.random.default_rng(2), 25), 2.0),
    "grown": grown(ellipsoid((0, 0, 0), (20, 20, 20)), 4),
}


@pytest.mark.parametrize("name", SHAPES)
def test_box_holds_the_shape(name: str) -> None:
    shape = SHAPES[name]
    axis = np.arange(-70, 71, 2.0, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    inside = points[:, shape.distance_mm(points) < 0]
    low, high = shape.box_mm
    assert inside.shape[1] > 50
    assert (inside.min(1) >= low - 1e-3).all()
    assert (inside.max(1) <= high + 1e-3).all()
