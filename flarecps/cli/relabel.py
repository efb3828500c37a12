"""``flarecps relabel``: label maps with other ids, as the data set doctor proposes them."""

from __future__ import annotations

from functools import partial
from pathlib import Path


def relabel(labels: Path, out: Path, *, ids: str, workers: int = 2, progress: bool = True) -> int:
    """Write every label map of a folder into another one with other ids; all other ids stay, the headers too.

    Exit code 1 when a map could not be written (the others are).

    Args:
        labels: folder of label maps, or one file
        out: folder to write into, not the same one
        ids: old and new ids, as 63=1,126=2; 0 clears (with a first id below 0: --ids=-1=0)
        workers: processes at work, one map each
        progress: show progress and the time left
    """
    from flarecps.batch_processing import process_cases
    from flarecps.case_names import why_not_plain
    from flarecps.cli.console import Console
    from flarecps.datasets.relabelling import parse_ids, relabel_file
    from flarecps.errors import DatasetError
    from flarecps.named_paths import check_output_folder
    from flarecps.volumes.discovery import label_maps
    from flarecps.volumes.io import scan_name

    table = parse_ids(ids)
    if not labels.exists():
        raise DatasetError(f"{labels}: no such file or folder; expected label maps: check the path")
    check_output_folder(out)
    if out.resolve() == (labels if labels.is_dir() else labels.parent).resolve():
        raise DatasetError(f"{out}: the label maps themselves lie there; choose another folder, they are kept")
    files = label_maps(labels, leave_out=(out,)) if labels.is_dir() else {scan_name(labels): labels}
    odd = {file: why for name, file in files.items() if (why := why_not_plain(name))}
    tasks = [(file.name, (file, out / f"{name}.nii.gz")) for name, file in files.items() if file not in odd]
    outcomes = process_cases(partial(relabel_file, ids=table), tasks, workers, "Relabelling", progress)
    console = Console()
    failed = [f"{file.name}: the case's name {why}: rename it" for file, why in odd.items()]
    failed += [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.failed]
    for line in failed:
        console.print(line, style="bold red", markup=False, highlight=False, soft_wrap=True)
    changed = sum(outcome.value or 0 for outcome in outcomes)
    console.print(
        f"{out}: {len(files) - len(failed)} label maps, {changed} voxels renumbered", markup=False, soft_wrap=True
    )
    if not failed:
        said = f"next: put them in the place of {labels}, then 'flarecps inspect DATASET'"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0
