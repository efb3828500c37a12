"""The network's shape: patch, stages, strides, kernels, so that one training step fits the memory.

The rules are nnU-Net v2's (facts and differences: ``docs/``): pool the axes whose spacing is within twice the finest
until an axis would fall below 4 voxels, shrink the axis that covers most of the median shape until the feature maps
fit. What differs is the memory: a step here holds two siblings, each with labelled and unlabelled patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flarecps.errors import PlanError
from flarecps.planning.memory import MemoryModel
from flarecps.planning.plan import Topology

SMALLEST_EDGE = 4  # voxels of the deepest feature map along a pooled axis
SMALLEST_LONE_EDGE = 3 * SMALLEST_EDGE  # before pooling, when only one axis would be pooled
NEAR = 2.0  # an axis is pooled, and convolved with 3, while its spacing is less than this times the finest
FIRST_FEATURES = 32
MOST_FEATURES = {2: 480, 3: 320}  # nnU-Net v1's caps, which the paper's networks have; v2 takes 512 in 2D
START_VOXELS = {2: 2048**2, 3: 256**3}  # of the isotropic patch before clipping
MOST_STAGES = 32  # a guard for absurd spacings only


def isotropic_patch(spacing_mm: Sequence[float]) -> tuple[int, ...]:
    """A patch that is (about) a cube or square in mm and has 256³ voxels (2048² in 2D)."""
    density = 1 / np.asarray(spacing_mm, dtype=float)
    dimensions = len(density)
    scale = (START_VOXELS[dimensions] / density.prod()) ** (1 / dimensions)
    return tuple(round(edge) for edge in density * scale)


def topology_for_patch(
    spacing_mm: Sequence[float],
    patch: Sequence[float],
    most_features: int | None = None,
    first_features: int = FIRST_FEATURES,
) -> tuple[tuple[int, ...], Topology]:
    """The network's topology for a patch of this spacing, and the patch padded to be divisible by its strides.

    The first stage has stride 1; the last (bottleneck) has kernel 3 everywhere, the one before it the kernels of the
    spacings reached so far: 1 on an axis not yet within twice the finest, 3 for good once it was. Features are
    ``first_features``, doubled at every stage up to ``most_features`` (None: the paper's).
    """
    spacing, size = [float(s) for s in spacing_mm], [float(edge) for edge in patch]
    axes = range(len(size))
    strides, kernels = [(1,) * len(size)], []
    kernel = [1] * len(size)
    while len(strides) < MOST_STAGES:
        roomy = [axis for axis in axes if size[axis] >= 2 * SMALLEST_EDGE]
        finest = min((spacing[axis] for axis in roomy), default=0.0)
        pooled = [axis for axis in roomy if spacing[axis] / finest < NEAR]
        if not pooled or (len(pooled) == 1 and size[pooled[0]] < SMALLEST_LONE_EDGE):
            break
        finest = min(spacing)
        kernel = [3 if kernel[axis] == 3 or spacing[axis] / finest < NEAR else 1 for axis in axes]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in pooled else 1 for axis in axes))
        for axis in pooled:
            spacing[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    kernels.append((3,) * len(size))
    cap = MOST_FEATURES[len(size)] if most_features is None else most_features
    features = tuple(min(first_features * 2**stage, cap) for stage in range(len(strides)))
    topology = Topology(features, tuple(strides), tuple(kernels))
    return tuple(math.ceil(edge / by) * by for edge, by in zip(patch, topology.total_stride, strict=True)), topology


def fit_patch(
    spacing_mm: Sequence[float],
    median_shape: Sequence[float],
    memory: MemoryModel,
    most_features: int | None = None,
    first_features: int = FIRST_FEATURES,
) -> tuple[tuple[int, ...], Topology]:
    """The largest patch, and its topology, of which ``memory`` holds the smallest batch.

    ``spacing_mm`` and ``median_shape`` (voxels) are in network order, two or three axes. Raises ``PlanError`` when
    not even the smallest patch fits.
    """
    start = [min(edge, median) for edge, median in zip(isotropic_patch(spacing_mm), median_shape, strict=True)]
    patch, topology = topology_for_patch(spacing_mm, start, most_features, first_features)
    while memory.elements_per_patch(patch, topology) > memory.largest_elements:
        axis = int(np.argsort([edge / median for edge, median in zip(patch, median_shape, strict=True)])[-1])
        smaller, reduced, previous = list(patch), list(patch), patch
        smaller[axis] -= topology.total_stride[axis]
        if smaller[axis] < 1:
            raise PlanError(
                f"no patch fits {memory.gpu_memory_gb:g} GB of GPU memory: even {_times(patch)} voxels do not; "
                f"give more with --gpu-memory"
            )
        # The divisor of the smaller patch, which may be pooled less often, says how much is really taken off.
        reduced[axis] -= topology_for_patch(spacing_mm, smaller)[1].total_stride[axis]
        patch, topology = topology_for_patch(spacing_mm, reduced, most_features, first_features)
        if patch == previous:  # padding gave back what was taken: take the whole divisor
            patch, topology = topology_for_patch(spacing_mm, smaller, most_features, first_features)
    return patch, topology


def given_patch(
    spacing_mm: Sequence[float],
    patch: Sequence[int],
    most_features: int | None = None,
    first_features: int = FIRST_FEATURES,
) -> tuple[tuple[int, ...], Topology]:
    """The topology for a patch the user asks for. Raises ``PlanError`` when it is not divisible by its strides."""
    if len(patch) != len(spacing_mm) or min(patch) < 1:
        raise PlanError(f"--patch {list(patch)}: expected {len(spacing_mm)} positive voxel counts, one per axis")
    padded, topology = topology_for_patch(spacing_mm, patch, most_features, first_features)
    if padded != tuple(patch):
        raise PlanError(
            f"--patch {_times(patch)}: at this spacing the network halves the axes until they measure "
            f"{topology.total_stride} voxels per deepest voxel, and every axis must be a multiple of that; "
            f"use {_times(padded)}"
        )
    return padded, topology


def _times(edges: Sequence[int]) -> str:
    return "×".join(str(edge) for edge in edges)
