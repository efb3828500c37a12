"""Whole-scan scores from a network that sees only patches, handed on slab by slab."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from itertools import product
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from flarecps.inference.mirroring import Mirroring
from flarecps.inference.resources.deadline import WindowSchedule
from flarecps.inference.resources.devices import torch_device
from flarecps.inference.resources.placement import FallbackChain, Placement
from flarecps.inference.resources.usage import is_out_of_memory, out_of_memory_count
from flarecps.inference.slab_sums import SlabSums, uncovered_scores
from flarecps.planning.plan import volume_patch

T = TypeVar("T")

Network: TypeAlias = Callable[[Tensor], Tensor]  # (B, C, *patch) -> logits (B, K, *patch)
Accumulate: TypeAlias = Literal["softmax", "logits"]
Place: TypeAlias = tuple[slice, slice, slice]  # of a window in the padded volume

PINNED_BYTES = 64 * 2**20  # of slices on their way to a GPU; larger layers go the slower way, through pageable memory
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
    return math.prod(map(len, windows(shape, volume_patch(patch_voxels), step)))


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


@dataclass(frozen=True)
class _PaddedVolume:
    """Where windows go: the volume, padded with 0 to the patch on axes that are shorter, and the image in it."""

    image_shape: tuple[int, ...]
    patch: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the padded volume."""
        return tuple(max(edge, size) for edge, size in zip(self.image_shape, self.patch, strict=True))

    @property
    def inside(self) -> Place:
        """The image's place in the padded volume."""
        before = [(padded - edge) // 2 for padded, edge in zip(self.shape, self.image_shape, strict=True)]
        first, second, third = (slice(b, b + edge) for b, edge in zip(before, self.image_shape, strict=True))
        return first, second, third

    def place(self, corner: Sequence[int]) -> Place:
        """The window that begins at ``corner``."""
        first, second, third = (slice(at, at + size) for at, size in zip(corner, self.patch, strict=True))
        return first, second, third

    def of_image(self, place: Place) -> Place:
        """The part of the image, in its own voxels, that a window sees."""
        first, second, third = (
            slice(max(window.start - image.start, 0), min(window.stop, image.stop) - image.start)
            for window, image in zip(place, self.inside, strict=True)
        )
        return first, second, third

    def tile(self, image: Tensor, place: Place, convert: Callable[[Tensor], Tensor], first: int = 0) -> Tensor:
        """The converted image (C, *patch) in a window, 0 around it; ``image`` begins with the slice ``first``."""
        part = self.of_image(place)
        inner = convert(image[:, part[0].start - first : part[0].stop - first, part[1], part[2]])
        if inner.shape[1:] == self.patch:
            return inner
        tile = inner.new_zeros((len(inner), *self.patch))
        at = tuple(
            slice(p.start + image.start - window.start, p.stop + image.start - window.start)
            for p, image, window in zip(part, self.inside, place, strict=True)
        )
        tile[(slice(None), *at)] = inner
        return tile


class _Layer:
    """Windows of neighbouring slices. On a GPU they are cut and converted there, of slices that are sent once."""

    def __init__(
        self, volume: _PaddedVolume, image: Tensor, convert: Callable[[Tensor], Tensor], starts: Sequence[int]
    ) -> None:
        self.volume, self.image, self.convert = volume, image, convert
        spans = [volume.of_image(volume.place((start, 0, 0)))[0] for start in (starts[0], starts[-1])]
        self.slices = slice(spans[0].start, spans[1].stop)
        self._sent: Tensor | None = None

    def tiles(self, places: Sequence[Place], device: torch.device) -> Tensor:
        """Those at ``places``, (B, C, *patch) on ``device``."""
        if device.type == "cpu":
            self._sent = None
            tiles = [self.volume.tile(self.image, place, self.convert) for place in places]
        else:
            if self._sent is None:
                self._sent = _sent(self.image[:, self.slices], device)
            first = self.slices.start
            tiles = [self.volume.tile(self._sent, place, self.convert, first) for place in places]
        return torch.stack(tiles)


def _sent(part: Tensor, device: torch.device) -> Tensor:
    """``part`` of a scan on a GPU. By way of pinned memory, which a CUDA card fetches while the host goes on.

    PyTorch keeps the pinned block until the copy is through, and then for the next one.
    """
    if device.type != "cuda" or part.nbytes > PINNED_BYTES:
        return part.to(device)
    staged = torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part)
    return staged.to(device, non_blocking=True)


def scores_by_slab(
    networks: Sequence[Network],
    image: Tensor,
    patch_voxels: Sequence[int],
    classes: int,
    schedule: WindowSchedule,
    chain: FallbackChain,
    accumulate: Accumulate = "softmax",
    convert: Callable[[Tensor], Tensor] = Tensor.float,
    wanted: Callable[[Place], bool] = lambda part: True,
    advance: Callable[[], None] | None = None,
) -> Iterator[Tensor]:
    """Scores (K, n, H, W) of ``image`` (C, S, H, W), n slices at a time, in order, together all S.

    The scores are class probabilities, or with ``accumulate="logits"`` mean logits; float32, or float16 where the sums
    are. A slab is handed on when no further window touches it, is a view, and is gone when the next is asked for. Only
    a window's depth of scores is ever in memory.

    ``convert`` makes the network's float32 input of the part of ``image`` in a window (padding is 0 after it), on the
    device of the networks.
    Windows of which ``wanted(place in the image)`` is false are left out; a voxel in no window is background.
    ``schedule`` may change step and mirroring on the way. When a GPU's memory runs out, ``chain`` is
    stepped down and the windows tried again; nothing is lost.
    """
    volume = _PaddedVolume(tuple(image.shape[1:]), volume_patch(patch_voxels))
    run = _Run(tuple(networks), len(patch_voxels) == 2, accumulate, chain, gaussian_weights(volume.patch))
    sums = SlabSums(volume.shape[1:], uncovered_scores(classes, accumulate), chain.now.sums_on, chain.now.half_sums)
    inside, depth = volume.inside, volume.patch[0]
    begin, step = 0, schedule.step
    while begin < volume.shape[0]:
        if begin == 0 or schedule.step != step:
            step = schedule.step
            rest = tuple(begin + start for start in _starts(volume.shape[0] - begin, depth, step))
            across = tuple(product(*windows(volume.shape[1:], volume.patch[1:], step)))
        layers = max(1, min(chain.now.batch // len(across), len(rest)))
        now, rest = rest[:layers], rest[layers:]
        begin = rest[0] if rest else volume.shape[0]
        places = [volume.place((first, *others)) for first, others in product(now, across)]
        chosen = [place for place in places if wanted(volume.of_image(place))]
        run.held(sums, partial(sums.reach, now[-1] + depth))
        _call(advance, len(places) - len(chosen))

        layer = _Layer(volume, image, convert, now)
        while chosen:
            began = time.monotonic()
            batch, chosen = chosen[: chain.now.batch], chosen[chain.now.batch :]
            run.count(layer, batch, schedule.mirroring, sums, (classes, *volume.patch))
            _call(advance, len(batch))
            schedule.ran(len(batch), time.monotonic() - began, partial(_windows_left, volume, begin, len(chosen)))
        finished = run.held(sums, partial(sums.finish, begin))
        visible = slice(max(inside[0].start - sums.first, 0), max(min(begin, inside[0].stop) - sums.first, 0))
        if visible.start < visible.stop:
            yield finished[:, visible, inside[1], inside[2]]
        del finished
        sums.forget(begin)


def _windows_left(volume: _PaddedVolume, begin: int, in_layer: int, step: float) -> int:
    """Those in the present layer, and all that begin at slice ``begin`` or later."""
    deep = volume.shape[0] - begin
    return in_layer + (window_count((deep, *volume.shape[1:]), volume.patch, step) if deep else 0)


def _call(advance: Callable[[], None] | None, times: int) -> None:
    for _ in range(times if advance is not None else 0):
        advance()  # type: ignore[misc]  # not None, see the range


@dataclass
class _Run:
    """Windows through the networks and into the sums, on whatever placement the chain has reached."""

    networks: tuple[Network, ...]
    flat: bool
    accumulate: Accumulate
    chain: FallbackChain
    weights: Tensor  # (*patch)

    def __post_init__(self) -> None:
        self._move()

    def _move(self) -> None:
        """Take the networks to where the chain stands, or further down where they do not fit."""
        while self._fitting(self._moved) is None:
            self.chain.fall_back()

    def _moved(self) -> torch.device:
        device = self.chain.now.device
        for network in self.networks:
            if isinstance(network, nn.Module):
                network.to(device)
        if device.type == "cpu" and torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # a GPU that was left is really left
        return device

    def held(self, sums: SlabSums, work: Callable[[], Tensor]) -> Tensor:
        """What ``work`` on the sums gives, done in RAM if the GPU has no room for it."""
        while (found := self._fitting(work)) is None:
            self._fall_back(sums)
        return found

    def count(
        self,
        layer: _Layer,
        places: Sequence[Place],
        mirroring: Mirroring | None,
        sums: SlabSums,
        expected: tuple[int, ...],
    ) -> None:
        """Add the scores of the windows at ``places``; fewer at a time when they do not fit."""
        done = 0
        while done < len(places):
            part = slice(done, done + self.chain.now.batch)
            found = self._fitting(partial(self._scores, layer, places[part], mirroring))
            if found is None:
                self._fall_back(sums)
                continue
            if found.shape[1:] != expected:
                raise ValueError(
                    f"the network gives {tuple(found.shape[1:])} (classes, patch) for a window, expected {expected}"
                )
            for place, score in zip(places[part], found, strict=True):
                self.held(sums, partial(self._add, sums, place, score))
            done += len(found)
        if self.chain.now.device.type == "cuda":
            torch.cuda.synchronize(self.chain.now.device)  # what is timed is the work, not its being ordered

    def _add(self, sums: SlabSums, place: Place, score: Tensor) -> Tensor:
        if self.weights.device != sums.device:
            self.weights = self.weights.to(sums.device)
        return sums.add(place, score.to(sums.device), self.weights)

    def _scores(self, layer: _Layer, places: Sequence[Place], mirroring: Mirroring | None) -> Tensor:
        """The networks' mean scores (B, K, *patch)."""
        device = self.chain.now.device
        tiles = layer.tiles(places, device)
        with torch.no_grad(), autocast(device):
            tiles = tiles.squeeze(2) if self.flat else tiles
            scores = _scores_of_one(self.networks[0], tiles, self.accumulate, mirroring)
            for other in self.networks[1:]:
                scores += _scores_of_one(other, tiles, self.accumulate, mirroring)
            if len(self.networks) > 1:
                scores /= len(self.networks)
            return scores.unsqueeze(2) if self.flat else scores

    def _fitting(self, work: Callable[[], T]) -> T | None:
        """What ``work`` gives, or None when the GPU's memory ran out.

        cuDNN tries algorithm after algorithm, and where none gets its memory PyTorch raises "unable to find an engine",
        a RuntimeError, as it does on a GPU that is too old. So memory that was refused meanwhile counts, too.
        """
        device = self.chain.now.device
        refused = out_of_memory_count(device)
        try:
            with torch.no_grad():
                return work()
        except RuntimeError as error:
            if is_out_of_memory(error) or out_of_memory_count(device) > refused:
                return None
            raise

    def _fall_back(self, sums: SlabSums) -> None:
        """The next placement, outside the except clause so that the failed tensors are freed."""
        self.chain.fall_back()
        self._move()
        with torch.no_grad():
            sums.to(self.chain.now.sums_on, self.chain.now.half_sums)


def _scores_of_one(network: Network, tiles: Tensor, accumulate: Accumulate, mirroring: Mirroring | None) -> Tensor:
    def one(x: Tensor) -> Tensor:
        logits = network(x).float()
        return torch.softmax(logits, dim=1) if accumulate == "softmax" else logits

    return one(tiles) if mirroring is None else mirroring.average(one, tiles)


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Half precision where networks run on a CUDA GPU."""
    return torch.autocast("cuda", dtype=torch.float16) if device.type == "cuda" else nullcontext()


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
    device = torch_device(device)
    sums_on = torch_device(accumulate_on) if accumulate_on is not None else device
    slabs = scores_by_slab(
        networks,
        image,
        patch_voxels,
        classes,
        WindowSchedule(step, mirroring),
        FallbackChain([Placement(batch, device, sums_on)]),
        accumulate,
        advance=advance,
    )
    scores = joined_slabs(slabs, (classes, *image.shape[1:]), sums_on)
    return torch.softmax(scores, dim=0) if accumulate == "logits" else scores


def joined_slabs(slabs: Iterable[Tensor], shape: Sequence[int], device: torch.device) -> Tensor:
    """Slabs along the second axis put together: float32 of ``shape`` (K, S, H, W)."""
    together = torch.empty(tuple(shape), dtype=torch.float32, device=device)
    done = 0
    for slab in slabs:
        together[:, done : done + slab.shape[1]] = slab
        done += slab.shape[1]
    return together
