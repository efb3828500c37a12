"""DICOM series: which slices make one stack, in what order, how far apart; or which two contradict each other.

Every slice counts by its own header. Slices are put in order by their positions along their normal, never by names or
numbers. What is no single stack on a straight grid is refused, or remarked on where it can be read all the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from pydicom import Dataset

from flarecps.errors import ScanError, counted, first_few
from flarecps.typing import triple
from flarecps.volumes.dicom_pixels import read_voxels, same_voxels
from flarecps.volumes.dicom_slices import (
    FRAME_OF_REFERENCE,
    STACKS,
    Slice,
    attributes,
    dicom_files,
    read_header,
    slices_of,
)
from flarecps.volumes.headers import check_plausible
from flarecps.volumes.nifti import StoredScan
from flarecps.volumes.space import Space, as_direction

TURNED = 1e-3  # cosines of slices of one stack differ by less
SAME_PLACE = 0.1  # of the mean distance: slices closer than this
SAME_PLACE_MM = 0.25  # and than this lie at one place
MISPLACED = 0.2  # of a voxel; and
ROUNDED_MM = 0.05  # positions are often written with one digit: a slice off its grid by more than both is remarked on
WRONG_STEP = 1.5  # times the usual distance: a mean beyond would make every size wrong
# What tells the images of one place apart, the likeliest first
PHASES = (
    "AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex", "EchoNumbers", "EchoTime",
    "EffectiveEchoTime", "DiffusionBValue", "ImageType", "FrameType", "ComplexImageComponent", "TriggerTime",
    "NominalCardiacTriggerDelayTime", "NominalPercentageOfCardiacPhase", "InversionTime", "FlipAngle", "RepetitionTime",
    "ConvolutionKernel", "KVP", "StackID", "SeriesNumber", "SeriesDescription", "AcquisitionTime",
    "AcquisitionDateTime", "FrameAcquisitionDateTime", "ContentTime",
)  # fmt: skip


def read_series(path: Path) -> StoredScan:
    """Voxels, grid and remarks of the one stack of slices in a folder, or in a multi-frame file.

    Raises ScanError for no series, several, damaged files, and slices that do not make one stack.
    """
    slices, space, remarks = _stack(path)
    return StoredScan(read_voxels(slices), space, remarks)


def read_series_space(path: Path) -> Space:
    """The stored grid of the one stack in a folder or multi-frame file, from the headers of its slices."""
    return _stack(path)[1]


def read_stack(path: Path) -> tuple[list[Slice], Space]:
    """The slices of the one stack at ``path`` in the order of its grid, and that grid. Errors as `read_series`."""
    slices, space, _ = _stack(path)
    return slices, space


def _stack(path: Path) -> tuple[list[Slice], Space, tuple[str, ...]]:
    """The slices of a stack in order, their grid, and remarks on what was left out or does not fit a straight grid."""
    slices, passed_over = _slices_in(path)
    _check_alike(path, slices)
    normal = slices[0].directions[:, 2]
    slices.sort(key=lambda one: (float(one.position_mm @ normal), one.name))
    slices, doubled = _each_place_once(path, slices)
    _check_one_stack(path, slices)
    space = _grid(slices)
    check_plausible(path, space)
    remarks = [*passed_over, *doubled, *_misplaced(slices, space)]
    if slices[0].photometric == "MONOCHROME1":
        remarks.append("MONOCHROME1, shown with black and white exchanged: the values are read as they are")
    return slices, space, tuple(remarks)


def _slices_in(path: Path) -> tuple[list[Slice], list[str]]:
    """The slices of the one series in a folder or multi-frame file, in no order, and which localisers are left out."""
    found = {file: read_header(file) for file in (dicom_files(path) if path.is_dir() else [path])}
    headers = {file: header for file, header in found.items() if header is not None}
    if not headers:
        others = f" ({counted(len(found), 'DICOM file')} without images)" if found else ""
        where = "folder" if path.is_dir() else "file"
        raise ScanError(f"{path}: no DICOM series in this {where}{others}: name the folder that holds the slice files")
    localisers = [file for file, header in headers.items() if "LOCALIZER" in str(header.get("ImageType", "")).upper()]
    remarks = []
    if len(localisers) < len(headers):
        headers = {file: header for file, header in headers.items() if file not in localisers}
        if localisers:
            names = first_few([file.name for file in localisers])
            remarks = [f"{counted(len(localisers), 'localiser')} passed over ({names})"]
    _check_one_series(path, headers)
    slices = [one for file, header in headers.items() for one in slices_of(file, header)]
    if len(slices) == 1 and not path.is_dir():
        raise ScanError(f"{path}: one slice of a DICOM series: name the folder that holds the whole series")
    return slices, remarks


def _check_one_series(path: Path, headers: Mapping[Path, Dataset]) -> None:
    series: dict[str, list[Path]] = defaultdict(list)
    for file, header in headers.items():
        series[str(header.get("SeriesInstanceUID") or "without a UID")].append(file)
    if len(series) > 1:
        names = ", ".join(sorted(series))
        files = ", ".join(f"{counted(len(series[uid]), 'file')} as {series[uid][0].name}" for uid in sorted(series))
        raise ScanError(
            f"{path}: {len(series)} DICOM series in one folder ({names}: {files}); expected one: "
            "move each series into a folder of its own"
        )


def _check_alike(path: Path, slices: Sequence[Slice]) -> None:
    """Nothing, or ScanError when some slices differ from the others in size, orientation, spacing or kind of values."""
    first = slices[0]
    for what, told, apart in (
        ("size", lambda one: "×".join(map(str, one.shape)), lambda one: one.shape != first.shape),
        ("orientation", _cosines, lambda one: np.abs(one.directions - first.directions).max() > TURNED),
        (
            "pixel spacing",
            lambda one: "×".join(f"{edge:g}" for edge in one.spacing_mm) + " mm",
            lambda one: not np.allclose(one.spacing_mm, first.spacing_mm, rtol=1e-4),
        ),
        ("interpretation", lambda one: one.photometric, lambda one: one.photometric != first.photometric),
        ("stated rescaling", lambda one: one.rescaling, lambda one: one.rescaling != first.rescaling),
    ):
        if unlike := [one for one in slices if apart(one)]:
            away = unlike if 2 * len(unlike) <= len(slices) else [one for one in slices if one not in unlike]
            raise ScanError(
                f"{path}: {first.name} and {unlike[0].name} contradict each other: {what} {told(first)} against "
                f"{told(unlike[0])}; expected one stack of slices: move {first_few([one.name for one in away])} away"
            )


def _cosines(one: Slice) -> str:
    return "(" + ", ".join(f"{cosine:.4g}" for cosine in one.directions[:, :2].T.ravel() + 0.0) + ")"


def _each_place_once(path: Path, slices: Sequence[Slice]) -> tuple[list[Slice], list[str]]:
    """One slice for every place, of several with equal voxels the first, which is remarked on.

    Raises ScanError where slices at one place have other voxels: several stacks, which are named, or a contradiction.
    """
    along = _along(slices)
    near = min(SAME_PLACE_MM, SAME_PLACE * along[-1] / max(1, len(slices) - 1))
    places = [[slices[0]]]
    for one, gap in zip(slices[1:], np.diff(along), strict=True):
        if gap <= near:
            places[-1].append(one)
        else:
            places.append([one])
    again: list[str] = []
    for first, *others in places:
        for other in others:
            shift = float(np.linalg.norm(other.position_mm - first.position_mm))
            if shift > near + ROUNDED_MM or not same_voxels(first, other):
                raise _contradiction(path, places, first, other)
            again.append(f"{other.name} as {first.name}")
    told = f"{counted(len(again), 'slice')} there twice with equal voxels, counted once ({first_few(again, 3)})"
    return [first for first, *_ in places], [told] if again else []


def _along(slices: Sequence[Slice]) -> np.ndarray:
    """How far each slice lies from the first one along its normal, in mm."""
    return np.array([(one.position_mm - slices[0].position_mm) @ slices[0].directions[:, 2] for one in slices])


def _contradiction(path: Path, places: Sequence[Sequence[Slice]], one: Slice, other: Slice) -> ScanError:
    """What to say of two slices at one place: the stacks they belong to, where an attribute tells these apart."""
    here, there = ("(" + ", ".join(f"{edge:g}" for edge in slice_.position_mm) + ") mm" for slice_ in (one, other))
    where = here if here == there else f"{here} and {there}"
    both = f"{one.name} and {other.name} lie at one place, {where}, with other voxels"
    said = attributes([here for place in places for here in place])
    if stacks := _stacks(places, said):
        return _several(path, stacks, both)
    differ = [name for name in PHASES if said[one].get(name) != said[other].get(name)]
    how = ", ".join(f"{name} {said[one].get(name)} against {said[other].get(name)}" for name in differ[:3])
    return ScanError(
        f"{path}: {both} ({how or 'their headers tell them apart by nothing'}); expected one stack of slices: "
        "take the one that does not belong out of the folder"
    )


def _several(path: Path, stacks: Mapping[str, Sequence[Slice]], why: str) -> ScanError:
    listed = ", ".join(f"{name} ({counted(len(stack), 'slice')})" for name, stack in stacks.items())
    return ScanError(
        f"{path}: {len(stacks)} stacks of slices in one series: {listed}; {why}; "
        "expected one stack of slices: put the files of each into a folder of its own"
    )


def _check_one_stack(path: Path, slices: Sequence[Slice]) -> None:
    """Nothing, or ScanError where slices in order, one a place, are those of several stacks, or of none.

    Several have two frames of reference, or interleave: an attribute goes to another value and back. None is what a
    straight grid of mean distance would misrepresent: by a gap far beyond the usual one, or a slice far beside.
    """
    for keyword in (FRAME_OF_REFERENCE, *STACKS):
        stacks: dict[str, list[Slice]] = defaultdict(list)
        for one in slices:
            stacks[f"{keyword} {one.stated.get(keyword, 'none')}"].append(one)
        values = [one.stated.get(keyword) for one in slices]
        changes = [place for place, (here, there) in enumerate(pairwise(values), start=1) if here != there]
        if not len(slices) > len(stacks) > 1 or min(map(len, stacks.values())) == 1:  # ITK gives each slice a frame
            continue
        both = f"{slices[changes[0] - 1].name} and {slices[changes[0]].name}"
        if keyword == FRAME_OF_REFERENCE:
            raise _several(path, stacks, f"{both} have positions that can't be compared")
        if len(changes) >= len(stacks):
            raise _several(path, stacks, f"they interleave, as at {both}")
    if len(slices) < 2:
        return
    gaps = np.diff(_along(slices))
    usual, mean = float(np.median(gaps)), float(gaps.mean())
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
    return offsets - np.outer(_along(slices), slices[0].directions[:, 2])


def _beside(slices: Sequence[Slice]) -> np.ndarray:
    """How far each slice lies beside the line from the first to the last, as a tilted gantry gives it, in mm."""
    along, sideways = _along(slices), _sideways(slices)
    return np.linalg.norm(sideways - np.outer(along / (along[-1] or 1.0), sideways[-1]), axis=1)


def _stacks(places: Sequence[Sequence[Slice]], said: Mapping[Slice, Mapping[str, str]]) -> dict[str, list[Slice]]:
    """The slices by the attribute, or the two, that give each stack one slice a place; {} when there are none such."""
    count = max(map(len, places))
    values = {name: {one.get(name) for one in said.values()} for one in said.values() for name in one}
    known = [name for name in PHASES if name in values]
    varying = [name for name in (*known, *sorted(values.keys() - set(known))) if 2 <= len(values[name]) <= count]
    for names in (*((name,) for name in varying), *combinations(varying, 2)):
        stacks: dict[str, list[Slice]] = defaultdict(list)
        for place in places:
            for one in place:
                stacks[", ".join(f"{name} {said[one].get(name, 'none')}" for name in names)].append(one)
        at = {one: number for number, place in enumerate(places) for one in place}
        if len(stacks) == count and all(len({at[one] for one in stack}) == len(stack) > 1 for stack in stacks.values()):
            return dict(sorted(stacks.items()))
    return {}


def _grid(slices: Sequence[Slice]) -> Space:
    """The straight grid of slices in order: the first one's plane, and the mean distance along its normal."""
    first = slices[0]
    return Space(
        (len(slices), *first.shape),
        (float(_along(slices)[-1]) / (len(slices) - 1) if len(slices) > 1 else 1.0, *first.spacing_mm),
        as_direction(first.directions),
        triple(first.position_mm.tolist()),
    )


def _misplaced(slices: Sequence[Slice], space: Space) -> list[str]:
    """Remarks on slices that lie off the straight grid, along its normal or sideways."""
    remarks, along, step = [], _along(slices), space.spacing_mm[0]
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
