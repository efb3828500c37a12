"""Triton kernels of instance norm + LeakyReLU for tensors with channels innermost in memory.

A tensor (B, C, *spatial) is read as rows, one per voxel, of C channels. Sums over voxels are taken in two stages: every
program adds up a stretch of rows, then the stretches are merged in a fixed order. There are no atomics, so results are
the same every time. Means and squared deviations are merged by Chan's formula, in single precision; nothing is
subtracted from E[x²].
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # elements that a program holds at once
MOST_STRETCHES = 256  # a sample's rows are cut into at most so many
WIDEST = 64  # channels of a tile


@triton.jit
def _placed(sample, row, channel, rows, channels):
    """Where a tile (row, channel) lies in a tensor, and which of it there is."""
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    return sample.to(tl.int64) * rows * channels + row.to(tl.int64)[:, None] * channels + channel[None, :], inside


@triton.jit
def _of_channels(mean, inverse, weight, bias, sample, channel, channels):
    """A sample's mean and inverse deviation, weight and bias of each channel of a tile."""
    there, at = channel < channels, sample * channels + channel
    centre, scale = tl.load(mean + at, there, 0.0), tl.load(inverse + at, there, 0.0)
    w, b = tl.load(weight + channel, there, 0.0), tl.load(bias + channel, there, 0.0)
    return centre, scale, w.to(tl.float32), b.to(tl.float32)


@triton.jit
def _moments(x, means, squares, rows, channels, stretch_rows, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    stretch, sample = tl.program_id(0), tl.program_id(2)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    there = channel < channels
    mean = tl.zeros([BLOCK_CHANNELS], tl.float32)
    square = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for done in range(0, stretch_rows, BLOCK_ROWS):
        row = stretch * stretch_rows + done + tl.arange(0, BLOCK_ROWS)
        at, inside = _placed(sample, row, channel, rows, channels)
        values = tl.load(x + at, inside, 0.0).to(tl.float32)
        number = tl.minimum(tl.maximum(rows - stretch * stretch_rows - done, 0), BLOCK_ROWS).to(tl.float32)
        before = tl.minimum(done, rows - stretch * stretch_rows).to(tl.float32)
        own = tl.sum(values, 0) / tl.maximum(number, 1.0)
        off = tl.where(inside, values - own[None, :], 0.0)
        apart = own - mean
        share = number / (before + number)
        mean += apart * share
        square += tl.sum(off * off, 0) + apart * apart * (before * share)
    place = (sample * tl.num_programs(0) + stretch) * channels + channel
    tl.store(means + place, mean, there)
    tl.store(squares + place, square, there)


@triton.jit
def _merged(
    means, squares, mean, inverse, rows, channels, stretches, stretch_rows, eps,
    BLOCK_STRETCHES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    stretch = tl.arange(0, BLOCK_STRETCHES)
    there = channel < channels
    inside = (stretch < stretches)[:, None] & there[None, :]
    place = (sample * stretches + stretch)[:, None] * channels + channel[None, :]
    number = tl.minimum(tl.maximum(rows - stretch * stretch_rows, 0), stretch_rows).to(tl.float32)[:, None]
    own = tl.load(means + place, inside, 0.0)
    whole = tl.sum(own * number, 0) / rows
    apart = tl.where(inside, own - whole[None, :], 0.0)
    square = tl.sum(tl.load(squares + place, inside, 0.0) + number * apart * apart, 0)
    tl.store(mean + sample * channels + channel, whole, there)
    tl.store(inverse + sample * channels + channel, 1.0 / tl.sqrt_rn(square / rows + eps), there)


@triton.jit
def _applied(
    x, y, mean, inverse, weight, bias, rows, channels, slope, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):
    sample = tl.program_id(2)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    place, inside = _placed(sample, row, channel, rows, channels)
    centre, scale, w, b = _of_channels(mean, inverse, weight, bias, sample, channel, channels)
    hat = (tl.load(x + place, inside, 0.0).to(tl.float32) - centre[None, :]) * scale[None, :]
    out = hat * w[None, :] + b[None, :]
    tl.store(y + place, tl.where(out > 0, out, out * slope).to(y.dtype.element_ty), inside)


@triton.jit
def _before_activation(gradient, x, place, inside, centre, scale, w, b, slope):
    """x̂ and the gradient before the activation."""
    hat = (tl.load(x + place, inside, 0.0).to(tl.float32) - centre[None, :]) * scale[None, :]
    g = tl.load(gradient + place, inside, 0.0).to(tl.float32)
    positive = hat * w[None, :] + b[None, :] > 0
    return hat, tl.where(positive, g, g * slope)


@triton.jit
def _gradient_sums(
    gradient, x, mean, inverse, weight, bias, products, sums, rows, channels, stretch_rows, slope,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    stretch, sample = tl.program_id(0), tl.program_id(2)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    there = channel < channels
    centre, scale, w, b = _of_channels(mean, inverse, weight, bias, sample, channel, channels)
    product = tl.zeros([BLOCK_CHANNELS], tl.float32)
    total = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for done in range(0, stretch_rows, BLOCK_ROWS):
        row = stretch * stretch_rows + done + tl.arange(0, BLOCK_ROWS)
        place, inside = _placed(sample, row, channel, rows, channels)
        hat, g = _before_activation(gradient, x, place, inside, centre, scale, w, b, slope)
        product += tl.sum(hat * g, 0)  # outside g is 0
        total += tl.sum(g, 0)
    at = (sample * tl.num_programs(0) + stretch) * channels + channel
    tl.store(products + at, product, there)
    tl.store(sums + at, total, there)


@triton.jit
def _input_gradient(
    gradient, x, out, mean, inverse, weight, bias, products, sums, rows, channels, slope,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(2)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    there = channel < channels
    place, inside = _placed(sample, row, channel, rows, channels)
    centre, scale, w, b = _of_channels(mean, inverse, weight, bias, sample, channel, channels)
    hat, g = _before_activation(gradient, x, place, inside, centre, scale, w, b, slope)
    product = tl.load(products + sample * channels + channel, there, 0.0) / rows
    total = tl.load(sums + sample * channels + channel, there, 0.0) / rows
    of_x = (g - total[None, :] - hat * product[None, :]) * (scale * w)[None, :]
    tl.store(out + place, of_x.to(out.dtype.element_ty), inside)


class _Cut:
    """How a tensor with channels innermost is cut into tiles and stretches."""

    def __init__(self, x: Tensor) -> None:
        self.samples, self.channels, self.rows = x.shape[0], x.shape[1], x[0, 0].numel()
        self.block = {"BLOCK_CHANNELS": min(triton.next_power_of_2(self.channels), WIDEST)}
        self.block["BLOCK_ROWS"] = TILE // self.block["BLOCK_CHANNELS"]
        tiles = triton.cdiv(self.rows, self.block["BLOCK_ROWS"])
        self.stretch_rows = triton.cdiv(tiles, MOST_STRETCHES) * self.block["BLOCK_ROWS"]
        self.stretches = triton.cdiv(self.rows, self.stretch_rows)
        across = triton.cdiv(self.channels, self.block["BLOCK_CHANNELS"])
        self.by_tile = (tiles, across, self.samples)
        self.by_stretch = (self.stretches, across, self.samples)


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    """The activation's output like ``x``, and the norm's mean and inverse deviation (B, C) in single precision."""
    cut = _Cut(x)
    means, squares = x.new_empty((2, cut.samples, cut.stretches, cut.channels), dtype=torch.float32)
    mean, inverse = x.new_empty((2, cut.samples, cut.channels), dtype=torch.float32)
    y = torch.empty_like(x)
    _moments[cut.by_stretch](x, means, squares, cut.rows, cut.channels, cut.stretch_rows, **cut.block)
    stretches, narrow = triton.next_power_of_2(cut.stretches), 16
    _merged[(triton.cdiv(cut.channels, narrow), cut.samples)](
        means, squares, mean, inverse, cut.rows, cut.channels, cut.stretches, cut.stretch_rows, eps,
        BLOCK_STRETCHES=stretches, BLOCK_CHANNELS=narrow,
    )  # fmt: skip
    _applied[cut.by_tile](x, y, mean, inverse, weight, bias, cut.rows, cut.channels, slope, **cut.block)
    return y, mean, inverse


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of ``x``, and by sample (B, C) those of weight and bias; ``gradient`` lies in memory as ``x``."""
    cut = _Cut(x)
    parts = x.new_empty((2, cut.samples, cut.stretches, cut.channels), dtype=torch.float32)
    _gradient_sums[cut.by_stretch](
        gradient, x, mean, inverse, weight, bias, *parts, cut.rows, cut.channels, cut.stretch_rows, slope, **cut.block
    )
    products, sums = parts.sum(2)
    out = torch.empty_like(x)
    _input_gradient[cut.by_tile](
        gradient, x, out, mean, inverse, weight, bias, products, sums, cut.rows, cut.channels, slope, **cut.block
    )
    return out, products, sums
