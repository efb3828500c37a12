"""Whole-scan class probabilities from a network that sees only patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from itertools import product
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from flarecps.inference.mirroring import Mirroring

Network: TypeAlias = Callable[[Tensor], Tensor]  # (B, C, *patch) -> logits (B, K, *patch)
Accumulate: TypeAlias = Literal["softmax", "logits"]

SIGMA_PER_PATCH = 1 / 8  # nnU-Net's; the patch's edge lies at 4σ, where the weight is exp(-8) per axis


def windows(shape: Sequence[int], patch: Sequence[int], step: float) -> tuple[tuple[int, ...], ...]:
    """The first voxel of every window, axis by axis; the windows are all combinations.

    ``shape`` and ``patch`` are in voxels, ``step`` is a fraction of the patch (0 < step <= 1). Per axis there are
    n = ceil((L - P) / (P step)) + 1 windows, evenly spread so that the first begins at 0 and the last ends at L; an
    axis not longer than the patch has the single start 0 (the image is then padded). Source: nnU-Net.

    >>> windows((10, 64, 3), (4, 32, 4), step=0.5)
    ((0, 2, 4, 6), (0, 16, 32), (0,))
    """
    if not 0 < step <= 1:
        raise ValueError(f"step is {step}, expected a fraction of the patch above 0 and at most 1, e.g. 0.7")
    if len(shape) != len(patch):
        raise ValueError(f"shape {tuple(shape)} and patch {tuple(patch)} have different numbers of axes")
    return tuple(_starts(length, size, step) for length, size in zip(shape, patch, strict=True))


def _starts(length: int, patch: int, step: float) -> tuple[int, ...]:
    if length <= patch:
        return (0,)
    stride = max(patch * step, 1.0)  # below one voxel only for a patch of one voxel: the slices of a 2D network
    last = math.ceil((length - patch) / stride)
    return tuple(round(i * (length - patch) / last) for i in range(last + 1))


def window_count(shape: Sequence[int], patch_voxels: Sequence[int], step: float) -> int:
    """How many windows a scan of ``shape`` (S, H, W) takes; a patch of two numbers slides through every slice.

    >>> window_count((20, 64, 64), (64, 64), step=0.7)
    20
    """
    patch = _volume_patch(patch_voxels)
    return math.prod(map(len, windows(shape, patch, step)))


def _volume_patch(patch_voxels: Sequence[int]) -> tuple[int, ...]:
    return (1,) * (3 - len(patch_voxels)) + tuple(patch_voxels)


def gaussian_weights(patch: Sequence[int]) -> Tensor:
    """The weight of each voxel of a patch, float32 of shape ``patch``: a Gaussian with σ = P/8 per axis, its peak of 1
    at voxel P//2.

    The smallest weight, at a corner, is exp(-8) per axis (4e-11 in 3D): never 0 in float32, so a voxel that only
    a window's corner covers keeps that window's value.
    """
    return reduce(lambda weights, axis: weights.unsqueeze(-1) * axis, map(_axis_weights, patch))


def _axis_weights(length: int) -> Tensor:
    distance = torch.arange(length, dtype=torch.float64) - length // 2
    return torch.exp(-0.5 * (distance / (length * SIGMA_PER_PATCH)) ** 2).float()


def predict_probabilities(
    network: Network | Sequence[Network],
    image: Tensor,
    patch_voxels: Sequence[int],
    classes: int,
    step: float = 0.7,
    batch: int = 1,
    device: torch.device | str = "cpu",
    accumulate: Accumulate = "softmax",
    mirroring: Mirroring | None = None,
    accumulate_on: torch.device | str | None = None,
    advance: Callable[[], None] | None = None,
) -> Tensor:
    """Class probabilities (K, S, H, W), float32 on ``accumulate_on``; they sum to 1 in every voxel, to rounding.

    ``image`` is a normalised float32 (C, S, H, W). A patch of three numbers (S, H, W) slides through the volume; one of
    two (H, W) through each slice. Windows overlap and are averaged with Gaussian weights; where the image is
    smaller than the patch it is padded with 0, and the result cut back.

    ``network`` gives logits; of several networks (siblings, folds) the scores are averaged, as they are over
    mirrored copies (``mirroring``). ``accumulate="softmax"`` averages probabilities (nnU-Net v1),
    ``"logits"`` averages logits and takes the softmax at the end (v2). ``batch`` windows go through the network at a
    time on ``device``, under float16 autocast on a GPU; ``accumulate_on`` (default ``device``) holds the
    sums. ``advance()`` is called after each of ``window_count`` windows.
    """
    if image.ndim != 4:
        raise ValueError(f"image has shape {tuple(image.shape)}, expected (channel, slice, row, column)")
    if len(patch_voxels) not in (2, 3):
        raise ValueError(f"patch_voxels is {tuple(patch_voxels)}, expected 2 or 3 numbers")
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected at least 1 window at a time")
    networks = (network,) if callable(network) else tuple(network)
    flat = len(patch_voxels) == 2
    patch = _volume_patch(patch_voxels)
    device = torch.device(device)
    sums_on = torch.device(accumulate_on) if accumulate_on is not None else device

    def scores_of(tiles: Tensor) -> Tensor:
        tiles = tiles.squeeze(2) if flat else tiles
        scores = _scores(networks[0], tiles, accumulate, mirroring)
        for other in networks[1:]:
            scores = scores + _scores(other, tiles, accumulate, mirroring)
        scores = scores / len(networks)
        return scores.unsqueeze(2) if flat else scores

    with torch.inference_mode(), _autocast(device):
        padded, inside = _pad_to(image, patch)
        starts = windows(padded.shape[1:], patch, step)
        weights = gaussian_weights(patch).to(sums_on)
        sums = torch.zeros((classes, *padded.shape[1:]), dtype=torch.float32, device=sums_on)
        for corners in _batches(product(*starts), batch):
            places = [tuple(slice(lower, lower + size) for lower, size in zip(c, patch, strict=True)) for c in corners]
            tiles = torch.stack([padded[(slice(None), *place)] for place in places]).to(device, torch.float32)
            scores = scores_of(tiles)
            if scores.shape[1:] != (classes, *patch):
                raise ValueError(f"the network gives {tuple(scores.shape[1:])} (classes, patch) for a window, "
                                 f"expected {(classes, *patch)}")  # fmt: skip
            for place, score in zip(places, scores.to(sums_on), strict=True):
                sums[(slice(None), *place)].addcmul_(score, weights)
                if advance is not None:
                    advance()
        _divide_by_weights(sums, starts, patch)
        sums = sums[(slice(None), *inside)]
        return torch.softmax(sums, dim=0) if accumulate == "logits" else sums


def _scores(network: Network, tiles: Tensor, accumulate: Accumulate, mirroring: Mirroring | None) -> Tensor:
    def one(x: Tensor) -> Tensor:
        logits = network(x).float()
        return torch.softmax(logits, dim=1) if accumulate == "softmax" else logits

    return one(tiles) if mirroring is None else mirroring.average(one, tiles)


def _autocast(device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast("cuda", dtype=torch.float16) if device.type == "cuda" else nullcontext()


def _pad_to(image: Tensor, patch: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """The image with 0 around it wherever it is smaller than the patch, and where the image lies in it."""
    missing = [max(size - length, 0) for size, length in zip(patch, image.shape[1:], strict=True)]
    before = [width // 2 for width in missing]
    inside = tuple(slice(b, b + length) for b, length in zip(before, image.shape[1:], strict=True))
    if not any(missing):
        return image, inside
    widths = [w for b, m in zip(reversed(before), reversed(missing), strict=True) for w in (b, m - b)]
    return functional.pad(image, widths), inside


def _divide_by_weights(sums: Tensor, starts: Sequence[Sequence[int]], patch: Sequence[int]) -> None:
    """Divide by each voxel's sum of weights, in place.

    Windows are all combinations of starts and the Gaussian is a product over axes, hence so is the sum of weights:
    three short vectors instead of a volume.
    """
    for axis, (first, size) in enumerate(zip(starts, patch, strict=True), start=1):
        weight = torch.zeros(sums.shape[axis], dtype=torch.float64)
        for start in first:
            weight[start : start + size] += _axis_weights(size).double()
        sums /= weight.to(sums.device, torch.float32).reshape([-1 if a == axis else 1 for a in range(sums.ndim)])


def _batches(corners: Iterator[tuple[int, ...]], batch: int) -> Iterator[list[tuple[int, ...]]]:
    chunk: list[tuple[int, ...]] = []
    for corner in corners:
        chunk.append(corner)
        if len(chunk) == batch:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
