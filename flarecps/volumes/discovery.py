"""Which scans there are and what each case is called: one walk and one rule for all commands (docs/case-names.md)."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flarecps.batch_processing import progress_bar
from flarecps.case_names import ALIKE, composed, taken_by, why_not_plain
from flarecps.errors import DatasetError, ScanError
from flarecps.text_files import read_own_json
from flarecps.volumes.dicom import stacks_at
from flarecps.volumes.dicom_slices import SUFFIXES, scans_in
from flarecps.volumes.dicom_stacks import each_header
from flarecps.volumes.io import TWO_FILES, is_scan_file, is_segmentation, scan_name
from flarecps.volumes.links import leads_nowhere, place_of, stack_of

RESULTS_MARK = "labels predicted by flarecps segment"  # in the dataset.json of results, which are no scans
MANY_FILES = 2000  # of DICOM, whose headers take seconds
MACOS = "__MACOSX"  # the folder of what macOS adds to archives
_NUMBERED = re.compile(r"(?P<case>.+)_(?P<number>\d{4})")  # nnU-Net: CASE_0000.nii.gz


@dataclass(frozen=True)
class FoundCase:
    """One case's files, a file or DICOM folder per channel in order; ``fault``: why it can't be used, if so."""

    name: str
    images: tuple[Path, ...]
    fault: str = ""


def find_scans(folder: Path | str, leave_out: Collection[Path] = ()) -> list[Path]:
    """Every scan at or below ``folder``, sorted: image files, multi-frame DICOM files, folders that hold DICOM slices;
    of several stacks in one of these each (FOLDER/stack:NAME).

    A multi-frame file that is the only DICOM scan of a folder below counts as that folder.

    Links are followed, each loop once. Left out, at any depth: what starts with a dot, ``__MACOSX``, the folders
    ``leave_out``, and results of ``segment`` below ``folder``. Links that lead nowhere, folders that can't be opened
    and headers of images in two files are listed, too: reading them says so. Raises ScanError for a missing folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ScanError(f"{folder}: no such folder: check the path")
    found: list[Path] = []
    dicom: list[Path] = []  # of which it is still to be seen what stacks they hold
    unwanted = {os.path.realpath(path) for path in leave_out}
    entered: set[str] = set()
    waiting: list[tuple[Path, frozenset[str], int]] = [(folder, frozenset(), 0)]  # with its ancestors; links on the way
    while waiting:
        place, ancestors, links = waiting.pop()
        real = os.path.realpath(place)
        # What links in linked folders lead to is entered once, or folders that link each other would multiply.
        if (
            real in ancestors
            or real in unwanted
            or (links > 1 and real in entered)
            or (ancestors and _is_results(place))
        ):
            continue
        entered.add(real)
        try:
            inside = [path for path in sorted(place.iterdir()) if not path.name.startswith((".", MACOS))]
            series = scans_in(place)
        except OSError:
            found.append(place)
            continue
        if len(series) == 1 and ancestors:
            series = [place]  # whose name counts; of the folder given, the file's
        lost = [path for path in inside if leads_nowhere(path)]
        slices = [path for path in lost if series == [place] or (not series and path.suffix.lower() in SUFFIXES)]
        (found if slices else dicom).extend([place] if slices else series)
        found += [path for path in lost if path not in slices and path not in series]
        for path in inside:
            if path in lost:
                continue
            if path.is_dir():
                waiting.append((path, ancestors | {real}, links + path.is_symlink()))
            elif is_scan_file(path) or _is_of_two(path, inside):  # or a pipe: reading it says so
                found.append(path)
    return sorted([*found, *_stacks_at_each(dicom)])


def _stacks_at_each(places: Sequence[Path]) -> list[Path]:
    """The stacks in DICOM folders and multi-frame files; where these are many files, a bar says how far it is."""
    files = sum(len(os.listdir(place)) if place.is_dir() else 1 for place in places)
    shown = files >= MANY_FILES
    with progress_bar("Reading DICOM headers", files, "file", shown) as advance, each_header(advance):
        return [one for place in places for one in stacks_at(place)]


def _is_of_two(path: Path, beside: Collection[Path]) -> bool:
    """Whether a file is the header of an image in two files, which reading refuses with the way out."""
    return path.suffix.lower() == TWO_FILES[0] and any(
        one.stem == path.stem and one.suffix.lower() == TWO_FILES[1] for one in beside
    )


def _is_results(folder: Path) -> bool:
    return read_own_json(folder / "dataset.json").get("description") == RESULTS_MARK


def find_cases(
    place: Path,
    channels: int = 1,
    labels: Collection[str] = (),
    ending: str | None = None,
    leave_out: Collection[Path] = (),
) -> list[FoundCase]:
    """The cases of a folder (or of one scan), sorted by name; what contradicts the rule is the fault of its case.

    ``labels``: names of label maps (``label_name``), where known; ``ending``: only image files of this ending count, in
    any case of letters. Raises ScanError for a missing folder, and when files are there but none of that ending.
    """
    is_one = not place.is_dir()
    if is_one and len(stacks := stacks_at(place)) + bool(stack_of(place)) > 1:
        return [_case(_without_number(label_name(path))[0], [(0, path)], channels) for path in stacks]
    if is_one:
        paths = sorted({place, *filter(_may_be_channel, place.parent.iterdir())})
    else:
        paths = [path for path in find_scans(place, leave_out) if not is_segmentation(path)]
    if ending is not None and paths:
        first = paths[0]
        paths = [path for path in paths if not is_scan_file(path) or path.name.lower().endswith(ending.lower())]
        if not paths:
            raise ScanError(
                f'{first}: no file there ends in {ending}, which dataset.json gives as "file_ending": correct it there'
            )
    names = _split_numbers([label_name(path, None if is_one else place) for path in paths], channels, labels)
    parts: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for (name, number), path in zip(names, paths, strict=True):
        if not is_one or path == place or channels > 1:  # beside one file of several lie its other channels
            parts[name].append((number, path))
    found = [_case(name, sorted(files), channels) for name, files in sorted(parts.items())]
    return [case for case in found if place in case.images] if is_one else found


def _may_be_channel(path: Path) -> bool:
    if path.suffix.lower() in SUFFIXES:
        return not path.name.startswith(".")
    return is_scan_file(path) and not is_segmentation(path)


def label_maps(folder: Path, leave_out: Collection[Path] = ()) -> dict[str, Path]:
    """The label maps of a folder by ``label_name``, sorted; DatasetError where two have one name or there are none."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; expected label maps (NIfTI, NRRD, MHA)")
    found: dict[str, Path] = {}
    known: dict[str, str] = {}
    for path in find_scans(folder, leave_out):
        name = label_name(path, folder)
        if other := taken_by(name, known):
            cure = "; keep one of the two" if other == name else ALIKE
            raise DatasetError(f"{path}: the case name {name!r} is taken by {found[other].name}{cure}")
        found[name] = path
    if not found:
        raise DatasetError(f"{folder}: no label maps in this folder; expected files such as CASE.nii.gz")
    return found


def label_name(path: Path, below: Path | None = None) -> str:
    """A label map's case, and a scan's name with its channel: the file's name without image ending, or the folder's.

    Given the folder ``below``, folders on the way are part of it; a stack's name comes before the channel's number.

    >>> label_name(Path("scans/a_0000/stack:echo2"), Path("scans"))
    'a_echo2_0000'
    >>> label_name(Path("scans/a/SERIES/x.nii.gz"), Path("scans"))
    'a_SERIES_x'
    """
    if stack := stack_of(path):
        name, number = _without_number(label_name(place_of(path), below))
        return f"{name}_{stack}{number}"
    if below is None or path == below:
        return composed(scan_name(Path(os.path.abspath(path))))
    return composed("_".join((*path.relative_to(below).parts[:-1], scan_name(path))))


def _without_number(name: str) -> tuple[str, str]:
    """A name, and the channel's number at its end (_0000), or ""."""
    return (name[:-5], name[-5:]) if _NUMBERED.fullmatch(name) else (name, "")


def labels_of(name: str, labels: Mapping[str, Path]) -> Path | None:
    """The label map of a case among those of a folder by ``label_name``: CASE, else CASE_0000 as some images are."""
    return labels.get(name) or labels.get(f"{name}_0000")


def by_case(maps: Mapping[str, Path], others: Mapping[str, Path]) -> dict[str, Path]:
    """Label maps by the names of the cases they share with ``others``: CASE_0000 is CASE where that alone has a fellow.

    >>> by_case({"a_0000": Path("p/a_0000.nii")}, {"a": Path("r/a.nii")}).keys()
    dict_keys(['a'])
    """
    short = {name: name.removesuffix("_0000") for name in maps}
    return {
        case if name not in others and case in others and case not in maps else name: maps[name]
        for name, case in short.items()
    }


def _split_numbers(names: Sequence[str], channels: int, labels: Collection[str]) -> list[tuple[str, int]]:
    """(case, channel) of each name: four digits at its end are the channel's number, unless they count the cases.

    They do so only where cases have one channel, and for a beginning that has other numbers than _0000, no label map of
    its own, and either label maps with the numbers, no _0000, or the only _0000 in the folder.
    """
    matches = [_NUMBERED.fullmatch(name) for name in names]
    numbers: dict[str, set[int]] = defaultdict(set)
    for match in filter(None, matches):
        numbers[match["case"]].add(int(match["number"]))
    with_first = sum(0 in one for one in numbers.values())
    with_labels = {match["case"] for match in map(_NUMBERED.fullmatch, labels) if match}
    counting = {
        case
        for case, found in numbers.items()
        if channels == 1
        and found != {0}
        and case not in labels
        and (case in with_labels or 0 not in found or with_first == 1)
    }
    return [
        (match["case"], int(match["number"])) if match and match["case"] not in counting else (name, 0)
        for name, match in zip(names, matches, strict=True)
    ]


def _case(name: str, files: Sequence[tuple[int, Path]], channels: int) -> FoundCase:
    numbers, images = [number for number, _ in files], tuple(path for _, path in files)
    if reason := why_not_plain(name):
        return FoundCase(
            name, images, f"{images[0].parent}: the case name {ascii(name)[:80]} {reason}: rename the file"
        )
    if len(set(numbers)) < len(numbers):
        both = next(files[i][1] for i in range(1, len(files)) if numbers[i] == numbers[i - 1])
        return FoundCase(name, images, f"{images[0]} and {both}: both are case {name!r}; rename or remove one of them")
    if numbers != list(range(channels)):
        there = ", ".join(f"_{number:04d}" for number in numbers)
        expected = "one file" if channels == 1 else f"_0000 to _{channels - 1:04d}, one file each"
        return FoundCase(name, images, f"{images[0]}: case {name!r} has the channels {there}; expected {expected}")
    return FoundCase(name, images)
