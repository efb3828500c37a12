"""Which slices of a DICOM folder or multi-frame file belong to which stack, or which two contradict each other.

Series are told apart by their UIDs; stacks of one series (phases, echoes, b-values) by slices that lie at one place
with other voxels, or that interleave. They are named by the attribute that tells them apart.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from pydicom import Dataset

from flarecps.errors import ScanError, counted, first_few
from flarecps.volumes.dicom_pixels import same_voxels
from flarecps.volumes.dicom_slices import (
    FRAME_OF_REFERENCE,
    STACKS,
    Slice,
    attributes,
    dicom_files,
    dicom_header,
    frame_count,
    slices_of,
)
from flarecps.volumes.links import check_reachable

TURNED = 1e-3  # cosines of slices of one stack differ by less
SAME_PLACE = 0.1  # of the mean distance: slices closer than this
SAME_PLACE_MM = 0.25  # and than this lie at one place
MISPLACED = 0.2  # of a voxel; and
ROUNDED_MM = 0.05  # positions are often written with one digit: a slice off its grid by more than both is remarked on
REGULAR = 0.05  # of the mean distance: slices of two passes that make one grid lie off it by less
OTHER_PLANE = 0.5  # the cosine between normals of two planes is less
THICK = 1.5  # times the distance of slices: passes of one acquisition are no thicker
# What tells the images of one place apart, the likeliest first
PHASES = (
    "AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex", "EchoNumbers", "EchoTime",
    "EffectiveEchoTime", "DiffusionBValue", "ImageType", "FrameType", "ComplexImageComponent", "TriggerTime",
    "NominalCardiacTriggerDelayTime", "NominalPercentageOfCardiacPhase", "InversionTime", "FlipAngle", "RepetitionTime",
    "ConvolutionKernel", "KVP", "StackID", "SeriesNumber", "SeriesDescription", "AcquisitionTime",
    "AcquisitionDateTime", "FrameAcquisitionDateTime", "ContentTime",
)  # fmt: skip
# The words of stacks' names; any other attribute is called by its keyword
WORDS = {
    "AcquisitionNumber": "acquisition", "TemporalPositionIdentifier": "phase", "TemporalPositionIndex": "phase",
    "EchoNumbers": "echo", "EchoTime": "te", "EffectiveEchoTime": "te", "DiffusionBValue": "b", "ImageType": "",
    "FrameType": "", "ComplexImageComponent": "", "TriggerTime": "trigger", "NominalPercentageOfCardiacPhase": "phase",
    "InversionTime": "ti", "FlipAngle": "flip", "RepetitionTime": "tr", "ConvolutionKernel": "kernel", "KVP": "kv",
    "StackID": "stack", "SeriesNumber": "series", "SeriesDescription": "", FRAME_OF_REFERENCE: "frame",
    "AcquisitionTime": "time",
}  # fmt: skip
_after_header: ContextVar[Callable[[], None]] = ContextVar("after_header", default=lambda: None)
Told: TypeAlias = tuple[tuple[str, str], ...]  # what tells a stack apart: keywords and values


@dataclass(frozen=True)
class Stacks:
    """The stacks in a folder or multi-frame file by name, "" where there is one; an error is what is wrong with one."""

    parts: Mapping[str, Sequence[Slice] | ScanError]
    why: str = ""  # there are several
    remarks: tuple[str, ...] = ()  # on what was passed over


def stacks_in(place: Path) -> Stacks:
    """The stacks of the series in a folder or multi-frame file. ScanError for none, and for damaged files."""
    files = list(dicom_files(place)) if place.is_dir() else [place]
    if not files:
        raise ScanError(f"{place}: no DICOM series in this folder: name the folder that holds the slice files")
    for file in files:
        check_reachable(file)
    states = [(file, file.stat()) for file in files]
    return _stacks_of(place, tuple((file, state.st_size, state.st_mtime_ns, state.st_ino) for file, state in states))


@contextmanager
def each_header(call: Callable[[], None]) -> Iterator[None]:
    """``call`` after each header that `stacks_in` reads within the block."""
    before = _after_header.set(call)
    try:
        yield
    finally:
        _after_header.reset(before)


@lru_cache(maxsize=16)  # discovery, sizes and reading ask in turn
def _stacks_of(place: Path, states: tuple[tuple[Any, ...], ...]) -> Stacks:
    """The stacks of the files at ``place``, whose ``states`` begin with their paths."""
    found, call = {}, _after_header.get()
    for file, *_ in states:
        found[file] = dicom_header(file)
        call()
    headers = {file: header for file, header in found.items() if header is not None}
    if not headers:
        where = "folder" if place.is_dir() else "file"
        raise ScanError(
            f"{place}: no DICOM series in this {where} ({counted(len(found), 'DICOM file')} without images): "
            "name the folder that holds the slice files"
        )
    series, remarks = _series(headers)
    parts: dict[str, Sequence[Slice] | ScanError] = {}
    why: list[str] = []
    if len(series) > 1:
        listed = ", ".join(
            f"{_said(said)} ({counted(len(files), 'file')} as {files[0].name})" for said, files in series.items()
        )
        why.append(f"{len(series)} DICOM series in one folder: {listed}")
    for said, files in series.items():
        name = plain_name(said) if len(series) > 1 else ""
        try:
            slices = [one for file in files for one in slices_of(file, headers[file])]
            if len(slices) == 1 and not place.is_dir():
                raise ScanError(f"{place}: one slice of a DICOM series: name the folder that holds the whole series")
            stacks, reason = _split(place, slices)
        except ScanError as error:
            if len(series) == 1:
                raise
            parts[name] = error
            continue
        why += [reason] if reason else []
        names = _names(stacks)
        parts |= {"_".join(filter(None, (name, names[stack]))): stacks[stack] for stack in stacks}
    return Stacks(parts, "; ".join(why), remarks)


def _names(stacks: Mapping[Told, Any]) -> dict[Told, str]:
    """A plain name, each another, for what tells stacks apart; "" where there is one."""
    if len(stacks) == 1:
        return dict.fromkeys(stacks, "")
    plain = {said: plain_name(said) for said in stacks}
    if len(set(plain.values())) < len(stacks):
        return {said: f"{plain[said]}-{number}" for number, said in enumerate(stacks, start=1)}
    return plain


def _series(headers: Mapping[Path, Dataset]) -> tuple[dict[Told, list[Path]], tuple[str, ...]]:
    """The files of each series by what it is called, and remarks on those that are passed over beside others.

    So are localisers, pictures without a place (screenshots, dose reports), and series of a single slice.
    """
    remarks = []
    kept = dict(headers)
    for what, is_one in (("localiser", _is_localiser), ("picture without a place", _is_picture)):
        out = [file for file, header in kept.items() if is_one(header)]
        if out and len(out) < len(kept) and (what == "localiser" or _apart(headers, out)):
            kept = {file: header for file, header in kept.items() if file not in out}
            remarks.append(f"{counted(len(out), what)} passed over ({first_few([file.name for file in out])})")
    by_uid: dict[str, list[Path]] = defaultdict(list)
    for file, header in kept.items():
        by_uid[str(header.get("SeriesInstanceUID") or "")].append(file)
    crossing = [uid for uid, files in by_uid.items() if _cross([kept[file] for file in files])]
    longest = max((len(files) for uid, files in by_uid.items() if uid not in crossing), default=0)
    for uid in (one for one in crossing if len(by_uid[one]) < 3 * longest):
        files = by_uid.pop(uid)
        listed = first_few([file.name for file in files], 3)
        remarks.append(f"a localiser of {len(files)} slices in three planes passed over ({listed})")
    single = [files[0] for files in by_uid.values() if len(files) == 1 and frame_count(files[0], kept[files[0]]) == 1]
    if single and len(single) < len(by_uid):
        by_uid = {uid: files for uid, files in by_uid.items() if files[0] not in single}
        remarks.append(
            f"{len(single)} series of a single slice passed over ({first_few([one.name for one in single])})"
        )
    uids = sorted(by_uid)
    numbers = [str(kept[by_uid[uid][0]].get("SeriesNumber") or "") for uid in uids]
    if len(set(numbers)) < len(uids) or "" in numbers:
        numbers = [str(number) for number in range(1, len(uids) + 1)]
    return {(("SeriesNumber", number),): by_uid[uid] for number, uid in zip(numbers, uids, strict=True)}, tuple(remarks)


def _is_localiser(header: Dataset) -> bool:
    return "LOCALIZER" in str(header.get("ImageType", "")).upper()


def _cross(headers: Sequence[Dataset]) -> bool:
    """Whether files of single slices lie in three planes at right angles, as an unmarked localiser's do."""
    normals: list[np.ndarray] = []
    for header in headers:
        with suppress(ValueError, TypeError):
            row, column = np.array(header.get("ImageOrientationPatient"), float).reshape(2, 3)
            with np.errstate(all="ignore"):
                normal = np.cross(row, column)
            if np.isfinite(normal).all() and all(abs(normal @ other) < OTHER_PLANE for other in normals):
                normals.append(normal)
    return len(normals) == 3


def _is_picture(header: Dataset) -> bool:
    framed = "PerFrameFunctionalGroupsSequence" in header
    return not framed and ("ImagePositionPatient" not in header or header.get("SamplesPerPixel") not in (None, 1))


def _apart(headers: Mapping[Path, Dataset], files: Sequence[Path]) -> bool:
    """Whether no other file is of a series of ``files``."""
    others = {headers[file].get("SeriesInstanceUID") for file in headers.keys() - set(files)}
    return others.isdisjoint({headers[file].get("SeriesInstanceUID") for file in files})


def in_order(slices: Sequence[Slice]) -> list[Slice]:
    normal = slices[0].directions[:, 2]
    return sorted(slices, key=lambda one: (float(one.position_mm @ normal), one.name))


def _split(path: Path, slices: Sequence[Slice]) -> tuple[dict[Told, list[Slice]], str]:
    """The stacks of a series' slices by what tells them apart, and where there are several, why they can't be one.

    Raises ScanError for slices that contradict each other without belonging to stacks.
    """
    _check_alike(path, slices)
    slices = in_order(slices)
    places, near = by_place(slices), same_place_mm(slices)
    for first, *others in places:
        for other in others:
            damage = None
            try:
                twice = is_twice(first, other, near)
            except ScanError as error:  # that of one stack, where there are several
                twice, damage = False, error
            if not twice:
                said = attributes(slices)
                if stacks := _stacks(places, said):
                    return stacks, _several(stacks, _at_one_place(first, other))
                raise damage or contradiction(path, first, other, said, len(slices) - len(places))
    if len(stacks := _interleaved([first for first, *_ in places])) > 1:
        at = {one: key for key, stack in stacks.items() for one in stack}
        whole = {key: [one for place in places if at[place[0]] == key for one in place] for key in stacks}
        ordered = [at[place[0]] for place in places]
        change = next(n for n in range(1, len(ordered)) if ordered[n] != ordered[n - 1])
        both = f"{places[change - 1][0].name} and {places[change][0].name}"
        apart = ordered[0][0][0] == FRAME_OF_REFERENCE
        why = f"{both} have positions that can't be compared" if apart else f"they interleave, as at {both}"
        return whole, _several(whole, why)
    return {(): slices}, ""


def _said(told: Told) -> str:
    return ", ".join(f"{keyword} {value}" for keyword, value in told)


def plain_name(told: Told) -> str:
    """What a stack is called in the names of paths and cases.

    >>> plain_name((("SeriesNumber", "3"), ("DiffusionBValue", "800.0"), ("ImageType", "['ORIGINAL', 'IN_PHASE']")))
    'series3_b800_ORIGINAL-IN-PHASE'
    """
    return "_".join(_word(keyword, value) for keyword, value in told)


def _word(keyword: str, value: str) -> str:
    word = WORDS.get(keyword, keyword)
    value = value.rpartition(".")[2] if keyword.endswith("UID") else re.sub(r"(?<=\d)\.0$", "", value)
    between = "-" if word and not value[:1].isdigit() else ""
    text = re.sub(r"([^A-Za-z0-9.+]|(?<!\d)\.|\.(?!\d))+", "-", f"{word}{between}{value}")
    return text.strip("-") or "none"


def _check_alike(path: Path, slices: Sequence[Slice]) -> None:
    """Nothing, or ScanError when some slices differ from the others in size, orientation, spacing or kind of values."""
    for what, told, are_alike in (
        ("size", lambda one: "×".join(map(str, one.shape)), lambda one, other: one.shape == other.shape),
        ("orientation", _cosines, lambda one, other: np.abs(one.directions - other.directions).max() <= TURNED),
        (
            "pixel spacing",
            lambda one: "×".join(f"{edge:g}" for edge in one.spacing_mm) + " mm",
            lambda one, other: np.allclose(one.spacing_mm, other.spacing_mm, rtol=1e-4),
        ),
        ("interpretation", lambda one: one.photometric, lambda one, other: one.photometric == other.photometric),
        ("stated rescaling", lambda one: one.rescaling, lambda one, other: one.rescaling == other.rescaling),
    ):
        groups: list[list[Slice]] = []
        for one in slices:
            for group in groups:
                if are_alike(one, group[0]):
                    group.append(one)
                    break
            else:
                groups.append([one])
        if len(groups) > 1:
            most = max(groups, key=len)
            others = [group for group in groups if group is not most]
            first, unlike = (one for one in slices if one in (most[0], others[0][0]))
            away = [one.name for group in others for one in group]
            raise ScanError(
                f"{path}: {first.name} and {unlike.name} contradict each other: {what} {told(first)} against "
                f"{told(unlike)}; expected one stack of slices: {_moved(away)}"
            )


def _moved(names: Sequence[str]) -> str:
    """The advice to move files away, or apart where they are too many to be named."""
    if len(names) <= 5:
        return f"move {', '.join(names)} away"
    return f"move {first_few(names)} ({len(names)} in all) into a folder of their own"


def _cosines(one: Slice) -> str:
    return "(" + ", ".join(f"{cosine:.4g}" for cosine in one.directions[:, :2].T.ravel() + 0.0) + ")"


def along_normal(slices: Sequence[Slice]) -> np.ndarray:
    """How far each slice lies from the first one along its normal, in mm."""
    return np.array([(one.position_mm - slices[0].position_mm) @ slices[0].directions[:, 2] for one in slices])


def same_place_mm(slices: Sequence[Slice]) -> float:
    """How close slices in order lie, in mm, that lie at one place."""
    return min(SAME_PLACE_MM, SAME_PLACE * float(along_normal(slices)[-1]) / max(1, len(slices) - 1))


def by_place(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Slices in order by the place they lie at."""
    near, places = same_place_mm(slices), [[slices[0]]]
    for one, gap in zip(slices[1:], np.diff(along_normal(slices)), strict=True):
        if gap <= near:
            places[-1].append(one)
        else:
            places.append([one])
    return places


@lru_cache(maxsize=1024)  # the split of a folder and the reading of its stack ask in turn
def is_twice(first: Slice, other: Slice, near: float) -> bool:
    shift = float(np.linalg.norm(other.position_mm - first.position_mm))
    return shift <= near + ROUNDED_MM and same_voxels(first, other)


def _at_one_place(one: Slice, other: Slice) -> str:
    here, there = ("(" + ", ".join(f"{edge:g}" for edge in slice_.position_mm) + ") mm" for slice_ in (one, other))
    where = here if here == there else f"{here} and {there}"
    return f"{one.name} and {other.name} lie at one place, {where}, with other voxels"


def contradiction(
    path: Path, one: Slice, other: Slice, said: Mapping[Slice, Mapping[str, str]], again: int = 1
) -> ScanError:
    """What to say of two slices at one place that belong to no stacks; ``again``: slices at places of others."""
    differ = [name for name in PHASES if said[one].get(name) != said[other].get(name)]
    how = ", ".join(f"{name} {said[one].get(name)} against {said[other].get(name)}" for name in differ[:3])
    cure = "take the one that does not belong out of the folder"
    if again > 1:
        count = "InstanceNumber"
        numbers = said[one].get(count), said[other].get(count)
        told = " ({} {} and {} are of two)".format(count, *numbers) if numbers[0] != numbers[1] else ""
        cure = f"put the files of each scan into a folder of its own{told}"
        how = f"{how or 'their headers tell them apart by nothing'}, as {again - 1} more"
    return ScanError(
        f"{path}: {_at_one_place(one, other)} ({how or 'their headers tell them apart by nothing'}); expected one "
        f"stack of slices: {cure}"
    )


def _several(stacks: Mapping[Told, Sequence[Slice]], why: str) -> str:
    listed = ", ".join(f"{_said(told)} ({counted(len(stack), 'slice')})" for told, stack in stacks.items())
    return f"{len(stacks)} stacks of slices in one series: {listed}; {why}"


def _interleaved(slices: Sequence[Slice]) -> dict[Told, list[Slice]]:
    """Slices in order, one a place, by what tells several stacks apart; one or none where they are one stack.

    Several have two frames of reference, or interleave: an attribute goes to another value and back. Two passes of
    one acquisition do, too, and make one regular grid of slices no thicker than its steps.
    """
    for keyword in (FRAME_OF_REFERENCE, *STACKS):
        stacks: dict[Told, list[Slice]] = defaultdict(list)
        for one in slices:
            stacks[((keyword, one.stated.get(keyword, "none")),)].append(one)
        values = [one.stated.get(keyword) for one in slices]
        changes = sum(here != there for here, there in pairwise(values))
        if not len(slices) > len(stacks) > 1 or min(map(len, stacks.values())) == 1:  # ITK gives each slice a frame
            continue
        if keyword == "AcquisitionNumber" and _is_one_grid(slices):
            continue
        if keyword == FRAME_OF_REFERENCE or changes >= len(stacks):
            return dict(stacks)
    return {}


def _is_one_grid(slices: Sequence[Slice]) -> bool:
    """Whether slices in order lie at equal steps and are no thicker than these: passes of one acquisition."""
    along = along_normal(slices)
    step = along[-1] / (len(slices) - 1)
    thick = max((one.thickness_mm or 0.0 for one in slices), default=0.0)
    off = np.abs(along - step * np.arange(len(slices))).max()
    return bool(off <= max(ROUNDED_MM, REGULAR * step) and thick < THICK * step)


def _stacks(places: Sequence[Sequence[Slice]], said: Mapping[Slice, Mapping[str, str]]) -> dict[Told, list[Slice]]:
    """The slices by the attribute, or the two, that give each stack one slice a place; {} when there are none such."""
    count = max(map(len, places))
    values = {name: {one.get(name) for one in said.values()} for one in said.values() for name in one}
    known = [name for name in PHASES if name in values]
    varying = [name for name in (*known, *sorted(values.keys() - set(known))) if 2 <= len(values[name]) <= count]
    for names in (*((name,) for name in varying), *combinations(varying, 2)):
        stacks: dict[Told, list[Slice]] = defaultdict(list)
        for place in places:
            for one in place:
                stacks[tuple((name, said[one].get(name, "none")) for name in names)].append(one)
        at = {one: number for number, place in enumerate(places) for one in place}
        if len(stacks) == count and all(len({at[one] for one in stack}) == len(stack) > 1 for stack in stacks.values()):
            return dict(sorted(stacks.items()))
    return {}
