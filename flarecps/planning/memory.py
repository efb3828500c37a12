"""What one training step holds in GPU memory: a limit on patches, nnU-Net's, and an estimate, calibrated on peaks.

nnU-Net v2 takes it that a step with at most 560e6 elements of feature maps per patch and batch 2 (3D), or 85e6 and
batch 12 (2D), fits 8 GB. A step of cross pseudo supervision holds four times that at the same batch: two networks, each
with a labelled and an unlabelled patch for every patch of nnU-Net's. Patches are chosen by it, so that plans can be
compared with nnU-Net's. What the step then takes is counted term by term (``MemoryModel.step_gb``).
"""

from __future__ import annotations

import math
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
HALF, SINGLE = 2, 4  # bytes of a feature map's element: bf16-mixed, 32-true
LOSS_AT_A_TIME = 2**25  # logits that PyTorch's operations differentiate at once (losses/class_sums.py)


@dataclass(frozen=True)
class Learners:
    """Whose memory a step takes: ``count`` siblings, and ``beside`` them so many networks' worth of feature maps.

    ``in_turn`` they hold the feature maps of one at a time.
    """

    count: int = SIBLINGS
    beside: float = 0.0
    in_turn: bool = False

    @property
    def networks(self) -> float:
        """Networks' worth of memory in all.

        >>> Learners().networks, Learners(in_turn=True).networks, Learners(1, beside=0.2).networks
        (2, 1.1, 1.2)
        """
        own = 1 + (self.count - 1) * SIBLING_AT_REST if self.in_turn else self.count
        return own + self.beside if self.beside else own


CROSS_PSEUDO = Learners()


@dataclass(frozen=True)
class MemoryModel:
    """A GPU's memory as a limit on feature-map elements."""

    gpu_memory_gb: float
    dimensions: int
    class_count: int
    learners: Learners = CROSS_PSEUDO
    streams: int = STREAMS

    @property
    def elements(self) -> float:
        """The elements a patch may have in one network, at the reference batch in every stream."""
        share = self.gpu_memory_gb / REFERENCE_GB / (self.learners.networks * self.streams)
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

    def step_gb(self, patch: Sequence[int], topology: Topology, batch: int, element_bytes: int = HALF) -> float:
        """GB of tensors at the peak of a step of plain U-Nets, ``batch`` patches in every stream, bf16-mixed.

        Counted are of every convolution its output and what the next one sees; weights, gradients and momentum; and
        what lies beside them either while the losses are differentiated (logits at all scales, their gradients) or
        while the finest stage's last activation is (gradients of logits and of two of its tensors). Not counted: what
        cuDNN needs meanwhile, the allocator's remainders, the CUDA context. docs/training-step.md says how far it is
        from steps that were counted and measured.
        """
        learners, voxels, patches = self.learners, math.prod(patch), batch * self.streams
        computed = (1 if learners.in_turn else learners.count) + learners.beside
        there = learners.count + learners.beside
        logits = self.class_count * voxels  # of a patch at the finest scale; twice among the elements
        at_all_scales = learners.count * logits / (1 - 2**-self.dimensions)
        maps = computed * 2 * (self.elements_per_patch(patch, topology) - logits)
        at_once = max(logits, min(LOSS_AT_A_TIME, batch * logits))
        losses = element_bytes * (2 * patches * at_all_scales + batch * logits) + 2 * SINGLE * at_once
        finest = element_bytes * patches * (at_all_scales - logits + 2 * topology.features[0] * voxels)
        weights = parameter_count(topology, self.class_count)
        state = weights * there * (3 * SINGLE + (HALF if element_bytes == HALF else 0))
        return (element_bytes * patches * maps + max(losses, finest) + state) / 1e9


def parameter_count(topology: Topology, class_count: int, channels: int = 1) -> int:
    """The weights of a plain U-Net's convolutions, two a stage both ways, without biases and norms.

    >>> ones, twos, threes = (1,) * 3, (2,) * 3, (3,) * 3
    >>> strides = (ones, *(twos,) * 4, (1, 2, 2))
    >>> parameter_count(Topology((32, 64, 128, 256, 320, 320), strides, (threes,) * 6), class_count=14)
    30783264
    """
    features, found, before = topology.features, 0, channels
    for width, kernel in zip(features, topology.kernels, strict=True):
        found += math.prod(kernel) * (before + width) * width
        before = width
    coarser = zip(features[:-1], features[1:], topology.strides[1:], topology.kernels[:-1], strict=True)
    for width, below, stride, kernel in coarser:
        found += math.prod(stride) * below * width + 3 * math.prod(kernel) * width**2 + class_count * width
    return found


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
