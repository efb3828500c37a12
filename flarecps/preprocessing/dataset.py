"""A whole data set into a case store: in parallel, resumable, in shards; a bad case never stops the others."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from flarecps.batch_processing import Outcome, process_cases, shard
from flarecps.datasets.catalogue import Case, Catalogue
from flarecps.errors import PlanError
from flarecps.planning.plan import Plan
from flarecps.preprocessing.case import prepare_case
from flarecps.preprocessing.checksums import damage, write_manifest
from flarecps.preprocessing.store_writing import (
    check_store,
    full_disk_as_store_error,
    is_current,
    prepare_store,
    remove_case,
    remove_partial_cases,
    write_case,
)
from flarecps.volumes.io import read_channels, read_labels

Done = Literal["written", "present"]
Verdict = str  # "": whole; otherwise what is wrong


def preprocess_dataset(
    catalogue: Catalogue, plan: Plan, store: Path, workers: int, share: str | None = None, progress: bool = True
) -> list[Outcome[Done]]:
    """What became of every case: written, already present, or its error. Labels are stored wherever they exist.

    ``share`` "I/N" does the I-th of N shares of the cases (job arrays). Raises ``PlanError`` when plan and data set
    disagree, ``StoreError`` when the folder belongs to another plan.
    """
    check_plan_fits(plan, catalogue)
    with full_disk_as_store_error(store, "its description"):
        prepare_store(store, plan, catalogue)
    cases = shard(catalogue.cases, share)
    remove_partial_cases(store, {case.name for case in cases}, {case.name for case in catalogue.cases})
    waiting = [(case.name, (case, plan, store)) for case in cases if not is_current(store, case, plan)]
    done = {
        outcome.name: outcome for outcome in process_cases(preprocess_case, waiting, workers, "Preprocess", progress)
    }
    write_manifest(store)
    return [done.get(case.name, Outcome(case.name, "present", None)) for case in cases]


def verify_dataset(
    catalogue: Catalogue, plan: Plan, store: Path, workers: int, share: str | None = None, progress: bool = True
) -> list[Outcome[Verdict]]:
    """What every case's checksums say; each case that is not as it was written leaves the store, so that the next
    `preprocess_dataset` writes it again. ``share`` as there.
    """
    check_plan_fits(plan, catalogue)
    check_store(store, plan)
    entries = [(case.name, (case.name, store)) for case in shard(catalogue.cases, share)]
    outcomes = process_cases(verify_case, entries, workers, "Verify", progress)
    write_manifest(store)
    return outcomes


def verify_case(entry: tuple[str, Path]) -> Verdict:
    """What is wrong with a stored case, in words; "" when it is whole. A damaged one is taken out of the store."""
    name, store = entry
    if not (store / "cases" / name).is_dir():
        return "missing"
    found = damage(store / "cases" / name)
    if found is not None:
        remove_case(store, name)
    return found or ""


def check_plan_fits(plan: Plan, catalogue: Catalogue) -> None:
    """Nothing, or ``PlanError`` when the plan speaks of other labels or channels than the data set."""
    for name, planned, found in (
        ("labels", plan.labels, catalogue.labels),
        ("channels", list(plan.channels), list(catalogue.channels)),
    ):
        if planned != found:
            raise PlanError(
                f"the plan's {name} are {planned}, but {catalogue.root} has {found}; plan this data set with "
                f"'flarecps plan {catalogue.root} --out PLAN.json'"
            )


def preprocess_case(entry: tuple[Case, Plan, Path]) -> Done:
    """One case from its files into the store: (case, plan, store) in one argument, as `process_cases` hands it over."""
    case, plan, store = entry
    volume = read_channels(case.images)
    labels = None if case.labels is None else read_labels(case.labels)
    write_case(store, prepare_case(volume, plan, labels, case.name), case, plan)
    return "written"
