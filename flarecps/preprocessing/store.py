"""The case store: preprocessed scans as chunked, compressed arrays that patches are read from.

One directory::

    STORE/plan.json  store.json  splits.json  manifest.sha256
    STORE/cases/NAME/image.b2nd  [labels.b2nd  samples.b2nd]  case.json  checksums.sha256
    STORE/sources/NAME.json

Images are int16, HU (CT) or with a scale and offset that case.json holds, or float32 where 16 bits are not enough; not
normalised: intensity scaling is applied when a patch is read. A case folder appears whole (temporary name, then
rename), so an interrupted run continues where it stopped, and nothing in it depends on when or by whom it was written.
A process checks the SHA-256 of each of its files before it first reads from it. Where the scans lay is in ``sources/``.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from flarecps.case_names import file_name, why_not_plain
from flarecps.datasets.catalogue import Role
from flarecps.errors import StoreError, counted, first_few
from flarecps.planning.plan import Plan, read_plan
from flarecps.preprocessing.case import GridMapping, Prepared
from flarecps.preprocessing.checksums import CHECKSUMS, DAMAGED, check_file
from flarecps.preprocessing.intensity import Scaling, dequantise, normalise
from flarecps.preprocessing.sources import FileHash, changed_sources, have_hashes
from flarecps.text_files import read_own_json
from flarecps.typing import LabelArray, NormalisedArray, SpacingMm, Triple, triple

FORMAT = "flarecps-store"
VERSION = 2
READABLE_VERSIONS = (1, 2)  # 1: no checksums, and scans other than CT in float32
OPEN_ARRAYS = 256  # per process: each takes up to 0.2 MB and one of the (usually 1024) files a process may open
SAMPLED_CASES = 128  # per process whose voxel samples stay in memory, at most some 100 MB with 13 organs


@dataclass(frozen=True)
class CaseRecord:
    """What the store knows about a case besides its voxels. Triples are in network order, on the network's grid."""

    name: str
    shape: Triple
    spacing_mm: SpacingMm
    role: Role  # in the data set's folders; a split may decide otherwise
    has_labels: bool
    annotated: tuple[int, ...] | None  # label ids annotated in this case; None: all
    statistics: dict[str, list[float]]  # "mean" and "sd" per channel
    sample_counts: dict[int, int]  # voxels kept per structure, by label id
    grid_mapping: GridMapping
    folder: Path
    scaling: Scaling | None = None  # stored int16 to intensities; None: stored as they are
    sources: tuple[FileHash, ...] = ()  # name, bytes and SHA-256 of each file it was made from

    @property
    def labels_folder(self) -> Path:
        """Where its labels are."""
        return self.folder

    @property
    def samples(self) -> dict[int, np.ndarray]:
        """Voxels (n, 3) of every structure present, by label id; empty without labels. Read when first asked for."""
        return read_samples(self.folder, tuple(self.sample_counts.items()))


class CaseStore:
    """A preprocessed data set. Cheap to make, and safe in forked and spawned workers: each opens its own arrays."""

    def __init__(self, path: Path | str) -> None:
        """Raises ``StoreError`` when ``path`` is not a case store."""
        self.path = Path(path)
        self._description = read_description(self.path)
        self._records: dict[str, CaseRecord] = {}
        self._arrays: OrderedDict[Path, Any] = OrderedDict()
        self._process = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return CaseStore, (self.path,)

    def __contains__(self, name: str) -> bool:
        """Whether the case is in the store, finished."""
        return is_finished(self.path, name)

    @cached_property
    def plan(self) -> Plan:
        """The plan the store was last preprocessed with. ``StoreError`` when it is of another grid than the cases."""
        plan = read_plan(self.path / "plan.json")
        if plan.preprocessing_hash() != self._description.get("preprocessing_hash"):
            raise StoreError(
                f"{self.path / 'plan.json'}: not the plan that the cases were preprocessed with; preprocess again with "
                "that plan, which writes it here"
            )
        return plan

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All finished cases, sorted."""
        folders = (self.path / "cases").iterdir() if (self.path / "cases").is_dir() else ()
        return tuple(sorted(folder.name for folder in folders if is_finished(self.path, folder.name)))

    def record(self, name: str) -> CaseRecord:
        """The record of a case; ``StoreError`` when there is none of that name."""
        if name not in self._records:
            self._records[name] = _read_record(self.path, name, has_checksums=self._description["version"] > 1)
        return self._records[name]

    def source_changes(self, names: Iterable[str]) -> str:
        """What has become of the files that these cases were made from, in one line; "" when nothing is known of them,
        or they are as they were. Reads only what was touched, and at most 1 GiB of it."""
        recorded = {name: list(self.record(name).sources) for name in names}
        changed, unknown = changed_sources(self.path, recorded)
        if changed:
            return (
                f"{self.path}: the scans or labels of {counted(len(changed), 'case')} changed after they were "
                f"preprocessed ({first_few(changed)}); 'flarecps preprocess' makes these cases anew"
            )
        if unknown:
            return (
                f"{self.path}: the scans or labels of {counted(len(unknown), 'case')} were touched since "
                f"({first_few(unknown)}); 'flarecps preprocess' finds whether they changed"
            )
        if any(not have_hashes(files) for files in recorded.values()):
            return (
                f"{self.path}: an earlier version made it, without hashes of its scans: whether they changed is unknown"
            )
        return ""

    def read_patch(
        self, name: str, lower: tuple[int, ...], shape: tuple[int, ...], labels: bool
    ) -> tuple[NormalisedArray, LabelArray | None]:
        """A normalised patch (C, *shape) float32 and its labels (*shape) uint8, or None unless ``labels``.

        ``lower``: the first voxel (S, H, W), may be negative; the part outside the scan is 0 in both. Raises
        ``StoreError`` when labels are asked of a case that has none.
        """
        record = self.record(name)
        if labels and not record.has_labels:
            raise StoreError(f"{record.folder}: case '{name}' has no labels; use it as an unlabelled case")
        begin = np.clip(lower, 0, record.shape).tolist()
        end = np.clip(np.add(lower, shape), begin, record.shape).tolist()
        inside = tuple(slice(first, last) for first, last in zip(begin, end, strict=True))
        target = tuple(slice(first - start, last - start) for first, last, start in zip(begin, end, lower, strict=True))
        image = normalise(self._intensities(record, inside), self.plan.intensity, record.statistics)
        image = _placed(image, (slice(None), *target), (len(image), *shape))
        if not labels:
            return image, None
        return image, _placed(self._read(record.labels_folder / "labels.b2nd", inside), target, shape)

    def read_case(self, name: str) -> tuple[NormalisedArray, LabelArray | None]:
        """The whole normalised case (C, S, H, W) float32 and its labels (S, H, W) uint8, None where it has none."""
        record = self.record(name)
        return self.read_patch(name, (0, 0, 0), record.shape, labels=record.has_labels)

    def read_prepared(self, name: str) -> Prepared:
        """The whole case as it was prepared, not normalised, and without its labels: what a segmenter takes."""
        record = self.record(name)
        image = self._intensities(record, (slice(None),) * 3)
        return Prepared(image, None, record.grid_mapping, record.statistics)

    def _intensities(self, record: CaseRecord, region: tuple[slice, ...]) -> np.ndarray:
        """Part of a case's image (C, ...): HU of CT, or the scan's own numbers."""
        image = self._read(record.folder / "image.b2nd", (slice(None), *region))
        return image if record.scaling is None else dequantise(image, record.scaling)

    def _read(self, path: Path, region: tuple[slice, ...]) -> np.ndarray:
        """Part of a case's compressed array, which is checked and opened once per process."""
        if os.getpid() != self._process:  # forked: what the parent opened stays the parent's
            self._arrays, self._process = OrderedDict(), os.getpid()
        if path not in self._arrays:
            self._arrays[path] = open_array(path)
            if len(self._arrays) > OPEN_ARRAYS:
                self._arrays.popitem(last=False)
        self._arrays.move_to_end(path)
        try:
            return self._arrays[path][region]
        except RuntimeError as error:  # blosc2's word for blocks that can't be decompressed
            raise StoreError(f"{path}: {DAMAGED}") from error


def is_finished(store: Path, name: str) -> bool:
    """Whether the case is there, whole."""
    return not why_not_plain(name) and (store / "cases" / file_name(name) / "case.json").is_file()


def _read_record(store: Path, name: str, has_checksums: bool) -> CaseRecord:
    if not is_finished(store, name):
        raise StoreError(
            f"{store}: no case '{name}'; 'flarecps preprocess' writes cases here, and says at its end which failed"
        )
    folder = store / "cases" / file_name(name)
    if has_checksums and not (folder / CHECKSUMS).is_file():
        raise StoreError(f"{folder / CHECKSUMS}: {DAMAGED}")
    check_file(folder / "case.json")
    try:
        content = read_own_json(folder / "case.json")
        scaling, made_from = content.get("scaling"), content["made_from"]
        annotated = made_from["annotated"]
        return CaseRecord(
            name=name,
            shape=triple(content["shape_voxels"]),
            spacing_mm=triple(content["spacing_mm"]),
            role=made_from["role"],
            has_labels=content["has_labels"],
            annotated=None if annotated is None else tuple(annotated),
            statistics=content["statistics"],
            sample_counts={int(label): count for label, count in content["samples"].items()},
            grid_mapping=GridMapping.from_dict(content["way_back"]),
            folder=folder,
            scaling=None if scaling is None else Scaling(tuple(scaling["scale"]), tuple(scaling["offset"])),
            sources=tuple(made_from["files"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder / 'case.json'}: the record of case '{name}' is {DAMAGED}") from error


def read_description(store: Path) -> dict[str, Any]:
    """store.json of a case store; ``StoreError`` when ``store`` is not one, or of another version."""
    content = read_own_json(store / "store.json")
    if not content:
        raise StoreError(f"{store}: not a case store (no readable store.json); 'flarecps preprocess' makes one")
    known = [(FORMAT, version) for version in READABLE_VERSIONS]
    if (content.get("format"), content.get("version")) not in known:
        raise StoreError(f"{store}: store.json is not of format '{FORMAT}', version {VERSION}; preprocess again")
    return content


def _placed(part: np.ndarray, where: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    """``part`` inside an array of 0; itself when it fills the shape."""
    if part.shape == tuple(shape):
        return part
    whole = np.zeros(shape, dtype=part.dtype)
    whole[where] = part
    return whole


def open_array(path: Path) -> Any:
    """The compressed array in a file; ``StoreError`` where it is missing or damaged, by its checksum, too.

    One thread for decompression: data-loading workers are many already, and threads do not survive a fork.
    """
    check_file(path)
    try:
        return blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
    except (FileNotFoundError, RuntimeError, OSError) as error:
        raise StoreError(f"{path}: {DAMAGED}") from error


@lru_cache(maxsize=SAMPLED_CASES)
def read_samples(folder: Path, counts: tuple[tuple[int, int], ...]) -> dict[int, np.ndarray]:
    """Voxels (n, 3) by label id; ``counts``: how many of each are stored, in the stored order."""
    if not counts:
        return {}
    voxels = np.ascontiguousarray(open_array(folder / "samples.b2nd")[:].T)
    ends = np.cumsum([count for _, count in counts])
    return {label: voxels[end - count : end] for (label, count), end in zip(counts, ends, strict=True)}
