"""Noise, blur, brightness, contrast, resolution and gamma: what changes the image and leaves the labels alone.

All work in place on one channel (slice, row, column), float32, in NumPy: its sums do not depend on the number of
threads, so that a patch is the same in a worker and in the training process.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
import torchio as tio
from torch.nn import functional

from flarecps.data.spatial_transforms import DrawnTransform, part_along

Range = tuple[float, float]
_BLUR_TAIL = 4.0  # σ; SciPy's own cut
_BLOCK_VOXELS = 2**16  # of a blur, about 0.25 MB at a time
_SMALLEST_RANGE = 1e-7  # of a constant channel, which has no contrast to change


class _ChannelTransform(DrawnTransform, tio.IntensityTransform):
    """The base of all: with ``probability`` for a patch, then with ``channel_probability`` for each channel.

    ``bounds`` are the lowest and the highest of what a subclass draws, in its own units.
    """

    def __init__(self, probability: float, bounds: Range, channel_probability: float = 1.0) -> None:
        super().__init__(p=probability)
        self.bounds = bounds
        self.channel_probability = channel_probability

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """The subject, its intensity images changed in place or not at all."""
        generator = subject.generator
        if generator.random() >= self.probability:
            return subject
        for image in self.get_images(subject):
            for channel in image.data.numpy():
                if self.channel_probability >= 1 or generator.random() < self.channel_probability:
                    self.change(channel, generator)
        return subject

    @abstractmethod
    def change(self, channel: np.ndarray, generator: np.random.Generator) -> None:
        """Change ``channel`` (slice, row, column) in place."""


class GaussianNoise(_ChannelTransform):
    """White noise added; its SD is drawn uniformly within ``bounds`` (units of the normalised image)."""

    def change(self, channel: np.ndarray, generator: np.random.Generator) -> None:
        sd = generator.uniform(*self.bounds)
        noise = generator.standard_normal(channel.shape, dtype=np.float32)
        noise *= np.float32(sd)
        channel += noise


class GaussianBlur(_ChannelTransform):
    """A Gaussian along every axis, each with its own σ within ``bounds`` (voxels); the edge is mirrored."""

    def change(self, channel: np.ndarray, generator: np.random.Generator) -> None:
        for axis, sigma in enumerate(generator.uniform(*self.bounds, size=channel.ndim)):
            if channel.shape[axis] > 1:
                _blur_along(channel, sigma, axis)


class Brightness(_ChannelTransform):
    """Intensities times a factor, drawn ``around_one``."""

    def change(self, channel: np.ndarray, generator: np.random.Generator) -> None:
        channel *= np.float32(around_one(generator, self.bounds))


class Contrast(_ChannelTransform):
    """Distances from the mean times a factor, drawn ``around_one``; held within the old minimum and maximum."""

    def change(self, channel: np.ndarray, generator: np.random.Generator) -> None:
        factor = around_one(generator, self.bounds)
        mean, low, high = channel.mean(), channel.min(), channel.max()
        channel -= mean
        channel *= np.float32(factor)
        channel += mean
        np.clip(channel, low, high, out=channel)


class LowResolution(_ChannelTransform):
    """As if scanned coarsely: sampled down to the nearest voxels, then interpolated back linearly.

    The coarse size is within ``bounds`` as a share of the patch's. ``in_plane``: the first axis keeps its resolution.
    """

    def __init__(self, probability: float, bounds: Range, channel_probability: float, in_plane: bool) -> None:
        super().__init__(probability, bounds, channel_probability)
        self.in_plane = in_plane

    def change(self, channel: np.ndarray, generator: np.random.Generator) -> None:
        zoom = generator.uniform(*self.bounds)
        coarse = [max(1, round(size * zoom)) for size in channel.shape]
        if self.in_plane:
            coarse[0] = channel.shape[0]
        fine = torch.from_numpy(channel)[None, None]
        small = functional.interpolate(fine, size=coarse, mode="nearest-exact")
        fine.copy_(functional.interpolate(small, size=channel.shape, mode="trilinear", align_corners=False))


class Gamma(_ChannelTransform):
    """Intensities, scaled to 0–1, to a power, drawn ``around_one``; mean and SD are then restored.

    ``inverted`` does so to the negative.
    """

    def __init__(self, probability: float, bounds: Range, inverted: bool) -> None:
        super().__init__(probability, bounds)
        self.inverted = inverted

    def change(self, channel: np.ndarray, generator: np.random.Generator) -> None:
        exponent = around_one(generator, self.bounds)
        if self.inverted:
            np.negative(channel, out=channel)
        mean, sd, low = channel.mean(), channel.std(), channel.min()
        scale = max(channel.max() - low, np.float32(_SMALLEST_RANGE))
        channel -= low
        channel /= scale
        np.power(channel, np.float32(exponent), out=channel)
        channel -= channel.mean()
        channel *= sd / max(channel.std(), np.float32(_SMALLEST_RANGE))
        channel += mean
        if self.inverted:
            np.negative(channel, out=channel)


def _blur_along(channel: np.ndarray, sigma_voxels: float, axis: int) -> None:
    """Blur ``channel`` (slice, row, column) in place along one axis; the edge is mirrored, the tail cut at 4 σ.

    As ``scipy.ndimage.gaussian_filter1d(mode="mirror")``, block by block, so that the few sums a voxel needs are made
    within the processor's cache: a third of the time on 112×160×128 voxels.
    """
    radius = int(_BLUR_TAIL * sigma_voxels + 0.5)
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma_voxels) ** 2)
    weights = (weights / (weights[0] + 2 * weights[1:].sum())).astype(np.float32)
    size, across = channel.shape[axis], 1 if axis == 0 else 0
    thickness = max(1, _BLOCK_VOXELS * channel.shape[across] // channel.size)
    margins = [(radius, radius) if here == axis else (0, 0) for here in range(channel.ndim)]
    for first in range(0, channel.shape[across], thickness):
        block = channel[part_along(across, first, thickness)]
        padded = np.pad(block, margins, mode="reflect")
        block *= weights[0]
        for distance in range(1, radius + 1):
            before, after = (padded[part_along(axis, radius + way * distance, size)] for way in (-1, 1))
            pair = before + after
            pair *= weights[distance]
            block += pair


def around_one(generator: np.random.Generator, bounds: Range) -> float:
    """A factor: a fair coin chooses [low, 1] or [1, high], uniformly within; if 1 is not between, from all of it."""
    low, high = bounds
    if not low < 1 < high:
        return float(generator.uniform(low, high))
    if generator.random() < 0.5:
        return float(generator.uniform(low, 1))
    return float(generator.uniform(1, high))
