"""Rotation, scaling and mirroring of a patch: image and labels move together.

Every number comes from the patch's own generator, which lies in the subject under ``"generator"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torchio as tio
from torch.nn import functional

from flarecps.typing import Triple

_DISPUTED = 255  # as a label between neighbours that disagree; were it a real one, it would be voted on like those
_SLACK_VOXELS = 1e-3  # float32 coordinates may land this far outside their exact bounds


class DrawnTransform(tio.Transform):
    """A TorchIO transform whose every number comes from the subject's own generator.

    TorchIO's own call tosses a coin with torch's global generator, copies the subject and keeps a history. The first
    would tie training to the number of workers, the rest costs more time than most of these transforms.
    """

    def __call__(self, subject: tio.Subject) -> tio.Subject:  # type: ignore[override]
        return self.apply_transform(subject)


@dataclass(frozen=True)
class PatchPose:
    """How a patch lies in its scan: output offset from the patch's centre × ``matrix`` = scan offset, in voxels.

    ``matrix``: (3, 3), axes (slice, row, column). ``in_plane``: the first axis stays as it is.
    """

    matrix: np.ndarray
    in_plane: bool

    def reach(self, patch: Triple) -> tuple[Triple, Triple]:
        """The part of the scan that the patch looks at: its lower corner relative to the patch's, and its shape."""
        centre = (np.array(patch) - 1) / 2
        half = np.abs(self.matrix) @ centre
        lower = np.floor(centre - half - _SLACK_VOXELS).astype(int)
        upper = np.ceil(centre + half + _SLACK_VOXELS).astype(int)
        if self.in_plane:
            lower[0], upper[0] = 0, patch[0] - 1
        shape = upper - lower + 1
        return (int(lower[0]), int(lower[1]), int(lower[2])), (int(shape[0]), int(shape[1]), int(shape[2]))

    def coordinates(self, patch: Triple) -> list[np.ndarray]:
        """For every voxel of the patch its position in the region of ``reach``: one float32 array per axis.

        In-plane there are two, of the patch's rows and columns, that hold for every slice. They broadcast to the
        patch's shape, and only where the axes mix do they have it.
        """
        first = 1 if self.in_plane else 0
        lower, _ = self.reach(patch)
        centre = (np.array(patch, dtype=np.float64) - 1) / 2
        offsets = [np.arange(size) - middle for size, middle in zip(patch, centre, strict=True)]
        if not np.any(self.matrix - np.diag(np.diag(self.matrix))):  # only scaled: each axis by itself
            own = [centre[axis] - lower[axis] + self.matrix[axis, axis] * offsets[axis] for axis in range(first, 3)]
            return list(np.ix_(*(place.astype(np.float32) for place in own)))
        found = []
        for axis in range(first, 3):
            terms = [self.matrix[axis, other] * offsets[other] for other in range(first, 3)]
            terms[0] = terms[0] + (centre[axis] - lower[axis])
            total = terms[0].astype(np.float32)
            for term in terms[1:]:
                total = total[..., None] + term.astype(np.float32)
            found.append(total)
        return found


class RotationAndScaling(DrawnTransform, tio.SpatialTransform):
    """Rotation about the patch's centre and one zoom factor for all axes, in one interpolation.

    The subject must hold the region that ``pose.reach`` names, so that nothing but the scan's own outside is padded.
    The image is interpolated linearly; a voxel gets the label whose linearly interpolated share is largest.

    Args:
        patch: voxels of the result, (slice, row, column).
        in_plane: rotate and scale rows and columns only.
        rotation_probability: how often a patch is rotated about all its axes.
        rotation_degrees: largest angle, either way.
        scaling_probability: how often a patch is scaled.
        scaling_range: coordinates are multiplied by a factor from this range: above 1 shrinks the anatomy.
    """

    def __init__(
        self,
        patch: Triple,
        in_plane: bool,
        rotation_probability: float,
        rotation_degrees: float,
        scaling_probability: float,
        scaling_range: tuple[float, float],
    ) -> None:
        super().__init__()
        self.patch = patch
        self.in_plane = in_plane
        self.rotation_probability = rotation_probability
        self.rotation_degrees = rotation_degrees
        self.scaling_probability = scaling_probability
        self.scaling_range = scaling_range

    def draw_pose(self, generator: np.random.Generator) -> PatchPose | None:
        """The pose of one patch, or None when it is neither rotated nor scaled."""
        rotates = generator.random() < self.rotation_probability
        scales = generator.random() < self.scaling_probability
        if not rotates and not scales:
            return None
        matrix = np.eye(3)
        if rotates:
            for axis in (0,) if self.in_plane else (0, 1, 2):
                angle = np.deg2rad(generator.uniform(-self.rotation_degrees, self.rotation_degrees))
                matrix = matrix @ _rotation(axis, angle)
        if scales:
            factor = generator.uniform(*self.scaling_range)
            matrix = matrix @ np.diag([1.0 if self.in_plane else factor, factor, factor])
        return PatchPose(matrix, self.in_plane)

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """The subject's images resampled to the patch by ``subject["pose"]``; unchanged without one."""
        pose: Any = subject.get("pose")
        if pose is None:
            return subject
        coordinates = pose.coordinates(self.patch)
        for image in self.get_images(subject):
            if isinstance(image, tio.LabelMap):
                maps = image.data.numpy()  # (1, S, H, W); in-plane, slices are maps of their own
                moved = sample_labels(maps if len(coordinates) == 3 else maps[0], coordinates)
                image.set_data(torch.from_numpy(moved.reshape(1, *self.patch)))
            else:
                image.set_data(_sample_image(image.data, coordinates, self.patch))
        return subject


class Mirror(DrawnTransform, tio.SpatialTransform):
    """Each of ``axes`` reversed with the given probability.

    Args:
        axes: axes of the patch's array without channels, (slice, row, column) = (0, 1, 2).
        probability: of each axis, independently.
        swaps: for each label id the id it becomes when ``lateral_axis`` is mirrored, and so does whether it is
            annotated; None changes no labels.
        lateral_axis: the axis that runs from the patient's left to right.
    """

    def __init__(
        self, axes: Sequence[int], probability: float, swaps: np.ndarray | None = None, lateral_axis: int = 2
    ) -> None:
        super().__init__(p=probability)
        self.axes = tuple(axes)
        self.swaps = swaps
        self.lateral_axis = lateral_axis

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """The subject with its images mirrored."""
        coins = subject.generator.random(len(self.axes))
        chosen = [axis for axis, coin in zip(self.axes, coins, strict=True) if coin < self.probability]
        if not chosen:
            return subject
        for image in self.get_images(subject):
            mirrored = torch.flip(image.data, [axis + 1 for axis in chosen])
            if self.swaps is not None and self.lateral_axis in chosen and isinstance(image, tio.LabelMap):
                mirrored = torch.from_numpy(self.swaps[mirrored.numpy()])
            image.set_data(mirrored)
        if self.swaps is not None and self.lateral_axis in chosen and "annotated" in subject:
            subject["annotated"] = cast(torch.Tensor, subject["annotated"])[self.swaps.tolist()]
        return subject


def swapped_ids(classes: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """For each of ``classes`` label ids the id on the body's other side, uint8; ids without a pair stay.

    >>> swapped_ids(4, [(2, 3)]).tolist()
    [0, 1, 3, 2]
    """
    order = np.arange(classes, dtype=np.uint8)
    for right, left in pairs:
        order[right], order[left] = left, right
    return order


def sample_labels(labels: np.ndarray, coordinates: Sequence[np.ndarray]) -> np.ndarray:
    """The labels at fractional positions: for each the label with the largest share in linear interpolation.

    ``labels``: uint8 (L, *region), L maps that are all sampled at the same positions. ``coordinates``: per axis of
    the region an array that broadcasts to the output's shape, within [0, size - 1]. The result is uint8 (L, *output).
    On ties the lowest label wins, as with an argmax over interpolated one-hot maps, which this equals without making
    them: only where the 2^n neighbours disagree are their weights added up.
    """
    region, output = labels.shape[1:], np.broadcast_shapes(*(place.shape for place in coordinates))
    if not labels.any():
        return np.zeros((len(labels), *output), dtype=np.uint8)
    bases = [np.clip(place.astype(np.int32), 0, size - 2) for place, size in zip(coordinates, region, strict=True)]
    agreed = _agreed(labels)
    if bases[0].shape == output:
        cells = bases[0]
        for base, size in zip(bases[1:], agreed.shape[2:], strict=True):
            cells = cells * np.int32(size) + base
        sampled = agreed.reshape(len(labels), -1).take(cells.ravel(), axis=1)
    else:
        for axis, base in enumerate(bases, start=1):
            agreed = agreed.take(base.ravel(), axis=axis)
        sampled = agreed.reshape(len(labels), -1)
    disputed = np.flatnonzero(sampled == _DISPUTED)
    if len(disputed):
        unsure_map, unsure = np.divmod(disputed, sampled.shape[1])
        places = np.unravel_index(unsure, output)
        corner = [np.broadcast_to(base, output)[places] for base in bases]
        beyond = [
            np.broadcast_to(place, output)[places] - start for place, start in zip(coordinates, corner, strict=True)
        ]
        votes, weights = [], []
        for steps in np.ndindex(*(2,) * len(region)):
            position = tuple(start + step for start, step in zip(corner, steps, strict=True))
            votes.append(labels[(unsure_map, *position)])
            weight = np.ones(len(unsure), dtype=np.float32)
            for part, step in zip(beyond, steps, strict=True):
                weight *= part if step else 1 - part
            weights.append(weight)
        sampled[unsure_map, unsure] = _most_voted(np.stack(votes), np.stack(weights))
    return sampled.reshape(len(labels), *output)


def _agreed(labels: np.ndarray) -> np.ndarray:
    """For every cell between 2^n neighbours the label they agree on, else ``_DISPUTED``; each axis is one shorter."""
    least = most = labels
    for axis in range(1, labels.ndim):
        ahead, behind = (part_along(axis, first, least.shape[axis] - 1) for first in (1, 0))
        least, most = np.minimum(least[ahead], least[behind]), np.maximum(most[ahead], most[behind])
    most[least != most] = _DISPUTED
    return most


def _most_voted(votes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For each column of ``votes`` (corners, n) the label with the largest sum of ``weights``; ties: the lowest."""
    best = np.zeros(votes.shape[1], dtype=np.uint8)
    best_share = np.zeros(votes.shape[1], dtype=np.float32)
    for label in np.unique(votes):
        share = np.where(votes == label, weights, np.float32(0)).sum(axis=0)
        wins = share > best_share
        best[wins], best_share[wins] = label, share[wins]
    return best


def _sample_image(image: torch.Tensor, coordinates: Sequence[np.ndarray], patch: Triple) -> torch.Tensor:
    """``image`` (C, *region) linearly interpolated at ``coordinates``, (C, *patch)."""
    channels, axes = len(image), len(coordinates)
    output = np.broadcast_shapes(*(place.shape for place in coordinates))
    if coordinates[0].shape != output:
        scaled = image.numpy()
        for axis, place in enumerate(coordinates, start=image.ndim - axes):
            scaled = _interpolated(scaled, place.ravel(), axis)
        return torch.from_numpy(scaled)
    region = image.shape[-axes:]
    grid = np.empty((*output, axes), dtype=np.float32)
    for axis, (place, size) in enumerate(zip(coordinates, region, strict=True)):
        np.multiply(place, np.float32(2 / (size - 1)), out=grid[..., axes - 1 - axis])  # last axis first
    grid -= 1
    stacked = image.reshape(1, -1, *region)  # in-plane, slices are channels
    sampled = functional.grid_sample(stacked, torch.from_numpy(grid)[None], mode="bilinear", align_corners=True)
    return sampled.reshape(channels, *patch)


def _interpolated(array: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """``array`` linearly interpolated along one axis at ``positions`` within [0, size - 1]."""
    lower = np.clip(positions.astype(np.int32), 0, array.shape[axis] - 2)
    share = (positions - lower).reshape([-1 if here == axis else 1 for here in range(array.ndim)])
    below, above = array.take(lower, axis=axis), array.take(lower + 1, axis=axis)
    above -= below
    above *= share
    above += below
    return above


def part_along(axis: int, first: int, length: int) -> tuple[slice, ...]:
    """The index of ``length`` places along ``axis`` from ``first`` on, whole along the axes before and after."""
    return (*(slice(None),) * axis, slice(first, first + length))


def _rotation(axis: int, angle: float) -> np.ndarray:
    """Rotation (3, 3) about ``axis``, ``angle`` in radians."""
    first, second = [other for other in range(3) if other != axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix
