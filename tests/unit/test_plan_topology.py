"""Patch, pooling and memory against nnU-Net's published plans and sizes (facts, counted by hand)."""

from __future__ import annotations

import numpy as np
import pytest

from flarecps.errors import PlanError
from flarecps.planning.memory import Learners, MemoryModel
from flarecps.planning.plan import Topology
from flarecps.planning.topology import fit_patch, given_patch, isotropic_patch, topology_for_patch


def nnunet_memory(dimensions: int, class_count: int = 14) -> MemoryModel:
    """nnU-Net's own count: one network, one kind of patches, 8 GB."""
    return MemoryModel(8.0, dimensions, class_count, Learners(1), streams=1)


def test_elements_of_the_papers_networks() -> None:
    """What nnU-Net 2.8.1 counts for 112×160×128 and, with its cap of 512, for 512×512; 14 classes."""
    three = Topology((32, 64, 128, 256, 320, 320), ((1, 1, 1), *[(2, 2, 2)] * 4, (1, 2, 2)), ((3, 3, 3),) * 6)
    assert nnunet_memory(3).elements_per_patch((112, 160, 128), three) == 520_522_240
    two = Topology((32, 64, 128, 256, *[512] * 4), ((1, 1), *[(2, 2)] * 7), ((3, 3),) * 8)
    assert nnunet_memory(2).elements_per_patch((512, 512), two) == 85_770_240


@pytest.mark.parametrize("slice_mm", [0.8, 1.0, 1.5])
def test_flare22_sized_scans_give_the_papers_patch(slice_mm: float) -> None:
    patch, topology = fit_patch((slice_mm, 0.8, 0.8), (400, 512, 512), nnunet_memory(3))
    assert patch == (112, 160, 128)
    assert topology.features == (32, 64, 128, 256, 320, 320)
    assert topology.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    assert topology.kernels == ((3, 3, 3),) * 6
    assert nnunet_memory(3).batch(patch, topology, labelled_voxels=1e12) == 2


def test_anisotropic_scans_pool_in_the_plane_first() -> None:
    patch, topology = fit_patch((2.5, 0.8, 0.8), (100, 512, 512), nnunet_memory(3))
    assert patch == (40, 224, 192)
    assert topology.strides[1] == (1, 2, 2)
    assert topology.kernels[:2] == ((1, 3, 3), (3, 3, 3))


def test_full_slices_in_2d_have_eight_stages_and_batch_12() -> None:
    memory = nnunet_memory(2, class_count=2)
    patch, topology = fit_patch((0.8, 0.8), (512, 512), memory)
    assert patch == (512, 512)
    assert topology.features == (32, 64, 128, 256, 480, 480, 480, 480)
    assert topology.strides == ((1, 1), *[(2, 2)] * 7)
    assert memory.batch(patch, topology, labelled_voxels=1e12) == 12


def test_four_times_the_memory_restores_nnunets_patch() -> None:
    """Two siblings with labelled and unlabelled patches hold four times as much as nnU-Net's step."""
    memory = MemoryModel(32.0, 3, 14)
    patch, topology = fit_patch((1.0, 0.8, 0.8), (400, 512, 512), memory)
    assert patch == (112, 160, 128)
    assert memory.elements_per_patch(patch, topology) == 520_522_240
    small, _ = fit_patch((1.0, 0.8, 0.8), (400, 512, 512), MemoryModel(8.0, 3, 14))
    assert np.prod(small) < np.prod(patch) / 3


def test_isotropic_start() -> None:
    assert isotropic_patch((1.0, 1.0, 1.0)) == (256, 256, 256)
    assert isotropic_patch((0.7, 0.7)) == (2048, 2048)
    edges_mm = np.array(isotropic_patch((5.0, 0.8, 0.7))) * [5.0, 0.8, 0.7]
    assert edges_mm == pytest.approx(np.full(3, edges_mm.mean()), rel=0.02)


@pytest.mark.parametrize(
    ("spacing_mm", "shape", "strides", "patch"),
    [
        # 7 voxels are never halved, 8 once, 12 alone once more, 8 alone not
        ((1.0, 1.0, 1.0), (7, 7, 7), [(1, 1, 1)], (7, 7, 7)),
        ((1.0, 1.0, 1.0), (8, 7, 8), [(1, 1, 1), (2, 1, 2)], (8, 7, 8)),
        ((1.0, 1.0, 1.0), (12, 7, 7), [(1, 1, 1), (2, 1, 1)], (12, 7, 7)),
        ((1.0, 1.0, 1.0), (8, 7, 7), [(1, 1, 1)], (8, 7, 7)),
        # odd edges are padded to be divisible
        ((1.0, 1.0, 1.0), (15, 16, 17), [(1, 1, 1), (2, 2, 2), (2, 2, 2)], (16, 16, 20)),
        # 4 mm slices wait until the plane has reached more than 2 mm (4 / 2 is not less than 2)
        ((4.0, 1.0, 1.0), (16, 64, 64), [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)], (16, 64, 64)),
    ],
)
def test_pooling_by_hand(spacing_mm: tuple, shape: tuple, strides: list, patch: tuple) -> None:
    padded, topology = topology_for_patch(spacing_mm, shape)
    assert list(topology.strides) == strides
    assert padded == patch


def test_kernels_grow_with_the_spacing_and_the_bottleneck_is_cubic() -> None:
    _, topology = topology_for_patch((4.0, 1.0, 1.0), (16, 64, 64))
    assert topology.kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    _, flat = topology_for_patch((30.0, 1.0, 1.0), (4, 16, 16))
    assert flat.kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3))


@pytest.mark.parametrize(
    ("spacing_mm", "shape"),
    [((2.5, 4.0, 4.0), (64, 53, 55)), ((6.4, 6.4, 6.4), (45, 60, 60)), ((1, 1, 1), (5, 9, 200))],
)
def test_small_scans_are_taken_whole(spacing_mm: tuple, shape: tuple) -> None:
    memory = MemoryModel(8.0, 3, 14)
    patch, topology = fit_patch(spacing_mm, shape, memory)
    for size, edge, stride in zip(patch, shape, topology.total_stride, strict=True):
        assert edge <= size < edge + stride
        assert size // stride >= min(4, edge)
    assert memory.batch(patch, topology, labelled_voxels=5 * float(np.prod(shape))) == 2


def test_the_batch_holds_at_most_a_twentieth_of_the_labelled_voxels() -> None:
    memory = MemoryModel(8.0, 3, 5)
    patch, topology = fit_patch((2.5, 4.0, 4.0), (64, 53, 55), memory)
    voxels = float(np.prod(patch))
    assert memory.batch(patch, topology, 20 * 3 * voxels) == 3
    fitting = memory.batch(patch, topology, 1e15)
    assert memory.step_gb(patch, topology, fitting) <= 8.0 * (fitting + 0.5) / fitting


def test_a_patch_of_ones_own() -> None:
    patch, topology = given_patch((2.5, 4.0, 4.0), (32, 32, 32))
    assert patch == (32, 32, 32)
    assert topology.total_stride == (8, 8, 8)
    with pytest.raises(PlanError, match="use 56×32×32"):
        given_patch((1.0, 1.0, 1.0), (50, 32, 32))
    with pytest.raises(PlanError, match="expected 3 positive voxel counts"):
        given_patch((1.0, 1.0, 1.0), (32, 32))


def test_memory_for_no_patch_at_all() -> None:
    with pytest.raises(PlanError, match="--gpu-memory"):
        fit_patch((1.0, 1.0, 1.0), (200, 200, 200), MemoryModel(1e-6, 3, 14))
