"""What one training step of two siblings holds in GPU memory, counted in feature-map elements as nnU-Net does.

nnU-Net v2 takes it that a step with at most 560e6 elements per patch and batch 2 (3D), or 85e6 and batch 12 (2D),
fits 8 GB. A step of cross pseudo supervision holds four times that at the same batch: two networks, each with a
labelled and an unlabelled patch for every patch of nnU-Net's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flarecps.planning.plan import Plan, Topology

REFERENCE_GB = 8.0
REFERENCE_ELEMENTS = {2: 85e6, 3: 560e6}  # per patch, at the reference batch
REFERENCE_BATCH = {2: 12, 3: 2}
SIBLINGS = 2
STREAMS = 2  # labelled and unlabelled patches, equally many
SMALLEST_BATCH = 2  # per stream
SIBLING_AT_REST = 0.1  # networks' worth: its weights, gradients and momentum, its outputs and their gradients
MOST_OF_DATA = 0.05  # a batch holds at most this share of the labelled voxels


def networks_held(siblings: int = SIBLINGS, beside: float = 0.0, in_turn: bool = False) -> float:
    """Networks' worth of memory of a step: of every sibling, or of one and what is left of the others in turn.

    >>> networks_held(), networks_held(in_turn=True), networks_held(1, beside=0.2)
    (2.0, 1.1, 1.2)
    """
    return (1 + (siblings - 1) * SIBLING_AT_REST if in_turn else siblings) + beside


@dataclass(frozen=True)
class MemoryModel:
    """A GPU's memory as a limit on feature-map elements."""

    gpu_memory_gb: float
    dimensions: int
    class_count: int
    networks: float = SIBLINGS  # how many learn, and what is held beside them in a network's worth
    streams: int = STREAMS

    @property
    def elements(self) -> float:
        """The elements a patch may have in one network, at the reference batch in every stream."""
        share = self.gpu_memory_gb / REFERENCE_GB / (self.networks * self.streams)
        return REFERENCE_ELEMENTS[self.dimensions] * share

    @property
    def largest_elements(self) -> float:
        """The most elements a patch may have in one network: at the smallest batch in every stream."""
        return self.elements * REFERENCE_BATCH[self.dimensions] / SMALLEST_BATCH

    def elements_per_patch(self, patch: Sequence[int], topology: Topology) -> int:
        """Outputs of the convolutions of one U-Net for one patch: two a stage both ways, upsampling, the finest head.

        The coarser heads of deep supervision are left out, as by nnU-Net, whose reference is counted so.
        """
        size, sizes, elements = np.array(patch, dtype=np.int64), [], 0
        for features, stride in zip(topology.features, topology.strides, strict=True):
            size = size // np.array(stride)
            sizes.append(int(size.prod()))
            elements += 2 * features * sizes[-1]
        for features, voxels in zip(topology.features[:-1], sizes[:-1], strict=True):
            elements += 3 * features * voxels
        return elements + self.class_count * sizes[0]

    def batch(self, patch: Sequence[int], topology: Topology, labelled_voxels: float) -> int:
        """Patches per stream: as many as fit, at most 5 % of the labelled voxels, at least 2."""
        elements = self.elements_per_patch(patch, topology)
        fitting = round(self.elements / elements * REFERENCE_BATCH[self.dimensions])
        varied = round(labelled_voxels * MOST_OF_DATA / np.prod(patch, dtype=float))
        return max(min(fitting, varied), SMALLEST_BATCH)

    def step_gb(self, patch: Sequence[int], topology: Topology, batch: int) -> float:
        """Estimated GB of one training step with ``batch`` patches in every stream."""
        elements = self.elements_per_patch(patch, topology) * batch * self.networks * self.streams
        reference = REFERENCE_ELEMENTS[self.dimensions] * REFERENCE_BATCH[self.dimensions]
        return REFERENCE_GB * elements / reference


def network_step_gb(plan: Plan, elements: int) -> float:
    """The plan's estimate for a step, which is a plain U-Net's, for a network of so many elements per patch instead."""
    memory = MemoryModel(0.0, plan.dimensions, plan.class_count)
    return plan.memory_gb * elements / memory.elements_per_patch(plan.patch_voxels, plan.topology)


def gb_in_words(size_gb: float) -> str:
    """An estimate of memory for people.

    >>> gb_in_words(29.73), gb_in_words(0.057), gb_in_words(0.003)
    ('29.7 GB', '0.06 GB', 'less than 0.01 GB')
    """
    if size_gb < 0.01:
        return "less than 0.01 GB"
    return f"{size_gb:.1f} GB" if size_gb >= 10 else f"{size_gb:.2f} GB"
