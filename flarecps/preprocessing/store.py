"""The case store: preprocessed scans as chunked, compressed arrays that patches are read from.

One directory::

    STORE/plan.json  store.json  splits.json  manifest.sha256
    STORE/cases/NAME/image.b2nd  [labels.b2nd  samples.b2nd]  case.json  checksums.sha256

Images are int16, HU (CT) or with a scale and offset that case.json holds, or float32 where 16 bits are not enough; not
normalised: intensity scaling is applied when a patch is read. A case folder appears whole (temporary name, then
rename), so an interrupted run continues where it stopped, and nothing in it depends on when or by whom it was written.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from flarecps import atomic
from flarecps.datasets.catalogue import Case, Catalogue, Role
from flarecps.datasets.splits import DEFAULT_SPLIT, split_to_json
from flarecps.errors import StoreError
from flarecps.planning.plan import Plan, read_plan, write_plan
from flarecps.preprocessing.case import Prepared, WayBack
from flarecps.preprocessing.checksums import write_checksums
from flarecps.preprocessing.intensity import normalise
from flarecps.preprocessing.quantisation import Scaling, quantised, restored
from flarecps.preprocessing.samples import sample_voxels
from flarecps.typing import LabelArray, NormalisedArray, SpacingMm, Triple

FORMAT = "flarecps-store"
VERSION = 2
READABLE_VERSIONS = (1, 2)  # 1: no checksums, and scans other than CT in float32
# Chunks are what the disk is asked for, blocks what is decompressed. Measured on CT: a patch of 112×160×128 reads in
# 9 ms (15 ms with flat blocks), one of 32×32×32 in 0.4 ms; the size on disk hardly changes.
CHUNK = {2: (1, 1024, 1024), 3: (32, 128, 128)}
BLOCK = {2: (1, 128, 128), 3: (16, 32, 32)}
DAMAGED = (
    "missing or damaged; 'flarecps preprocess … --verify' finds all such cases, a run without it writes them again"
)
LEFTOVER = re.compile(f"^{re.escape(atomic.PARTIAL_PREFIX)}([0-9a-f]{{8}}-)?")
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
    way_back: WayBack
    folder: Path
    scaling: Scaling | None = None  # stored int16 to intensities; None: stored as they are

    @property
    def samples(self) -> dict[int, np.ndarray]:
        """Voxels (n, 3) of every structure present, by label id; empty without labels. Read when first asked for."""
        return _read_samples(self.folder, tuple(self.sample_counts.items()))


class CaseStore:
    """A preprocessed data set. Cheap to make, and safe in forked and spawned workers: each opens its own arrays."""

    def __init__(self, path: Path | str) -> None:
        """Raises ``StoreError`` when ``path`` is not a case store."""
        self.path = Path(path)
        _read_description(self.path)
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
        """The plan the store was last preprocessed with."""
        return read_plan(self.path / "plan.json")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All finished cases, sorted."""
        folders = (self.path / "cases").iterdir() if (self.path / "cases").is_dir() else ()
        return tuple(sorted(folder.name for folder in folders if is_finished(self.path, folder.name)))

    def record(self, name: str) -> CaseRecord:
        """The record of a case; ``StoreError`` when there is none of that name."""
        if name not in self._records:
            self._records[name] = _read_record(self.path, name)
        return self._records[name]

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
        begin = [min(max(start, 0), edge) for start, edge in zip(lower, record.shape, strict=True)]
        end = [
            max(min(start + size, edge), first)
            for start, size, edge, first in zip(lower, shape, record.shape, begin, strict=True)
        ]
        inside = tuple(slice(first, last) for first, last in zip(begin, end, strict=True))
        target = tuple(slice(first - start, last - start) for first, last, start in zip(begin, end, lower, strict=True))
        image = self._array(record.folder / "image.b2nd")[(slice(None), *inside)]
        if record.scaling is not None:
            image = restored(image, record.scaling)
        image = normalise(image, self.plan.intensity, record.statistics)
        image = _placed(image, (slice(None), *target), (len(image), *shape))
        if not labels:
            return image, None
        return image, _placed(self._array(record.folder / "labels.b2nd")[inside], target, shape)

    def read_case(self, name: str) -> tuple[NormalisedArray, LabelArray | None]:
        """The whole normalised case (C, S, H, W) float32 and its labels (S, H, W) uint8, None where it has none."""
        record = self.record(name)
        return self.read_patch(name, (0, 0, 0), record.shape, labels=record.has_labels)

    def _array(self, path: Path) -> Any:
        """The compressed array at ``path``, opened once per process."""
        if os.getpid() != self._process:  # forked: what the parent opened stays the parent's
            self._arrays, self._process = OrderedDict(), os.getpid()
        if path not in self._arrays:
            self._arrays[path] = _open(path)
            if len(self._arrays) > OPEN_ARRAYS:
                self._arrays.popitem(last=False)
        self._arrays.move_to_end(path)
        return self._arrays[path]


def check_store(store: Path, plan: Plan) -> None:
    """Nothing, or ``StoreError`` when ``store`` is no case store or was made by a plan that stores other voxels."""
    if _read_description(store)["preprocessing_hash"] != plan.preprocessing_hash():
        raise StoreError(
            f"{store}: holds cases preprocessed with another plan ({_difference(store, plan)}); expected the same "
            f"grid, labels and channels; choose another --out, or delete this folder first"
        )


def prepare_store(store: Path, plan: Plan, catalogue: Catalogue) -> None:
    """Make the folder, or check that what is in it was made by a plan that stores the same voxels.

    Writes plan.json, store.json and splits.json (the data set's own, else one split "default" from the folders'
    roles). Raises ``StoreError`` when ``store`` holds something else.
    """
    if (store / "store.json").exists():
        check_store(store, plan)
    elif store.exists() and (not store.is_dir() or any(store.iterdir())):
        raise StoreError(f"{store}: exists and is not a case store; choose a new or empty folder for --out")
    (store / "cases").mkdir(parents=True, exist_ok=True)
    write_plan(store / "plan.json", plan)
    atomic.write_json(
        store / "store.json",
        {
            "format": FORMAT,
            "version": VERSION,
            "preprocessing_hash": plan.preprocessing_hash(),
            "dataset": catalogue.name,
            "roles": {
                "labelled": [case.name for case in catalogue.labelled],
                "unlabelled": [case.name for case in catalogue.unlabelled],
                "test": [case.name for case in catalogue.test],
            },
        },
    )
    own = catalogue.root / "splits.json"
    if own.is_file():
        atomic.write_text(store / "splits.json", own.read_text(encoding="utf-8"))
    else:
        atomic.write_json(store / "splits.json", {DEFAULT_SPLIT: split_to_json(catalogue.split)})


def write_case(store: Path, prepared: Prepared, case: Case, plan: Plan) -> None:
    """Write one case folder, whole or not at all; a folder of that name is replaced.

    Raises ``StoreError`` when the disk is full or the quota used up; nothing of the case is left behind then.
    """
    folder = store / "cases" / case.name
    partial = folder.with_name(f"{atomic.PARTIAL_PREFIX}{uuid.uuid4().hex[:8]}-{case.name}")
    try:
        with said_when_full(store, f"case '{case.name}'"):
            partial.mkdir(parents=True)
            _write_files(partial, prepared, case, plan)
            remove_case(store, case.name)
            os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _read_samples.cache_clear()


@contextmanager
def said_when_full(store: Path, what: str) -> Iterator[None]:
    """A full disk or a used-up quota in the block becomes a ``StoreError`` that says what could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StoreError(
            f"{store}: no room to write {what} ({error.strerror}); free some, or raise the quota, and run the same "
            "command again: finished cases are kept"
        ) from error


def remove_case(store: Path, name: str) -> None:
    """Take a case out of the store: at once (it is renamed), so that nobody meets half of it."""
    folder = store / "cases" / name
    if folder.is_dir():
        leaving = folder.with_name(f"{atomic.PARTIAL_PREFIX}{uuid.uuid4().hex[:8]}-{name}")
        os.rename(folder, leaving)
        shutil.rmtree(leaving, ignore_errors=True)


def clear_leftovers(store: Path, mine: Collection[str], known: Collection[str]) -> None:
    """Remove what killed runs left of the cases ``mine``, and of cases that are not ``known`` to the data set any more.

    What belongs to other cases may be another job's work in progress.
    """
    for path in (store / "cases").glob(f"{atomic.PARTIAL_PREFIX}*"):
        name = LEFTOVER.sub("", path.name)
        if name in mine or name not in known:
            shutil.rmtree(path, ignore_errors=True)


def _write_files(folder: Path, prepared: Prepared, case: Case, plan: Plan) -> None:
    image, scaling = prepared.image, None
    if plan.intensity.scheme != "ct":
        image, scaling = quantised(image, prepared.statistics["sd"])
    _write_array(folder / "image.b2nd", image, plan.dimensions)
    samples: dict[int, np.ndarray] = {}
    if prepared.labels is not None:
        _write_array(folder / "labels.b2nd", prepared.labels, plan.dimensions)
        samples = sample_voxels(prepared.labels, case.name)
        _write_samples(folder / "samples.b2nd", samples)
    content = {
        "name": case.name,
        "shape_voxels": list(prepared.image.shape[1:]),
        "spacing_mm": list(prepared.way_back.network_spacing_mm),
        "has_labels": prepared.labels is not None,
        "scaling": None if scaling is None else scaling.to_dict(),
        "statistics": prepared.statistics,
        "samples": {str(label): len(voxels) for label, voxels in samples.items()},
        "way_back": prepared.way_back.to_dict(),
        "made_from": made_from(case, plan),
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    atomic.write_json(folder / "case.json", content)
    write_checksums(folder)


def made_from(case: Case, plan: Plan) -> dict[str, Any]:
    """What a stored case depends on; a case whose record says the same need not be written again."""
    files = [*case.images, *([case.labels] if case.labels is not None else [])]
    return {
        "preprocessing_hash": plan.preprocessing_hash(),
        "role": case.role,
        "annotated": None if case.annotated is None else list(case.annotated),
        "files": [[path.name, size_bytes(path)] for path in files],
    }


def is_finished(store: Path, name: str) -> bool:
    """Whether the case is there, whole."""
    return not name.startswith(atomic.PARTIAL_PREFIX) and (store / "cases" / name / "case.json").is_file()


def is_current(store: Path, case: Case, plan: Plan) -> bool:
    """Whether the case is there, whole by the sizes of its files, and made from the same files and grid.

    What sizes can't show, `checksums.damage` does.
    """
    folder = store / "cases" / case.name
    try:
        content = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in content["bytes"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return content["bytes"] == sizes and content.get("made_from") == made_from(case, plan)


def _read_record(store: Path, name: str) -> CaseRecord:
    if not is_finished(store, name):
        raise StoreError(
            f"{store}: no case '{name}'; 'flarecps preprocess' writes cases here, and says at its end which failed"
        )
    folder = store / "cases" / name
    try:
        content = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{folder / 'case.json'}: {DAMAGED}") from error
    scaling = content.get("scaling")
    annotated = content["made_from"]["annotated"]
    return CaseRecord(
        name=name,
        shape=tuple(content["shape_voxels"]),
        spacing_mm=tuple(content["spacing_mm"]),
        role=content["made_from"]["role"],
        has_labels=content["has_labels"],
        annotated=None if annotated is None else tuple(annotated),
        statistics=content["statistics"],
        sample_counts={int(label): count for label, count in content["samples"].items()},
        way_back=WayBack.from_dict(content["way_back"]),
        folder=folder,
        scaling=None if scaling is None else Scaling.from_dict(scaling),
    )


def _read_description(store: Path) -> dict[str, Any]:
    try:
        content = json.loads((store / "store.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{store}: not a case store (no readable store.json); 'flarecps preprocess' makes one"
        ) from error
    if (
        not isinstance(content, dict)
        or content.get("format") != FORMAT
        or content.get("version") not in READABLE_VERSIONS
    ):
        raise StoreError(f"{store}: store.json is not of format '{FORMAT}', version {VERSION}; preprocess again")
    return content


def _difference(store: Path, plan: Plan) -> str:
    there = read_plan(store / "plan.json")
    for name in ("dimensions", "spacing_mm", "axis_order", "labels", "channels"):
        if getattr(there, name) != getattr(plan, name):
            return f"{name} {getattr(there, name)} there, {getattr(plan, name)} here"
    return f"intensity {there.intensity.scheme} there, {plan.intensity.scheme} here"


def _placed(part: np.ndarray, where: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    """``part`` inside an array of 0; itself when it fills the shape."""
    if part.shape == tuple(shape):
        return part
    whole = np.zeros(shape, dtype=part.dtype)
    whole[where] = part
    return whole


def _write_array(path: Path, array: np.ndarray, dimensions: int) -> None:
    """(C, S, H, W) or (S, H, W), chunked for patches of this dimension."""
    edges = array.shape[-3:]
    chunk = tuple(min(size, edge) for size, edge in zip(CHUNK[dimensions], edges, strict=True))
    block = tuple(min(size, edge) for size, edge in zip(BLOCK[dimensions], chunk, strict=True))
    lead = (1,) * (array.ndim - 3)
    _write(path, array, chunks=lead + chunk, blocks=lead + block)


def _write_samples(path: Path, samples: dict[int, np.ndarray]) -> None:
    voxels = np.concatenate([np.zeros((0, 3), np.int32), *samples.values()])
    smallest = np.int16 if voxels.max(initial=0) <= np.iinfo(np.int16).max else np.int32
    _write(path, np.ascontiguousarray(voxels.T.astype(smallest)))


def _write(path: Path, array: np.ndarray, **layout: Any) -> None:
    """Packed in memory, then written here: blosc2, writing itself, does not say why it could not.

    Both thread counts, because one alone is not obeyed and the file says it: stores must be equal bit by bit.
    """
    parameters = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=1, nthreads=1)
    threads = blosc2.DParams(nthreads=1)
    packed = blosc2.asarray(np.ascontiguousarray(array), cparams=parameters, dparams=threads, contiguous=True, **layout)
    path.write_bytes(packed.to_cframe())


def _open(path: Path) -> Any:
    """One thread for decompression: data-loading workers are many already, and threads do not survive a fork."""
    try:
        return blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
    except (FileNotFoundError, RuntimeError, OSError) as error:
        raise StoreError(f"{path}: {DAMAGED}") from error


@lru_cache(maxsize=SAMPLED_CASES)
def _read_samples(folder: Path, counts: tuple[tuple[int, int], ...]) -> dict[int, np.ndarray]:
    if not counts:
        return {}
    voxels = np.ascontiguousarray(_open(folder / "samples.b2nd")[:].T)
    ends = np.cumsum([count for _, count in counts])
    return {label: voxels[end - count : end] for (label, count), end in zip(counts, ends, strict=True)}


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder (a DICOM series)."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return path.stat().st_size
