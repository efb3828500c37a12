"""Scans and label maps from files and back: every format in, one canonical form, the scan's own grid out.

Whatever the file's voxel order, arrays are in canonical RAS order (see `flarecps.typing`); a `Source` remembers the
way back, so a segmentation can be written on exactly the voxels of the scan it belongs to.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from flarecps.anatomy import Organ
from flarecps.errors import GridError, ScanError, cure_of
from flarecps.typing import LabelArray, ScanArray
from flarecps.volumes import dicom, itk, nifti
from flarecps.volumes.dicom_slices import SUFFIXES, is_dicom_file
from flarecps.volumes.headers import (
    NIFTI,
    ScanHeader,
    StoredScan,
    check_length,
    check_plausible,
    is_nifti,
    read_voxels,
)
from flarecps.volumes.label_tables import SEGMENTATION, segment_fields
from flarecps.volumes.links import check_reachable, place_of, stack_of
from flarecps.volumes.mha import read_mha_header
from flarecps.volumes.nrrd import read_nrrd_header
from flarecps.volumes.space import AS_IT_IS, Reorientation, Space, canonical_reorientation, matching_reorientation

T = TypeVar("T")
ScanKind: TypeAlias = Literal["nifti", "nrrd", "mha", "dicom"]

READABLE = "NIfTI (.nii, .nii.gz), NRRD, MHA, a folder holding one DICOM series or a multi-frame DICOM file"
HEADER_READERS = {"nifti": nifti.read_nifti_header, "nrrd": read_nrrd_header, "mha": read_mha_header}
DICOM_BYTES, DICOM_READING_BYTES = 2, 6  # a voxel of a series, in memory and while it is read
TWO_FILES = (".hdr", ".img")  # of NIfTI or Analyze: told of, not read
WHOLE_TOLERANCE = 1e-3  # labels stored as scaled or float numbers are whole within rounding


@dataclass(frozen=True)
class Source:
    """Where a volume came from and how its voxels were reordered: what is needed to write results on its grid."""

    path: Path
    stored: Space
    reorientation: Reorientation
    kind: ScanKind


@dataclass(frozen=True)
class Volume:
    """A scan or label map in canonical RAS voxel order, with its grid, its source and remarks on its header.

    ``array`` is (channel, slice, row, column); integers as stored, otherwise float32.
    """

    array: ScanArray
    space: Space
    source: Source
    warnings: tuple[str, ...] = ()


def read_volume(path: Path | str) -> Volume:
    """The scan at ``path`` (a file, or a folder with one DICOM series) as one channel in canonical order.

    Of several stacks in one folder (phases, echoes, series) ``FOLDER/stack:NAME`` is one; for ``FOLDER`` alone the
    error names them.

    Raises ScanError for a missing, truncated or foreign file, several stacks, NaN or infinite voxels, a scan of one
    voxel along any axis, and a grid that is no patient's.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "dicom":
        stored = _read_by(dicom.read_series, path)
    else:
        header = _read_by(read_header, path)
        stored = StoredScan(read_voxels(header), header.space, header.warnings)
    source = Source(path, stored.space, canonical_reorientation(stored.space.direction), kind)
    space = source.reorientation.apply_to_space(stored.space)
    for name, edge in zip(("slice", "row", "column"), space.shape, strict=True):
        if edge < 2:
            raise ScanError(
                f"{path}: a one-slice scan ({'×'.join(map(str, space.shape))} voxels, one along the {name} axis); "
                "expected a 3D scan of at least 2 voxels along every axis: give the whole series"
            )
    is_float = stored.array.dtype.kind == "f"
    if is_float and (strange := stored.array.size - int(np.count_nonzero(np.isfinite(stored.array)))):
        raise ScanError(
            f"{path}: {strange} voxels are NaN or infinite; expected numbers everywhere: "
            "export the scan again, or fill them with the value of air"
        )
    array = np.ascontiguousarray(source.reorientation.apply(stored.array))[None]
    return Volume(array, space, source, stored.warnings)


def read_header(path: Path | str) -> ScanHeader:
    """What the header of an image file says, checked: what is read by it takes no more time and memory than it says.

    Raises ScanError as `read_volume`, for all that a header can tell, and for a DICOM series, which has none.
    """
    path = Path(path)
    kind = _kind(path)
    if kind not in HEADER_READERS:
        raise ScanError(f"{path}: a DICOM series has no header of its own")
    try:
        header = HEADER_READERS[kind](path)
    except OSError as error:
        raise ScanError(f"{path}: can't be opened ({error.strerror}): {cure_of(error, 'check the path')}") from error
    check_length(header)
    check_plausible(path, header.space)
    return header


def read_channels(paths: Sequence[Path | str]) -> Volume:
    """Several single-channel files of one patient as the channels of one volume, in the order given.

    Source and voxel order are the first file's. Raises ScanError when the grids differ, and as `read_volume`.
    """
    if not paths:
        raise ScanError("no image file was given for this case: expected one file per channel")
    first = read_volume(paths[0])
    whose, cure = first.source.path.name, "resample the channels to one grid first"
    volumes = [first, *(on_grid(read_volume(path), first.space, whose, cure) for path in paths[1:])]
    if len(volumes) == 1:
        return first
    warnings = tuple(f"{volume.source.path.name}: {remark}" for volume in volumes for remark in volume.warnings)
    space, source = first.space, first.source
    dtype = np.result_type(*(volume.array for volume in volumes))
    channels = np.empty((len(volumes), *space.shape), dtype)
    del first
    for channel in channels:  # a file's own array is let go once it is copied: all of them twice would be too much
        channel[...] = volumes.pop(0).array[0]
    return Volume(channels, space, source, warnings)


def on_grid(volume: Volume, space: Space, whose: str, cure: str = "") -> Volume:
    """``volume`` with its voxels in the order of ``space``, which lies on them; ``volume`` itself when they are.

    Its own file's order does not matter, nor does the rounding of either header (`Space.same_grid`). Raises ScanError
    when the grids differ; ``whose`` grid it should be and the ``cure`` are for its message.
    """
    reordering = matching_reorientation(volume.space.direction, space.direction)
    reordered = reordering.apply_to_space(volume.space)
    if difference := reordered.difference(space):
        cure = f": {cure}" if cure else ""
        raise ScanError(f"{volume.source.path}: not on the grid of {whose} ({difference}){cure}")
    if reordering == AS_IT_IS:
        return volume
    source = replace(volume.source, reorientation=volume.source.reorientation.then(reordering))
    return replace(volume, array=np.ascontiguousarray(reordering.apply(volume.array)), space=reordered, source=source)


def read_labels_on(path: Path | str, space: Space, whose: str, cure: str = "") -> LabelArray:
    """The label map (slice, row, column) at ``path`` in the voxel order of ``space``; errors as `on_grid`'s."""
    return on_grid(read_labels(path), space, whose, cure).array[0]


def in_file_order(volume: Volume) -> Volume:
    """The same scan with its voxels in the order of its file; ``volume`` itself when it is that already.

    Its source knows no reordering any more: what is written by it is taken to be in the file's order.
    """
    reorientation = volume.source.reorientation
    if reorientation == AS_IT_IS:
        return volume
    space = reorientation.inverse().apply_to_space(volume.space)
    array = np.ascontiguousarray(reorientation.undo(volume.array))
    return replace(volume, array=array, space=space, source=replace(volume.source, reorientation=AS_IT_IS))


def read_labels(path: Path | str, cast: bool = False) -> Volume:
    """The label map at ``path`` as uint8 (1, slice, row, column).

    Raises ScanError for fractions, negative numbers and numbers above 255, and as `read_volume`. With ``cast`` such
    whole numbers are taken modulo 256, as NumPy casts them, with a remark.
    """
    volume = read_volume(path)
    labels, lowest, highest, fractions = np.empty(volume.array.shape, np.uint8), 0.0, 0.0, 0
    if volume.array.dtype == np.uint8:
        return volume
    for section, result in zip(volume.array[0], labels[0], strict=True):  # one slice at a time: files may be float64
        whole = np.rint(section) if section.dtype.kind == "f" else section
        fractions += int(np.count_nonzero(np.abs(section - whole) > WHOLE_TOLERANCE)) if whole is not section else 0
        lowest, highest = min(lowest, float(whole.min())), max(highest, float(whole.max()))
        with np.errstate(invalid="ignore"):
            result[...] = whole.astype(np.int64) & 255
    if fractions:
        raise ScanError(
            f"{path}: {fractions} voxels are not whole numbers; expected labels 0, 1, 2, …: "
            "is it the scan, or a map resampled without nearest neighbour?"
        )
    warnings = volume.warnings
    if lowest < 0 or highest > 255:
        doubt = "is it the scan instead?"
        if lowest == -1 and highest <= 255:
            doubt = "'flarecps relabel MAPS NEW --ids=-1=0' clears what nobody looked at."
        found = f"values from {lowest:g} to {highest:g}; expected labels from 0 to 255: {doubt}"
        if not cast:
            raise ScanError(f"{path}: {found}")
        warnings += (f"{found} They were taken modulo 256",)
    return replace(volume, array=labels, warnings=warnings)


def read_space(path: Path | str) -> Space:
    """The canonical grid of the scan at ``path``, from its header (of a DICOM series, from every slice's)."""
    path = Path(path)
    stored = _read_by(dicom.read_series_space, path) if _kind(path) == "dicom" else _read_by(read_header, path).space
    return canonical_reorientation(stored.direction).apply_to_space(stored)


def read_sizes(path: Path | str) -> tuple[Space, int, int]:
    """What the scan at ``path`` will take, by its header: its canonical grid, the bytes of its array, and at most the
    bytes of memory while it is read. Of DICOM it is what CT takes.
    """
    space = read_space(path)
    if _kind(Path(path)) == "dicom":
        voxels = space.shape[0] * space.shape[1] * space.shape[2]
        return space, DICOM_BYTES * voxels, DICOM_READING_BYTES * voxels
    header = read_header(path)
    return space, header.array_bytes, header.reading_bytes


def write_labels(path: Path | str, labels: LabelArray, source: Source, organs: Sequence[Organ] = ()) -> None:
    """Write canonical labels (slice, row, column) as uint8 in the source scan's own voxel order, atomically.

    By the ending NIfTI, where a NIfTI source's orientation fields are carried over as they are (while its file
    exists), or a segmentation for 3D Slicer (.seg.nrrd). Either holds names and colours of ``organs``. Raises
    ScanError for another ending, and when the size is not the scan's.
    """
    path = Path(path)
    if not is_result_file(path):
        raise ScanError(
            f"{path}: segmentations are written as NIfTI or for 3D Slicer: choose a name ending in .nii.gz, .nii or "
            f"{SEGMENTATION}"
        )
    stored = stored_labels(labels, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_nifti(path):
        itk.write_file(path, stored, source.stored, segment_fields(organs, source.stored.shape))
    elif source.kind == "nifti" and source.path.is_file():
        nifti.write_nifti_like(path, stored, source.path, organs)
    else:
        nifti.write_nifti(path, stored, source.stored, organs)


def stored_labels(labels: LabelArray, source: Source) -> LabelArray:
    """Canonical labels as uint8 in the source's own voxel order. ScanError when their size is not the scan's."""
    stored = np.ascontiguousarray(source.reorientation.undo(np.asarray(labels, np.uint8)))
    if stored.shape != tuple(source.stored.shape):
        raise ScanError(f"{source.path}: {stored.shape} labels for a scan of {source.stored.shape} voxels")
    return stored


def write_volume(path: Path | str, array: np.ndarray, space: Space) -> None:
    """Write voxels (slice, row, column) on the grid ``space``, in any voxel order, as NIfTI, NRRD or MHA; atomic."""
    path = Path(path)
    voxels = np.asarray(array)
    if voxels.dtype == bool:
        voxels = voxels.astype(np.uint8)
    if voxels.shape != tuple(space.shape):
        raise ScanError(f"{path}: {voxels.shape} voxels do not fill a grid of {space.shape}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_nifti(path):
        nifti.write_nifti(path, voxels, space)
    elif path.suffix.lower() in itk.WRITABLE:
        itk.write_file(path, voxels, space)
    else:
        raise ScanError(f"{path}: unknown image format; expected a name ending in .nii.gz, .nii, .nrrd or .mha")


def is_scan_file(path: Path) -> bool:
    """Whether a file's name is that of a NIfTI, NRRD or MHA image."""
    return not path.name.startswith(".") and (is_nifti(path) or path.suffix.lower() in itk.KINDS)


def is_result_file(path: Path) -> bool:
    """Whether a file's name is one that labels are written to: NIfTI, or a segmentation of 3D Slicer."""
    return is_nifti(path) or is_segmentation(path)


def is_segmentation(path: Path) -> bool:
    """Whether a file's name says that it is a segmentation of 3D Slicer, never a scan."""
    return path.name.lower().endswith(SEGMENTATION)


def scan_name(path: Path | str) -> str:
    """A scan's name without its image suffix: ``case_01.nii.gz`` → ``case_01``; a folder's name as it is.

    >>> scan_name("imagesTs/case_01.nii.gz")
    'case_01'
    """
    path = Path(path)
    for suffix in (*reversed(NIFTI), SEGMENTATION, *itk.KINDS, *SUFFIXES, *TWO_FILES):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def _read_by(reader: Callable[[Path], T], path: Path) -> T:
    """What ``reader`` makes of a file; a grid that cannot be is the file's fault."""
    try:
        return reader(path)
    except GridError as error:
        raise ScanError(f"{path}: {error}") from error


def _kind(path: Path) -> ScanKind:
    check_reachable(path)
    if stack_of(path) and place_of(path).exists():
        path = place_of(path)
        if not path.is_dir() and not is_dicom_file(path):
            raise ScanError(f"{path}: not DICOM, so it holds no stacks: name the file itself")
        return "dicom"
    if path.is_dir():
        return "dicom"
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder; expected {READABLE}: check the path")
    if is_nifti(path):
        return "nifti"
    if path.suffix.lower() in itk.KINDS:
        return "nrrd" if itk.KINDS[path.suffix.lower()] == "nrrd" else "mha"
    if is_dicom_file(path):
        return "dicom"
    if path.suffix.lower() in TWO_FILES:
        raise _in_two_files(path)
    raise ScanError(f"{path}: not a known image format; expected {READABLE}")


def _in_two_files(path: Path) -> ScanError:
    """What to say of an image in two files, with the command that makes one of them."""
    kind, doubt = "Analyze", ", and check left and right, which Analyze does not tell"
    with suppress(OSError), open(path.with_suffix(TWO_FILES[0]), "rb") as file:
        if file.read(348)[344:347] == b"ni1":
            kind, doubt = "NIfTI", ""
    code = f"import nibabel; nibabel.save(nibabel.load({str(path)!r}), {str(path.with_suffix('.nii.gz'))!r})"
    command = shlex.join(["python", "-c", code])
    return ScanError(
        f"{path}: {kind} in two files (.hdr, .img); expected one: {command} joins them; move both away then{doubt}"
    )
