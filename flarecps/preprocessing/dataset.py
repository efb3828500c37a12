"""A whole data set into a case store: in parallel, resumable, in shards; a bad case never stops the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import psutil

from flarecps.batch_processing import Outcome, process_cases, shard
from flarecps.case_names import file_name
from flarecps.datasets.catalogue import Case, Catalogue
from flarecps.errors import PlanError, ScanError, first_few
from flarecps.planning.plan import Plan
from flarecps.preprocessing.case import network_shape, prepare_case
from flarecps.preprocessing.sources import (
    FileHash,
    hashes_of,
    have_hashes,
    note_times,
    recorded_files,
    size_bytes,
    times_of,
)
from flarecps.preprocessing.store_writing import (
    check_store,
    disk_errors_as_store_error,
    find_damage,
    is_current,
    prepare_store,
    remarks_on,
    remove_case,
    remove_partial_cases,
    write_case,
    write_manifest,
)
from flarecps.volumes.io import read_channels, read_labels, read_space
from flarecps.volumes.links import check_reachable, place_of

PROCESS_BYTES = 250 << 20  # a worker with its libraries, before its first case
SLAB_BYTES = 64 << 20  # what is converted, resampled or compressed at a time

Done = Literal["written", "present"]


def preprocess_dataset(
    catalogue: Catalogue, plan: Plan, store: Path, workers: int, share: str | None = None, progress: bool = True
) -> list[Outcome[Done]]:
    """What became of every case: written, already present, or its error. Labels are stored wherever they exist.

    A case whose files have another content than when it was made is written again; files that were only touched, copied
    or moved are read, and the case stays.
    ``share`` "I/N" does the I-th of N shares of the cases (job arrays). Raises ``PlanError`` when plan and data set
    disagree, ``StoreError`` when the folder belongs to another plan.
    """
    _check_plan_fits(plan, catalogue)
    with disk_errors_as_store_error(store, "its description"):
        prepare_store(store, plan, catalogue)
    cases = shard(catalogue.cases, share)
    remove_partial_cases(store, {case.name for case in cases}, {case.name for case in catalogue.cases})
    waiting = [(case.name, (case, plan, store)) for case in cases if not is_current(store, case, plan)]
    done = {one.name: one for one in process_cases(preprocess_case, waiting, workers, "Preprocess", progress)}
    write_manifest(store)
    outcomes = [done.get(case.name, Outcome(case.name, "present", None)) for case in cases]
    faulty: list[Outcome[Done]] = [Outcome(name, None, why) for name, why in catalogue.faults.items()]
    outcomes = [one if one.failed else replace(one, remarks=remarks_on(store, one.name)) for one in outcomes]
    return outcomes + faulty


def verify_dataset(
    catalogue: Catalogue, plan: Plan, store: Path, workers: int, share: str | None = None, progress: bool = True
) -> list[Outcome[str]]:
    """What is wrong with every case by the checksums of its files and of those it was made from ("" when nothing is);
    such a case leaves the store, so that the next `preprocess_dataset` writes it again. ``share`` as there.
    """
    _check_plan_fits(plan, catalogue)
    check_store(store, plan)
    entries = [(case.name, (case, store)) for case in shard(catalogue.cases, share)]
    outcomes = process_cases(_verify_case, entries, workers, "Verify", progress)
    write_manifest(store)
    return outcomes + [Outcome(name, None, why) for name, why in catalogue.faults.items()]


def _verify_case(entry: tuple[Case, Path]) -> str:
    """What is wrong with a stored case, in words; "" when it is whole and of the same files. A wrong one leaves the
    store."""
    case, store = entry
    folder = store / "cases" / file_name(case.name)
    if not folder.is_dir():
        return "missing"
    found = find_damage(folder)
    recorded = [] if found else recorded_files(store, case.name)
    if recorded and have_hashes(recorded):
        now = hashes_of(case)
        changed = sorted({name for name, *_ in (*_absent(recorded, now), *_absent(now, recorded))})
        found = f"not made from the files that are there now ({first_few(changed)} changed)" if changed else ""
    if found:
        remove_case(store, case.name)
    return found


def _absent(these: list[FileHash], those: list[FileHash]) -> list[FileHash]:
    return [entry for entry in these if entry not in those]


def cases_without_hashes(catalogue: Catalogue, store: Path) -> list[str]:
    """The cases in the store that an earlier version wrote: it kept the sizes of their files, but no hashes."""
    return [case.name for case in catalogue.cases if not have_hashes(recorded_files(store, case.name))]


def _check_plan_fits(plan: Plan, catalogue: Catalogue) -> None:
    """Nothing, or ``PlanError`` when the plan speaks of other labels or channels than the data set."""
    channels = ("channels", list(plan.channels), list(catalogue.channels))
    for name, planned, found in (("labels", plan.labels, catalogue.labels), channels):
        if planned != found:
            raise PlanError(
                f"the plan's {name} are {planned}, but {catalogue.root} has {found}; plan this data set with "
                f"'flarecps plan {catalogue.root} --out PLAN.json'"
            )


def preprocess_case(entry: tuple[Case, Plan, Path]) -> Done:
    """One case from its files into the store: (case, plan, store) in one argument, as `process_cases` hands it over."""
    case, plan, store = entry
    for path in filter(None, (*case.images, case.labels)):
        check_reachable(path)
    try:
        times = times_of(case)
    except OSError as error:
        raise ScanError(
            f"{error.filename}: a file of case '{case.name}' can't be read ({error.strerror}); restore it, or check "
            "its permissions"
        ) from error
    done: Done = "present"
    if not is_current(store, case, plan, read=True):
        volume = read_channels(case.images)
        labels = None if case.labels is None else read_labels(case.labels)
        write_case(store, prepare_case(volume, plan, labels, case.name), case, plan, volume.warnings)
        done = "written"
    if times_of(case) != times:
        remove_case(store, case.name)
        raise ScanError(f"{case.images[0]}: case '{case.name}' changed while it was read; run the same command again")
    note_times(store, case.name, times)
    return done


def case_bytes(voxels_in: int, voxels_out: int, channels: int, ct: bool, stored_bytes: int = 2) -> int:
    """The most RAM, in bytes, that a case of these sizes takes on top of its worker's own.

    Per voxel of the scan its stored type (usually 2) for each channel and 1 for labels; per voxel of the result 2 for
    each channel of CT, or 6 of another modality (float32, then int16), and 1 for labels; 4 per voxel of the larger of
    the two, for what lies between two axes.
    """
    scan = voxels_in * (stored_bytes * channels + 1)
    result = voxels_out * ((2 if ct else 6) * channels + 1)
    return scan + result + 4 * max(voxels_in, voxels_out) + SLAB_BYTES


def workers_that_fit(cases: Sequence[Case], plan: Plan, workers: int, available: int | None = None) -> tuple[int, int]:
    """How many of ``workers`` have RAM enough if they meet the largest cases at once (at least 1); bytes all need.

    The largest are found by file size, their voxels read from the header. ``available``: bytes, by default what the
    machine has free now.
    """
    if available is None:
        available = psutil.virtual_memory().available
    by_size = sorted(cases, key=lambda case: sum(size_bytes(path) for path in case.images if place_of(path).exists()))
    needs = sorted((_bytes_of(case, plan) for case in by_size[-workers:]), reverse=True)
    fitting = sum(sum(needs[: count + 1]) <= available for count in range(len(needs)))
    return max(1, fitting if fitting < len(needs) else workers), sum(needs)


def _bytes_of(case: Case, plan: Plan) -> int:
    """Bytes of a worker with this case; of the worker alone when the case can't be read (it will say so itself)."""
    try:
        space = read_space(case.images[0])
        sizes = math.prod(space.shape), math.prod(network_shape(space.shape, space.spacing_mm, plan))
    except ScanError:
        return PROCESS_BYTES
    return PROCESS_BYTES + case_bytes(*sizes, len(case.images), plan.integer_hu)
