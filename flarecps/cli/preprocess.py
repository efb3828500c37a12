"""``flarecps preprocess``: a data set into a case store."""

from __future__ import annotations

from pathlib import Path

FAILED = 1  # exit code: some cases could not be preprocessed


def preprocess(
    dataset: Path,
    plan: Path,
    *,
    out: Path,
    workers: int = 2,
    shard: str | None = None,
    verify: bool = False,
    progress: bool = True,
) -> int:
    """Crop and resample every scan to the plan's grid and store it compressed, ready for training.

    CT stays in HU (int16): intensities are scaled when a patch is read. Finished cases are skipped, so an interrupted
    run continues where it stopped; those whose files have changed since are done again. With another plan that stores
    the same voxels (another patch, network or intensity scaling) cases are kept and the store's plan is replaced;
    another grid needs another --out. A case that can't be preprocessed is reported at the end, the others are done;
    exit code 1 then. A worker takes at most 0.33 GB of RAM and, for a case of one channel, 3 bytes per voxel of the
    scan, 3 (CT) or 7 per voxel of the result and 4 per voxel of the larger: 0.63 GB for a CT of 512×512×119 voxels at
    1 mm. Fewer workers start where that does not fit.

    Args:
        dataset: folder of the data set that the plan was made for
        plan: the plan, written by 'flarecps plan'
        out: folder of the case store; made if needed, continued if it holds cases of this plan
        workers: processes at work, one scan each
        shard: I/N does the I-th of N shares of the cases, for job arrays; all shares go into the same --out
        verify: preprocess nothing, but compare every stored case, and the files it was made from, with their checksums;
            a damaged one, or one whose files changed, is listed and taken out, so that the next run writes it again;
            exit code 1 when there is one, or a case is missing
        progress: show progress and the time left
    """
    from rich.markup import escape
    from rich.table import Table

    from flarecps.batch_processing import shard as share_of
    from flarecps.cli import PLAIN, next_command
    from flarecps.cli.console import Console
    from flarecps.datasets.catalogue import read_catalogue
    from flarecps.errors import counted
    from flarecps.named_paths import check_output_folder
    from flarecps.planning.plan import plan_differences, read_plan
    from flarecps.preprocessing.dataset import (
        cases_without_hashes,
        preprocess_dataset,
        verify_dataset,
        workers_that_fit,
    )

    check_output_folder(out)
    catalogue, grid = read_catalogue(dataset), read_plan(plan)
    errors = Console(stderr=True, highlight=False)
    said: list[str] = []
    if verify:
        verdicts = verify_dataset(catalogue, grid, out, workers, shard, progress)
        failures = [(one.name, one.error or one.value or "") for one in verdicts if one.failed or one.value]
        done = f"{len(verdicts) - len(failures)} of {len(verdicts)} cases as they were written"
        what = "damaged, missing or changed"
    else:
        fitting, needed = workers_that_fit(share_of(catalogue.cases, shard), grid, workers)
        if fitting < workers:
            needs = f"{workers} workers may need {needed / 1e9:.1f} GB of RAM, more than is free"
            errors.print(f"{needs}: {fitting} at work instead", markup=False, soft_wrap=True)
        before = out / "plan.json"
        replaced = plan_differences(read_plan(before), grid) if before.is_file() else []
        outcomes = preprocess_dataset(catalogue, grid, out, fitting, shard, progress)
        failures = [(outcome.name, outcome.error or "") for outcome in outcomes if outcome.failed]
        written, present = (sum(one.value == value for one in outcomes) for value in ("written", "present"))
        there = f"; {present} were there already" if present else ""
        done, what = f"{written} of {len(outcomes)} cases preprocessed{there}", "not preprocessed"
        for outcome in outcomes:
            for remark in outcome.remarks:
                errors.print(f"{outcome.name}: {remark}", style="yellow", markup=False, soft_wrap=True)
        if replaced:
            said += [f"the store's plan is now {plan}; its cases, whose voxels are the same, were kept", *replaced]
        if not failures and shard is None:
            said.append(next_command("fit", "--data.store", out))
    Console().print(f"{done}: {out}", *said, sep="\n", **PLAIN)
    if old := cases_without_hashes(catalogue, out):
        errors.print(
            f"{out}: {counted(len(old), 'case')} of an earlier version without hashes of their scans: a change that "
            "keeps a file's size is not seen; preprocess into another --out to have them",
            markup=False,
            soft_wrap=True,
        )
    if failures and errors.is_terminal:
        table = Table("case", "error", title=f"{len(failures)} {what}", title_justify="left", title_style="red")
        for name, error in failures:
            table.add_row(escape(name), escape(error))
        errors.print(table)
    else:  # in a log, one whole line per case
        for name, error in failures:
            errors.print(f"{what}: {name}: {error}", markup=False, soft_wrap=True)
    return FAILED if failures else 0
