"""Triton kernels of the sums over voxels behind Dice and cross-entropy: logits are read once in each direction.

Every program takes tiles of voxels with all their classes, computes their softmax in registers and adds up a stretch of
them; the stretches' sums are added in a fixed order, without atomics.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # logits that a program holds at once
MOST_STRETCHES = 512


@triton.jit
def _softmax(
    logits, labels, joined, trusted, sample, voxel, voxels, classes, along_sample, along_class, along_voxel,
    HAS_JOINED: tl.constexpr, HAS_TRUSTED: tl.constexpr, BLOCK_CLASSES: tl.constexpr,
):  # fmt: skip
    """Of a tile (voxel, class): probabilities p after merging, log p of the target, its mask, who takes part, and what
    share of background's p is each merged class's.
    """
    klass = tl.arange(0, BLOCK_CLASSES)
    there = klass < classes
    takes_part = voxel < voxels
    inside = takes_part[:, None] & there[None, :]
    place = sample.to(tl.int64) * along_sample + voxel.to(tl.int64)[:, None] * along_voxel
    z = tl.load(logits + place + klass.to(tl.int64)[None, :] * along_class, inside, 0.0).to(tl.float32)
    z = tl.where(there[None, :], z, float("-inf"))
    at = sample.to(tl.int64) * voxels + voxel
    label = tl.load(labels + at, takes_part, 0).to(tl.int32)
    target = label[:, None] == klass[None, :]
    if HAS_TRUSTED:
        takes_part = takes_part & (tl.load(trusted + at, takes_part, 0) != 0)
    largest = tl.max(z, 1)
    raised = tl.exp(z - largest[:, None])
    whole = tl.sum(raised, 1)
    log_whole = largest + tl.log(whole)
    p = raised / whole[:, None]
    log_p = tl.sum(tl.where(target, z, 0.0), 1) - log_whole
    share = tl.zeros_like(p)
    if HAS_JOINED:
        merged = tl.load(joined + sample * classes + klass, there, 0) != 0
        of_merged = tl.where(merged[None, :], z, float("-inf"))
        most = tl.max(of_merged, 1)
        lifted = tl.exp(of_merged - most[:, None])
        background = tl.sum(lifted, 1)
        share = lifted / background[:, None]
        log_background = most + tl.log(background) - log_whole
        p = tl.where(klass[None, :] == 0, tl.exp(log_background)[:, None], tl.where(merged[None, :], 0.0, p))
        lost = tl.sum((target & merged[None, :]).to(tl.int32), 1) > 0
        log_p = tl.where(label == 0, log_background, tl.where(lost, float("-inf"), log_p))
    return p, log_p, target, takes_part, share


@triton.jit
def _summed(
    logits, labels, joined, trusted, entropies, sums, voxels, classes, along_sample, along_class, along_voxel,
    stretch_voxels, HAS_JOINED: tl.constexpr, HAS_TRUSTED: tl.constexpr,
    BLOCK_VOXELS: tl.constexpr, BLOCK_CLASSES: tl.constexpr,
):  # fmt: skip
    stretch, sample = tl.program_id(0), tl.program_id(1)
    klass = tl.arange(0, BLOCK_CLASSES)
    entropy = tl.zeros([BLOCK_VOXELS], tl.float32)
    overlap = tl.zeros([BLOCK_CLASSES], tl.float32)
    predicted = tl.zeros([BLOCK_CLASSES], tl.float32)
    present = tl.zeros([BLOCK_CLASSES], tl.int32)
    for done in range(0, stretch_voxels, BLOCK_VOXELS):
        voxel = stretch * stretch_voxels + done + tl.arange(0, BLOCK_VOXELS)
        p, log_p, target, takes_part, _ = _softmax(
            logits, labels, joined, trusted, sample, voxel, voxels, classes, along_sample, along_class, along_voxel,
            HAS_JOINED, HAS_TRUSTED, BLOCK_CLASSES,
        )  # fmt: skip
        counted = takes_part[:, None]
        entropy -= tl.where(takes_part, log_p, 0.0)
        predicted += tl.sum(tl.where(counted, p, 0.0), 0)
        overlap += tl.sum(tl.where(counted & target, p, 0.0), 0)
        present += tl.sum((counted & target).to(tl.int32), 0)
    part = sample * tl.num_programs(0) + stretch
    tl.store(entropies + part, tl.sum(entropy, 0))
    there = klass < classes
    at = part * classes + klass
    apart = tl.num_programs(0) * tl.num_programs(1) * classes
    tl.store(sums + at, overlap, there)
    tl.store(sums + apart + at, predicted, there)
    tl.store(sums + 2 * apart + at, present.to(tl.float32), there)


@triton.jit
def _differentiated(
    logits, labels, joined, trusted, out, of_entropy, of_overlap, of_predicted,
    voxels, classes, along_sample, along_class, along_voxel, HAS_JOINED: tl.constexpr, HAS_TRUSTED: tl.constexpr,
    BLOCK_VOXELS: tl.constexpr, BLOCK_CLASSES: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1)
    voxel = tl.program_id(0) * BLOCK_VOXELS + tl.arange(0, BLOCK_VOXELS)
    klass = tl.arange(0, BLOCK_CLASSES)
    there = klass < classes
    p, _, target, takes_part, share = _softmax(
        logits, labels, joined, trusted, sample, voxel, voxels, classes, along_sample, along_class, along_voxel,
        HAS_JOINED, HAS_TRUSTED, BLOCK_CLASSES,
    )  # fmt: skip
    entropy = tl.load(of_entropy + sample)
    overlap = tl.load(of_overlap + sample * classes + klass, there, 0.0)
    g = tl.load(of_predicted + sample * classes + klass, there, 0.0)[None, :] + tl.where(target, overlap[None, :], 0.0)
    gradient = p * (g - tl.sum(p * g, 1)[:, None] + entropy) - tl.where(target, entropy, 0.0)
    if HAS_JOINED:
        merged = tl.load(joined + sample * classes + klass, there, 0) != 0
        background = tl.sum(tl.where(klass[None, :] == 0, gradient, 0.0), 1)
        gradient = tl.where(merged[None, :], share * background[:, None], gradient)
    gradient = tl.where(takes_part[:, None], gradient, 0.0)
    place = sample.to(tl.int64) * along_sample + voxel.to(tl.int64)[:, None] * along_voxel
    inside = (voxel < voxels)[:, None] & there[None, :]
    tl.store(out + place + klass.to(tl.int64)[None, :] * along_class, gradient.to(out.dtype.element_ty), inside)


class Read:
    """Logits, labels and masks as the kernels read them; either layout of the logits stays as it is."""

    def __init__(self, logits: Tensor, labels: Tensor, joined: Tensor | None, trusted: Tensor | None) -> None:
        channels_last = torch.channels_last_3d if logits.ndim == 5 else torch.channels_last
        if not (logits.ndim in (4, 5) and logits.is_contiguous(memory_format=channels_last)):
            logits = logits.contiguous()
        self.logits = logits
        self.samples, self.classes, self.voxels = logits.shape[0], logits.shape[1], logits[0, 0].numel()
        steps = (1, self.voxels) if logits.is_contiguous() else (self.classes, 1)  # from voxel to voxel, from class
        self.labels = labels.contiguous()
        whole = None if trusted is None else trusted.expand(labels.shape).to(torch.uint8).contiguous()
        flags = None if joined is None else joined.to(torch.uint8).contiguous()
        self.tensors = (self.logits, self.labels, *(self.labels if one is None else one for one in (flags, whole)))
        self.sizes = (self.voxels, self.classes, self.voxels * self.classes, steps[1], steps[0])
        block = triton.next_power_of_2(self.classes)
        self.settings: dict[str, Any] = {"HAS_JOINED": joined is not None, "HAS_TRUSTED": trusted is not None}
        self.settings |= {"BLOCK_CLASSES": block, "BLOCK_VOXELS": max(TILE // block, 1)}
        self.tiles = triton.cdiv(self.voxels, self.settings["BLOCK_VOXELS"])

    def sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Entropy (B,), overlap, predicted and present (B, C), in single precision."""
        stretch = triton.cdiv(self.tiles, MOST_STRETCHES) * self.settings["BLOCK_VOXELS"]
        parts = triton.cdiv(self.voxels, stretch)
        entropies = self.logits.new_empty((self.samples, parts), dtype=torch.float32)
        sums = self.logits.new_empty((3, self.samples, parts, self.classes), dtype=torch.float32)
        _summed[(parts, self.samples)](*self.tensors, entropies, sums, *self.sizes, stretch, **self.settings)
        overlap, predicted, present = sums.sum(2)
        return entropies.sum(1), overlap, predicted, present

    def gradient(self, entropy: Tensor, overlap: Tensor, predicted: Tensor) -> Tensor:
        """∂L/∂logits, as the logits lie in memory, from ∂L/∂(each sum)."""
        out = torch.empty_like(self.logits)
        _differentiated[(self.tiles, self.samples)](
            *self.tensors, out, *(one.contiguous() for one in (entropy, overlap, predicted)), *self.sizes,
            **self.settings,
        )  # fmt: skip
        return out
