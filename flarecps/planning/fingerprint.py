"""What a data set looks like: shapes, spacings, orientations, voxels per class, and exact HU histograms.

Every number is taken after cropping to the field of view, as preprocessing does. Cases are put together by addition of
whole numbers, so the result is the same to the bit for any order of cases, number of workers, or shards. Labelled and
unlabelled scans are pooled for all that needs no labels; test scans are never looked at.

With a folder, every case's fingerprint is a JSON file ``cases/NAME.json`` there, written whole or not at all, that says
which files it was made from; one that is out of date is made again. Shards of a job array share the folder.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flarecps import atomic
from flarecps.batch_processing import Outcome, process_cases, shard
from flarecps.case_names import file_name
from flarecps.datasets.catalogue import Case, Catalogue, Role
from flarecps.errors import DatasetError, PlanError, ScanError
from flarecps.json_fields import Reader
from flarecps.planning.histogram import Histogram
from flarecps.text_files import read_own_json
from flarecps.typing import HuArray, ScanArray, SpacingMm, Triple, triple
from flarecps.volumes.cropping import crop, field_box
from flarecps.volumes.io import Volume, on_grid, read_channels, read_labels
from flarecps.volumes.links import check_reachable, place_of
from flarecps.volumes.space import axis_codes

FORMAT = "flarecps-fingerprint"
VERSION = 1
FILL_HU = -1024  # air's end of the scale; scanners write -2000, -3024, ... outside their field of view
INT16_MAX = 32767


@dataclass(frozen=True)
class CaseShape:
    """What is kept case by case. Triples are canonical (slice, row, column), after cropping."""

    name: str
    role: Role
    shape_voxels: Triple
    spacing_mm: SpacingMm
    orientation: str  # of the stored voxel axes (column, row, slice), e.g. "LPS"
    label_voxels: dict[int, int]  # by label id, background too, ids present only; empty without labels
    remarks: tuple[str, ...] = ()  # on the scan's header: slices missing, a gantry tilt, …

    @property
    def volumes_ml(self) -> dict[int, float]:
        """Volume of every structure present, by label id."""
        ml_per_voxel = float(np.prod(self.spacing_mm)) / 1000
        return {label: count * ml_per_voxel for label, count in self.label_voxels.items() if label}


@dataclass(frozen=True)
class Fingerprint:
    """One case, several, or a whole data set. Channels of one scan are pooled."""

    cases: tuple[CaseShape, ...] = ()  # sorted by name
    histogram: Histogram | None = None  # HU of all voxels; None when the scans are not CT
    label_histograms: dict[int, Histogram] = field(default_factory=dict)  # HU per structure; empty without labels or CT

    @property
    def foreground(self) -> Histogram:
        """HU of all labelled structures together."""
        return sum(self.label_histograms.values(), Histogram.empty())

    @property
    def label_voxels(self) -> dict[int, int]:
        """Voxels of every class, background too, over all labelled scans."""
        return dict(sorted(sum((Counter(case.label_voxels) for case in self.cases), Counter[int]()).items()))

    def count(self, role: Role) -> int:
        """Number of cases with this role."""
        return sum(case.role == role for case in self.cases)

    def to_json(self) -> dict[str, Any]:
        """What ``json`` can write (label ids become text then); ``from_json`` restores it exactly."""
        return {
            "cases": [asdict(case) | {"volumes_ml": case.volumes_ml} for case in self.cases],
            "label_voxels": self.label_voxels,
            "histogram_hu": None if self.histogram is None else self.histogram.to_json(),
            "label_histograms_hu": {label: one.to_json() for label, one in self.label_histograms.items()},
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> Fingerprint:
        """The inverse of ``to_json`` and a way through JSON; what follows from other entries is not read.

        Raises PlanError, KeyError, TypeError or ValueError for anything else.
        """
        histogram = content["histogram_hu"]
        cases = [Reader(case, "fingerprint") for case in content["cases"]]
        return Fingerprint(
            cases=tuple(
                CaseShape(
                    case.string("name"),
                    case.choice("role", ("labelled", "unlabelled", "test")),  # type: ignore[arg-type]  # one of them
                    triple(case.integers("shape_voxels", 3)),
                    triple(case.numbers("spacing_mm", 3, above=0.0)),
                    case.string("orientation"),
                    {int(label): case.section("label_voxels").integer(label) for label in case.mapping("label_voxels")},
                    case.strings("remarks") if case.content.get("remarks") else (),
                )
                for case in cases
            ),
            histogram=None if histogram is None else Histogram.from_json(histogram),
            label_histograms={
                int(label): Histogram.from_json(one) for label, one in content["label_histograms_hu"].items()
            },
        )


class FingerprintAccumulator:
    """Remembers the sum of the fingerprints added so far."""

    def __init__(self) -> None:
        self._cases: dict[str, CaseShape] = {}
        self._histogram: Histogram | None = None
        self._label_histograms: dict[int, Histogram] = {}

    def add(self, part: Fingerprint) -> None:
        """Take in the cases of ``part``. Raises ``ValueError`` when one is there already."""
        for case in part.cases:
            if case.name in self._cases:
                raise ValueError(f"both parts hold the case '{case.name}'")
            self._cases[case.name] = case
        if part.histogram is not None:
            self._histogram = (self._histogram or Histogram.empty()) + part.histogram
        for label, histogram in part.label_histograms.items():
            self._label_histograms[label] = self._label_histograms.get(label, Histogram.empty()) + histogram

    def total(self) -> Fingerprint:
        """The fingerprint of all cases so far."""
        return Fingerprint(
            cases=tuple(sorted(self._cases.values(), key=lambda case: case.name)),
            histogram=self._histogram,
            label_histograms=dict(sorted(self._label_histograms.items())),
        )


def is_ct(channels: Iterable[str]) -> bool:
    """Whether all channels hold Hounsfield units, by their names.

    >>> is_ct(["CT"]), is_ct(["T1", "CT"])
    (True, False)
    """
    return all(channel.strip().lower() == "ct" for channel in channels)


def fingerprint_case(
    volume: Volume, labels: Volume | None, name: str, role: Role, ct: bool, known_labels: Collection[int]
) -> Fingerprint:
    """The fingerprint of one scan; ``labels`` (1, S, H, W) only where they may be used.

    Raises ``ScanError`` when the labels' grid or values do not fit.
    """
    if labels is not None:
        labels = checked_labels(volume, labels, known_labels, name)
    array = to_hu(volume.array) if ct else volume.array
    box = field_box(array, FILL_HU if ct else 0)
    array = crop(array, box)
    label_voxels: dict[int, int] = {}
    label_histograms: dict[int, Histogram] = {}
    if labels is not None:
        cropped = crop(labels.array, box)[0]
        label_voxels = Histogram.of(cropped).filled()
        if ct:
            inside = cropped > 0
            ids = cropped[inside]
            for channel in array:
                values = channel[inside]
                for label in map(int, np.unique(ids)):
                    one = Histogram.of(values[ids == label])
                    label_histograms[label] = label_histograms.get(label, Histogram.empty()) + one
    orientation = axis_codes(volume.source.stored.direction)
    case = CaseShape(name, role, box.shape, volume.space.spacing_mm, orientation, label_voxels, volume.warnings)
    return Fingerprint((case,), Histogram.of(array) if ct else None, label_histograms)


def checked_labels(volume: Volume, labels: Volume, known: Collection[int], name: str) -> Volume:
    """``labels`` in the voxel order of ``volume``.

    Raises ScanError when their grids differ or a label value is not in ``known``; it names the case.
    """
    path = labels.source.path
    whose = f"its image {volume.source.path} (case '{name}')"
    labels = on_grid(labels, volume.space, whose, "resample the labels onto the image, or pair the right files")
    present = {label for section in labels.array[0] for label in np.flatnonzero(np.bincount(section[section != 0]))}
    unknown = sorted(int(label) for label in present - set(known))
    if unknown:
        raise ScanError(
            f"{path}: labels of case '{name}' hold the value{'s' if len(unknown) > 1 else ''} "
            f"{', '.join(map(str, unknown))}; dataset.json knows {', '.join(map(str, sorted(known)))}; "
            f"add the structure to dataset.json, or remove it from the file"
        )
    return labels


def to_hu(image: ScanArray) -> HuArray:
    """``image`` (any shape) rounded to whole HU as int16: fill below -1024 becomes -1024, the top is clamped.

    >>> to_hu(np.array([-3024.0, 39.6, 1e6])).tolist()
    [-1024, 40, 32767]
    """
    if not np.issubdtype(image.dtype, np.integer):
        return np.clip(np.rint(image), FILL_HU, INT16_MAX).astype(np.int16)
    bounds = np.iinfo(image.dtype)  # NumPy refuses limits that the type can't hold
    return np.clip(image, max(FILL_HU, int(bounds.min)), min(INT16_MAX, int(bounds.max))).astype(np.int16, copy=False)


@dataclass(frozen=True)
class _Entry:
    """One case to read."""

    case: Case
    labels: Path | None  # where they may be used: only for labelled cases
    ct: bool
    known_labels: tuple[int, ...]
    file: Path | None  # where its fingerprint is kept


def fingerprint_dataset(
    catalogue: Catalogue, workers: int, progress: bool = True, folder: Path | None = None
) -> tuple[Fingerprint, list[Outcome[Fingerprint]]]:
    """The fingerprint of all labelled and unlabelled scans, and the outcomes of the cases that could not be read.

    Cases are added as they end, so memory does not grow with their number. What is in ``folder`` and up to date is
    used, the rest is added there, and ``folder/fingerprint.json`` holds the whole. Raises ``DatasetError`` when no
    labelled case could be read.
    """
    tally = FingerprintAccumulator()
    _, failures = _process(catalogue, None, folder, workers, progress, tally.add)
    fingerprint = tally.total()
    if not fingerprint.count("labelled"):
        first = f"; the first failed: {failures[0].error}" if failures else ""
        raise DatasetError(f"{catalogue.root}: no labelled case could be read{first}")
    if folder is not None:
        _write(folder / "fingerprint.json", {"format": FORMAT, "version": VERSION, **fingerprint.to_json()})
    return fingerprint, failures


def fingerprint_shard(
    catalogue: Catalogue, share: str, folder: Path, workers: int, progress: bool = True
) -> tuple[int, list[Outcome[Fingerprint]]]:
    """How many cases share "I/N" has, and the outcomes of those that could not be read; the others are in ``folder``.

    Raises ``ConfigError`` when ``share`` is not I/N.
    """
    return _process(catalogue, share, folder, workers, progress, lambda _: None)


def _source_signature(entry: _Entry) -> dict[str, Any]:
    """What a case's fingerprint depends on; a file that says the same is up to date."""
    files = [*entry.case.images, *([] if entry.labels is None else [entry.labels])]
    states = [(path.name, place_of(path).stat()) for path in files]
    states += [  # a slice that is replaced leaves its folder's state as it was
        (slice_.name, slice_.stat())
        for path in files
        if place_of(path).is_dir()
        for slice_ in sorted(place_of(path).iterdir())
    ]
    return {
        "role": entry.case.role,
        "ct": entry.ct,
        "known_labels": None if entry.labels is None else list(entry.known_labels),
        "files": [[name, state.st_size, state.st_mtime_ns] for name, state in states],
    }


def _process(
    catalogue: Catalogue,
    share: str | None,
    folder: Path | None,
    workers: int,
    progress: bool,
    receive: Callable[[Fingerprint], None],
) -> tuple[int, list[Outcome[Fingerprint]]]:
    """Hand every case's fingerprint to ``receive``, from its file or newly made; number of cases, failed outcomes."""
    ct, known = is_ct(catalogue.channels), tuple(catalogue.labels.values())
    cases = shard((*catalogue.labelled, *catalogue.unlabelled), share)
    waiting = []
    for case in cases:
        file = None if folder is None else folder / "cases" / file_name(case.name, ".json")
        entry = _Entry(case, case.labels if case.role == "labelled" else None, ct, known, file)
        if (found := _read_current(entry)) is None:
            waiting.append((case.name, entry))
        else:
            receive(found)
    if cases and folder is not None:
        (folder / "cases").mkdir(parents=True, exist_ok=True)
    present = len(cases) - len(waiting)
    title = f"Fingerprint ({present} there already)" if present else "Fingerprint"
    outcomes = process_cases(_make, waiting, workers, title, progress, received=lambda _, value: receive(value))
    faulty: list[Outcome[Fingerprint]] = [Outcome(name, None, why) for name, why in catalogue.faults.items()]
    return len(cases) + len(faulty), [outcome for outcome in outcomes if outcome.failed] + faulty


def _make(entry: _Entry) -> Fingerprint:
    for path in filter(None, (*entry.case.images, entry.labels)):
        check_reachable(path)
    # before reading, so that a file that changes meanwhile is stale
    source = None if entry.file is None else _source_signature(entry)
    volume = read_channels(entry.case.images)
    labels = None if entry.labels is None else read_labels(entry.labels)
    made = fingerprint_case(volume, labels, entry.case.name, entry.case.role, entry.ct, entry.known_labels)
    if entry.file is not None:
        _write(entry.file, {"format": FORMAT, "version": VERSION, "made_from": source, **made.to_json()})
    return made


def _read_current(entry: _Entry) -> Fingerprint | None:
    """The fingerprint in the case's file; None when there is none, it is out of date, or it is not one."""
    if entry.file is None or not entry.file.is_file():
        return None
    try:
        content = read_own_json(entry.file)
        found = content["format"], content["version"], content["made_from"]
        return Fingerprint.from_json(content) if found == (FORMAT, VERSION, _source_signature(entry)) else None
    except (
        PlanError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # a missing scan is reported when it is to be read
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    atomic.write_text(path, json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n")
