"""DICOM series: a stack of slices as one array on one straight grid.

Every slice counts by its own header. Slices are put in order by their positions along their normal, never by names or
numbers. What is no single stack on a straight grid is refused, or remarked on where it can be read all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median  # np.median imports all of numpy.ma

import numpy as np

from flarecps.errors import GridError, ScanError, counted, first_few
from flarecps.typing import triple
from flarecps.volumes.dicom_pixels import begin_decoder, pixels_of
from flarecps.volumes.dicom_slices import Slice, attributes
from flarecps.volumes.dicom_stacks import (
    MISPLACED,
    ROUNDED_MM,
    along_normal,
    by_place,
    contradiction,
    in_order,
    is_twice,
    same_place_mm,
    stacks_in,
)
from flarecps.volumes.headers import StoredScan, check_plausible
from flarecps.volumes.links import STACK, place_of, stack_of
from flarecps.volumes.space import Space, as_direction

WRONG_STEP = 1.5  # times the usual distance: a mean beyond would make every size wrong


def read_series(path: Path) -> StoredScan:
    """Voxels, grid and remarks of a stack of slices: the one in a folder or multi-frame file, or FOLDER/stack:NAME.

    Raises ScanError for no series, several stacks, damaged files, and slices that do not make one stack.
    """
    begin_decoder(place_of(path))
    slices, space, remarks = _stack(path)
    return StoredScan(pixels_of(slices, space), space, remarks)


def read_series_space(path: Path) -> Space:
    """The stored grid of a stack, from the headers of its slices. Errors as `read_series`."""
    return _stack(path)[1]


def read_stack(path: Path) -> tuple[list[Slice], Space]:
    """The slices of the stack at ``path`` in the order of its grid, and that grid. Errors as `read_series`."""
    slices, space, _ = _stack(path)
    return slices, space


def stacks_at(path: Path) -> list[Path]:
    """What is to be read of a DICOM folder or multi-frame file: FOLDER/stack:NAME each where it holds several stacks,
    else ``path`` itself, as where it can't be read.
    """
    try:
        names = [] if stack_of(path) else [one for one in stacks_in(path).parts if one]
    except (ScanError, GridError):
        names = []
    return [path / f"{STACK}{name}" for name in names] or [path]


def _stack(path: Path) -> tuple[list[Slice], Space, tuple[str, ...]]:
    """The slices of a stack in order, their grid, and remarks on what was left out or does not fit a straight grid."""
    found, name = stacks_in(place_of(path)), stack_of(path)
    if name not in found.parts:
        choose = first_few([f"{place_of(path) / STACK}{one}" for one in found.parts if one])
        if name:
            raise ScanError(f"{path}: no such stack of slices there; expected {choose or place_of(path)}")
        raise ScanError(
            f"{path}: {found.why}; expected one stack of slices: name the one to read ({choose}), "
            "or put the files of each into a folder of its own"
        )
    part = found.parts[name]
    if isinstance(part, ScanError):
        raise part
    slices, doubled = _each_place_once(path, in_order(part))
    _check_straight(path, slices)
    space = _grid(slices)
    check_plausible(path, space)
    remarks = [*found.remarks, *doubled, *_misplaced(slices, space)]
    if slices[0].photometric == "MONOCHROME1":
        remarks.append("MONOCHROME1, shown with black and white exchanged: the values are read as they are")
    return slices, space, tuple(remarks)


def _each_place_once(path: Path, slices: Sequence[Slice]) -> tuple[list[Slice], list[str]]:
    """One slice for every place, of several with equal voxels the first, which is remarked on.

    Raises ScanError where slices at one place have other voxels.
    """
    places, near = by_place(slices), same_place_mm(slices)
    again: list[str] = []
    for first, *others in places:
        for other in others:
            if not is_twice(first, other, near):
                raise contradiction(path, first, other, attributes([first, other]))
            again.append(f"{other.name} as {first.name}")
    told = f"{counted(len(again), 'slice')} there twice with equal voxels, counted once ({first_few(again, 3)})"
    return [first for first, *_ in places], [told] if again else []


def _check_straight(path: Path, slices: Sequence[Slice]) -> None:
    """Nothing, or ScanError for slices that a straight grid of mean distance would misrepresent: by a gap far beyond
    the usual one, or a slice far beside.
    """
    if len(slices) < 2:
        return
    gaps = np.diff(along_normal(slices))
    usual, mean = median(gaps.tolist()), float(gaps.mean())
    if max(usual, mean) > WRONG_STEP * min(usual, mean):
        widest = int(gaps.argmax())
        raise ScanError(
            f"{path}: {slices[widest].name} and {slices[widest + 1].name} lie {gaps[widest]:.3g} mm apart, slices "
            f"usually {usual:.3g} mm: with the mean distance, {mean:.3g} mm, sizes would be wrong; expected one stack "
            "of slices: add the missing ones, or move those on one side away"
        )
    beside = _beside(slices)
    if beside.max() > min(edge * count for edge, count in zip(slices[0].spacing_mm, slices[0].shape, strict=True)) / 2:
        raise ScanError(
            f"{path}: {slices[int(beside.argmax())].name} lies {beside.max():.3g} mm beside the line of the others; "
            "expected one stack of slices: move it away"
        )


def _sideways(slices: Sequence[Slice]) -> np.ndarray:
    """How far each slice (n, 3) is shifted in its plane against the first one, in mm."""
    offsets = np.array([one.position_mm - slices[0].position_mm for one in slices])
    return offsets - np.outer(along_normal(slices), slices[0].directions[:, 2])


def _beside(slices: Sequence[Slice]) -> np.ndarray:
    """How far each slice lies beside the line from the first to the last, as a tilted gantry gives it, in mm."""
    along, sideways = along_normal(slices), _sideways(slices)
    return np.linalg.norm(sideways - np.outer(along / (along[-1] or 1.0), sideways[-1]), axis=1)


def _grid(slices: Sequence[Slice]) -> Space:
    """The straight grid of slices in order: the first one's plane, and the mean distance along its normal."""
    first = slices[0]
    return Space(
        (len(slices), *first.shape),
        (float(along_normal(slices)[-1]) / (len(slices) - 1) if len(slices) > 1 else 1.0, *first.spacing_mm),
        as_direction(first.directions),
        triple(first.position_mm.tolist()),
    )


def _misplaced(slices: Sequence[Slice], space: Space) -> list[str]:
    """Remarks on slices that lie off the straight grid, along its normal or sideways."""
    remarks, along, step = [], along_normal(slices), space.spacing_mm[0]
    if np.abs(along - step * np.arange(len(slices))).max() > max(ROUNDED_MM, MISPLACED * step):
        distances = np.diff(along)
        widest = int(distances.argmax())
        remarks.append(
            f"slice distances are uneven ({distances.min():.3g} to {distances.max():.3g} mm, the widest between "
            f"{slices[widest].name} and {slices[widest + 1].name}; read as {step:.3g} mm throughout): "
            "slices may be missing or doubled"
        )
    limit = max(ROUNDED_MM, MISPLACED * min(space.spacing_mm[1:]))
    farthest, beside = np.linalg.norm(_sideways(slices), axis=1).max(), _beside(slices)
    if beside.max() > limit:
        which = slices[int(beside.argmax())].name
        remarks.append(f"{which} lies {beside.max():.3g} mm beside the line of the others: read as a straight stack")
    elif farthest > limit:
        remarks.append(f"slices are shifted sideways by {farthest:.3g} mm (gantry tilt): read as a straight stack")
    return remarks
