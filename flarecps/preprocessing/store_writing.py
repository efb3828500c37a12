"""Writing the case store: whole cases or none, the same bytes whenever and by whomever they are written.

Checksums are in the format of ``sha256sum``, so that ``sha256sum -c manifest.sha256`` in a store checks it without this
program. Every case is written by one process, with its own list; the store's is only ever derived from those.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from flarecps import atomic
from flarecps.case_names import file_name
from flarecps.datasets.catalogue import Case, Catalogue
from flarecps.datasets.splits import DEFAULT_SPLIT, EXPECTED, SPLITS, data_set_splits, split_to_json
from flarecps.errors import FULL_DISK, StoreError, may_be_whole
from flarecps.locks import in_progress, remove_abandoned
from flarecps.planning.plan import Plan, read_plan, write_plan
from flarecps.preprocessing.case import Prepared
from flarecps.preprocessing.checksums import CHECKSUMS, checksums_of, sha256
from flarecps.preprocessing.intensity import quantise
from flarecps.preprocessing.sources import forget_times, hashes_of, have_hashes, is_made_from, sizes_of, untouched
from flarecps.preprocessing.store import FORMAT, VERSION, read_description, read_samples
from flarecps.text_files import read_own_json, read_text
from flarecps.typing import LabelArray

CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
MOST_SAMPLES = 10_000  # nnU-Net's number per structure ...
SMALLEST_SHARE = 0.01  # ... but never less than this share of the structure's voxels

# Chunks are what the disk is asked for, blocks what is decompressed. Measured on CT: a patch of 112×160×128 reads in
# 9 ms (15 ms with flat blocks), one of 32×32×32 in 0.4 ms; the size on disk hardly changes.
CHUNK = {2: (1, 1024, 1024), 3: (32, 128, 128)}
BLOCK = {2: (1, 128, 128), 3: (16, 32, 32)}
LEFTOVER = re.compile(f"^{re.escape(atomic.PARTIAL_PREFIX)}([0-9a-f]{{8}}-)?")


def check_store(store: Path, plan: Plan) -> None:
    """Nothing, or ``StoreError`` when ``store`` is no case store or was made by a plan that stores other voxels."""
    if read_description(store)["preprocessing_hash"] != plan.preprocessing_hash():
        raise StoreError(
            f"{store}: holds cases preprocessed with another plan ({_difference(store, plan)}); expected the same "
            f"grid, labels and channels; choose another --out, or delete this folder first"
        )


def prepare_store(store: Path, plan: Plan, catalogue: Catalogue) -> None:
    """Make the folder, or check that what is in it was made by a plan that stores the same voxels.

    Writes plan.json, store.json and splits.json (the data set's own, else nnU-Net's folds, else one split "default"
    from the folders' roles). Several processes may do this at once: store.json is the first file of a store, so a
    folder that held another one when there was none is something else. Raises ``StoreError`` then.
    """
    # Looked at before store.json is; what another process is still writing does not count.
    is_file = store.exists() and not store.is_dir()  # in this order: another process may make the folder in between
    there = [store] if is_file else store.iterdir() if store.is_dir() else []
    whole = [path for path in there if not path.name.startswith(atomic.PARTIAL_PREFIX)]
    if (store / "store.json").exists():
        check_store(store, plan)
    elif whole:
        raise StoreError(f"{store}: exists and is not a case store; choose a new or empty folder for --out")
    store.mkdir(parents=True, exist_ok=True)
    atomic.write_json(
        store / "store.json",
        {
            "format": FORMAT,
            "version": VERSION,
            "preprocessing_hash": plan.preprocessing_hash(),
            "dataset": catalogue.name,
            "roles": {
                role: [case.name for case in getattr(catalogue, role)] for role in ("labelled", "unlabelled", "test")
            },
        },
    )
    (store / "cases").mkdir(exist_ok=True)
    write_plan(store / "plan.json", plan)
    own, split = catalogue.root / SPLITS, catalogue.split
    if own.is_file():
        atomic.write_text(store / SPLITS, read_text(own, StoreError, EXPECTED))
        return
    named = data_set_splits(catalogue.root, split.unlabelled, split.test) or {DEFAULT_SPLIT: split}
    atomic.write_json(store / SPLITS, {name: split_to_json(one) for name, one in named.items()})


def write_case(store: Path, prepared: Prepared, case: Case, plan: Plan, remarks: Sequence[str] = ()) -> None:
    """Write one case folder, whole or not at all; a folder of that name is replaced. ``remarks`` are on its scan.

    Raises ``StoreError`` when the disk is full or the quota used up; nothing of the case is left behind then.
    """
    with whole_case(store, case.name) as folder:
        _write_files(folder, prepared, case, plan, remarks)


@contextmanager
def whole_case(store: Path, name: str) -> Iterator[Path]:
    """A folder that becomes the case's when the block, which fills it, succeeds; nothing is left behind otherwise.

    It gets its checksums then. Raises ``StoreError`` when the disk is full or the quota used up.
    """
    folder = store / "cases" / file_name(name)
    partial, replaced = atomic.partial_path(folder), _inode(folder)
    try:
        with disk_errors_as_store_error(store, f"case '{name}'"), in_progress(partial, folder=True):
            yield partial
            checksums = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(partial.iterdir()))
            (partial / CHECKSUMS).write_text(checksums, encoding="utf-8")
            _put(store, name, partial, replaced)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    read_samples.cache_clear()


def _put(store: Path, name: str, whole: Path, replaced: int | None) -> None:
    """Give a whole case its place, instead of the folder ``replaced`` (its inode). What another process, doing the same
    case, put there meanwhile stays: somebody may be reading it."""
    place = store / "cases" / file_name(name)
    if replaced is not None and _inode(place) == replaced:
        remove_case(store, name)
    try:
        os.rename(whole, place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


@contextmanager
def disk_errors_as_store_error(store: Path, what: str) -> Iterator[None]:
    """A full or read-only disk in the block becomes a ``StoreError`` that says what could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno in CLOSED:
            raise StoreError(
                f"{store}: can't write {what} there ({error.strerror}); check its permissions, or name another --out"
            ) from error
        if error.errno not in FULL_DISK:
            raise
        raise StoreError(
            f"{store}: no room to write {what} ({error.strerror}); free some, or raise the quota, and run the same "
            "command again: finished cases are kept"
        ) from error


def remove_case(store: Path, name: str) -> None:
    """Take a case out of the store: at once (it is renamed), so that nobody meets half of it."""
    folder = store / "cases" / file_name(name)
    if folder.is_dir():
        leaving = atomic.partial_path(folder)
        with suppress(FileNotFoundError):  # another process took it out
            os.rename(folder, leaving)
        forget_times(store, name)
        if leaving.is_symlink():  # what it leads to is somebody's own
            leaving.unlink()
        shutil.rmtree(leaving, ignore_errors=True)


def remove_partial_cases(store: Path, mine: Collection[str], known: Collection[str]) -> None:
    """Remove what killed runs left of the cases ``mine``, and of cases that are not ``known`` to the data set any more.

    What another process is still writing stays.
    """
    for path in (store / "cases").glob(f"{atomic.PARTIAL_PREFIX}*"):
        name = LEFTOVER.sub("", path.name)
        if name in mine or name not in known:
            remove_abandoned(path)


def _write_files(folder: Path, prepared: Prepared, case: Case, plan: Plan, remarks: Sequence[str]) -> None:
    image, scaling = prepared.image, None
    if not plan.integer_hu:
        image, scaling = quantise(image, prepared.statistics["sd"])
    write_array(folder / "image.b2nd", image, plan.dimensions)
    samples = {} if prepared.labels is None else write_label_array(folder, prepared.labels, case.name, plan.dimensions)
    content = {
        "name": case.name,
        "shape_voxels": list(prepared.image.shape[1:]),
        "spacing_mm": list(prepared.grid_mapping.network_spacing_mm),
        "has_labels": prepared.labels is not None,
        "scaling": None if scaling is None else asdict(scaling),
        "statistics": prepared.statistics,
        "samples": samples,
        "way_back": asdict(prepared.grid_mapping),
        "made_from": {**_case_signature(case, plan), "files": hashes_of(case)},
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    } | ({"remarks": list(remarks)} if remarks else {})
    atomic.write_json(folder / "case.json", content)


def write_label_array(folder: Path, labels: LabelArray, name: str, dimensions: int) -> dict[int, int]:
    """Write ``labels`` (S, H, W) of the network's grid, and the voxels that patches are centred on; how many of each
    structure's these are, by label id."""
    write_array(folder / "labels.b2nd", labels, dimensions)
    samples = sample_voxels(labels, name)
    voxels = np.concatenate([np.zeros((0, 3), np.int32), *samples.values()])
    smallest = np.int16 if voxels.max(initial=0) <= np.iinfo(np.int16).max else np.int32
    _write(folder / "samples.b2nd", voxels.T.astype(smallest))
    return {label: len(voxels) for label, voxels in samples.items()}


def _case_signature(case: Case, plan: Plan) -> dict[str, Any]:
    """What a stored case depends on beside its files."""
    return {
        "preprocessing_hash": plan.preprocessing_hash(),
        "role": case.role,
        "annotated": None if case.annotated is None else list(case.annotated),
    }


def is_current(store: Path, case: Case, plan: Plan, read: bool = False) -> bool:
    """Whether the case is there, whole by the sizes of its files, and made from the same files and grid.

    Files that were not touched since (see `untouched`) are the same; others are if they are read (``read``) and found
    so. A store of an earlier version knows only their sizes. What sizes in the store can't show, `find_damage` does.
    """
    folder = store / "cases" / file_name(case.name)
    try:
        content = read_own_json(folder / "case.json")
        sizes = {name: (folder / name).stat().st_size for name in content["bytes"]}
        made_from = content["made_from"]
        files = made_from["files"]
        if content["bytes"] != sizes or made_from != {**_case_signature(case, plan), "files": files}:
            return False
        if not have_hashes(files):
            return bool(files == sizes_of(case))
        return untouched(store, case) or (read and is_made_from(files, case))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def remarks_on(store: Path, name: str) -> tuple[str, ...]:
    """What was remarked on a stored case's scan when it was read: slices missing, a gantry tilt, …

    Nothing of a case that another process is replacing at this moment.
    """
    return tuple(read_own_json(store / "cases" / file_name(name) / "case.json").get("remarks", ()))


def _difference(store: Path, plan: Plan) -> str:
    there = read_plan(store / "plan.json")
    for name in ("dimensions", "spacing_mm", "axis_order", "labels", "channels", "conventions"):
        if getattr(there, name) != getattr(plan, name):
            return f"{name} {getattr(there, name)} there, {getattr(plan, name)} here"
    if plan.conventions.intensity == "before_resampling" and there.intensity.scheme == plan.intensity.scheme:
        ours, theirs = plan.intensity, there.intensity
        return f"window {theirs.low:g} to {theirs.high:g} HU there, {ours.low:g} to {ours.high:g} here"
    return f"intensity {there.intensity.scheme} there, {plan.intensity.scheme} here"


def write_array(path: Path, array: np.ndarray, dimensions: int) -> None:
    """(C, S, H, W) or (S, H, W), chunked for patches of this dimension."""
    edges = array.shape[-3:]
    chunk = tuple(min(size, edge) for size, edge in zip(CHUNK[dimensions], edges, strict=True))
    block = tuple(min(size, edge) for size, edge in zip(BLOCK[dimensions], chunk, strict=True))
    lead = (1,) * (array.ndim - 3)
    _write(path, array, chunks=lead + chunk, blocks=lead + block)


def _write(path: Path, array: np.ndarray, **layout: Any) -> None:
    """Packed in memory, then written here: blosc2, writing itself, does not say why it could not.

    Both thread counts, because one alone is not obeyed and the file says it: stores must be equal bit by bit.
    """
    parameters = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=1, nthreads=1)
    threads = blosc2.DParams(nthreads=1)
    packed = blosc2.asarray(np.ascontiguousarray(array), cparams=parameters, dparams=threads, contiguous=True, **layout)
    path.write_bytes(packed.to_cframe())


def _sample_count(voxels: int) -> int:
    """How many of a structure's voxels are kept: all up to 10 000, then 10 000, then 1 %.

    >>> _sample_count(7), _sample_count(50_000), _sample_count(2_000_050)
    (7, 10000, 20001)
    """
    return max(min(MOST_SAMPLES, voxels), math.ceil(SMALLEST_SHARE * voxels))


def sample_voxels(labels: LabelArray, case_name: str) -> dict[int, np.ndarray]:
    """Voxels (n, 3), (slice, row, column) int32, of every structure in ``labels`` (S, H, W), by label id.

    Without replacement, in scan order; the draw depends on the case's name and the label id only.
    """
    flat = labels.ravel()
    inside = np.flatnonzero(flat)
    ids = flat[inside]
    samples = {}
    for label in np.unique(ids):
        voxels = inside[ids == label]
        seed = int.from_bytes(hashlib.sha256(f"{label}:{case_name}".encode()).digest()[:8], "big")
        generator = np.random.default_rng(seed)
        chosen = np.sort(generator.choice(voxels, _sample_count(voxels.size), replace=False, shuffle=False))
        samples[int(label)] = np.stack(np.unravel_index(chosen, labels.shape), axis=1).astype(np.int32)
    return samples


def find_damage(folder: Path) -> str:
    """What is wrong with a case folder by its own list, in words; "" when every file is as it was written.

    Raises OSError where that can't be known now, as with too many open files or without permission.
    """
    try:
        listed = checksums_of(folder)
        unlisted = {path.name for path in folder.iterdir()} - {CHECKSUMS, *listed}
    except (OSError, ValueError) as error:
        if may_be_whole(error):
            raise
        return f"{CHECKSUMS} is missing or unreadable"
    if unlisted:
        return f"{CHECKSUMS} does not list {', '.join(sorted(unlisted))}"
    for name, expected in listed.items():
        try:
            found = sha256(folder / name)
        except OSError as error:
            if may_be_whole(error):
                raise
            return f"{name} can't be read ({error.strerror})"
        if found != expected:
            return f"{name} is not what was written"
    return ""


def write_manifest(store: Path) -> None:
    """Write STORE/manifest.sha256 from the lists of all finished cases.

    Jobs may end at once, each having missed what the others finished last. So a job looks again after it has written:
    whoever writes last has then seen everything.
    """
    written = None
    while (content := _manifest(store)) != written:
        atomic.write_text(store / "manifest.sha256", content)
        written = content


def _manifest(store: Path) -> str:
    lines = []
    for folder in sorted((store / "cases").iterdir()):
        if not folder.name.startswith(atomic.PARTIAL_PREFIX):
            with suppress(OSError, ValueError):  # being replaced at this moment, or damaged: not vouched for
                lines += [f"{digest}  cases/{folder.name}/{name}\n" for name, digest in checksums_of(folder).items()]
    return "".join(lines)
