"""What must hold for any data set: sound plans, exact statistics, patches equal to NumPy's padding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flarecps.datasets.catalogue import Catalogue
from flarecps.planning.fingerprint import CaseShape, Fingerprint
from flarecps.planning.histogram import Histogram
from flarecps.planning.memory import MemoryModel
from flarecps.planning.plan import plan_from_json, plan_to_json
from flarecps.planning.planner import plan_dataset
from flarecps.planning.topology import fit_patch, topology_for_patch

SPACING = st.tuples(*[st.floats(0.3, 8.0)] * 3)
SHAPE = st.tuples(*[st.integers(3, 700)] * 3)
VALUES = arrays(np.int16, st.integers(1, 300), elements=st.integers(-1024, 32767))


@given(VALUES, st.floats(0, 100))
def test_histogram_statistics_equal_numpys(values: np.ndarray, percent: float) -> None:
    histogram = Histogram.of(values)
    exact = values.astype(np.float64)
    assert histogram.mean() == pytest.approx(exact.mean(), rel=1e-9, abs=1e-9)
    assert histogram.sd() == pytest.approx(exact.std(), rel=1e-6, abs=1e-6)
    assert histogram.percentile(percent) == pytest.approx(np.percentile(exact, percent), rel=1e-9, abs=1e-6)


@given(VALUES, VALUES)
def test_histograms_add_like_concatenation(one: np.ndarray, other: np.ndarray) -> None:
    assert Histogram.of(one) + Histogram.of(other) == Histogram.of(np.concatenate([one, other]))


@settings(max_examples=60, deadline=None)
@given(SPACING, SHAPE, st.sampled_from([2, 3]), st.floats(2.0, 80.0))
def test_every_patch_fits_memory_and_strides(spacing: tuple, shape: tuple, dimensions: int, gb: float) -> None:
    memory = MemoryModel(gb, dimensions, 14)
    patch, topology = fit_patch(spacing[-dimensions:], shape[-dimensions:], memory)
    assert memory.elements_per_patch(patch, topology) <= memory.largest_elements
    assert all(size % stride == 0 for size, stride in zip(patch, topology.total_stride, strict=True))
    for size, stride in zip(patch, topology.total_stride, strict=True):
        assert stride == 1 or size // stride >= 4
    assert len(topology.features) == len(topology.strides) == len(topology.kernels)
    batch = memory.batch(patch, topology, labelled_voxels=1e15)
    assert batch >= 2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(SPACING, SHAPE), min_size=1, max_size=8), st.sampled_from([2, 3]))
def test_any_data_set_has_a_plan_that_survives_its_file(cases: list, dimensions: int) -> None:
    shapes = tuple(
        CaseShape(f"{i}", "labelled", shape, spacing, "RAS", {0: 90, 1: 10}) for i, (spacing, shape) in enumerate(cases)
    )
    catalogue = Catalogue(Path("data"), "Data", {"background": 0, "one": 1, "two": 2}, ("CT",), (), ())
    fingerprint = Fingerprint(shapes, Histogram.of(np.arange(-50, 300)))
    plan = plan_dataset(fingerprint, catalogue, dimensions=dimensions)
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan
    assert sorted(plan.axis_order) == [0, 1, 2]
    assert plan.spacing_mm[0] >= 0.9 * max(plan.spacing_mm) or plan.axis_order == (0, 1, 2)
    assert Fingerprint.from_json(json.loads(json.dumps(fingerprint.to_json()))) == fingerprint


def test_topologies_of_all_small_cubes_are_consistent() -> None:
    for edge in range(1, 130):
        patch, topology = topology_for_patch((1.0, 1.0, 1.0), (edge,) * 3)
        assert edge <= patch[0] < edge + topology.total_stride[0]
