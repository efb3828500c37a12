"""``flarecps preprocess``: a data set into a case store."""

from __future__ import annotations

from pathlib import Path

FAILED = 1  # exit code: some cases could not be preprocessed


def preprocess(
    dataset: Path, plan: Path, *, out: Path, workers: int = 2, shard: str | None = None, progress: bool = True
) -> int:
    """Crop and resample every scan to the plan's grid and store it compressed, ready for training.

    CT stays in HU (int16): intensities are scaled when a patch is read. Finished cases are skipped, so an interrupted
    run continues where it stopped. A case that can't be preprocessed is reported at the end, the others are done; exit
    code 1 then.

    Args:
        dataset: folder of the data set that the plan was made for
        plan: the plan, written by 'flarecps plan'
        out: folder of the case store; made if needed, continued if it holds cases of this plan
        workers: processes at work, one scan each
        shard: I/N does the I-th of N shares of the cases, for job arrays; all shares go into the same --out
        progress: show progress and the time left
    """
    from rich.console import Console

    from flarecps.datasets.catalogue import read_catalogue
    from flarecps.planning.plan import read_plan
    from flarecps.preprocessing.dataset import preprocess_dataset

    outcomes = preprocess_dataset(read_catalogue(dataset), read_plan(plan), out, workers, shard, progress)
    written = sum(outcome.value == "written" for outcome in outcomes)
    present = sum(outcome.value == "present" for outcome in outcomes)
    failed = [outcome for outcome in outcomes if outcome.failed]
    there = f"; {present} were there already" if present else ""
    Console(highlight=False, soft_wrap=True).print(
        f"{written} of {len(outcomes)} cases preprocessed{there}: {out}", markup=False
    )
    if failed:
        _show_failures([(outcome.name, outcome.error or "") for outcome in failed])
    return FAILED if failed else 0


def _show_failures(failures: list[tuple[str, str]]) -> None:
    """A table on a terminal; elsewhere (a log) one whole line per case."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    errors = Console(stderr=True, highlight=False)
    if not errors.is_terminal:
        for name, error in failures:
            errors.print(f"not preprocessed: {name}: {error}", markup=False, soft_wrap=True)
        return
    table = Table("case", "error", title=f"{len(failures)} not preprocessed", title_justify="left", title_style="red")
    for name, error in failures:
        table.add_row(escape(name), escape(error))
    errors.print(table)
