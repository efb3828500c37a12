"""``flarecps figures``: the pictures of a paper's results, of any methods, from their label maps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from flarecps.cli import PLAIN
from flarecps.errors import ConfigError
from flarecps.named_paths import comma_list

MOST_WORKERS = 4  # a process holds a scan and two label maps
KEPT = "scores"  # folder of OUT
FAILED = 1  # exit code: some cases are not in the figures


def figures(
    predictions: list[str],
    *,
    references: Path,
    out: Path,
    images: Path | None = None,
    names: str | None = None,
    labels: Path | None = None,
    protocol: Literal["official", "strict"] = "official",
    cases: str | None = None,
    rows: int = 4,
    worst: int = 10,
    window_hu: list[float] | None = None,
    workers: int = 0,
) -> int:
    """Draw results of one or more methods: cases side by side as in the paper's Figure 5, box plots, volumes, failures.

    OUT gets cases.png (rows: cases; columns: image, reference, each method; mean DSC in the corner), boxes.png (DSC
    and NSD per organ), volumes.png (predicted against reference ml), worst_cases.png (lowest scores, on the slice with
    the largest error), and figures.html with all of them in one file. The label maps are scored on the way, as
    'flarecps score' does; scores are kept in OUT/scores/METHOD, so a second call is quick.

    A case that can't be read is reported and the others are shown; the exit code is 1 then.

    Args:
        predictions: one argument per method; FOLDER or NAME=FOLDER of label maps.
        references: folder of reference label maps of the same names.
        out: folder for the figures; made if needed.
        images: folder of the segmented scans (NAME_0000.nii.gz or NAME.nii.gz); without it there are charts only.
        names: names of the methods, separated by commas, in order.
        labels: dataset.json (or its folder) that names the structures; by default as 'flarecps score' finds it.
        protocol: whose rules the scores follow, see 'flarecps score'.
        cases: the cases to show side by side, separated by commas; by default some from the easiest to the hardest.
        rows: how many cases are shown side by side, without --cases.
        worst: how many of the lowest scores are shown.
        window_hu: grey values shown as black and white, [-160, 240]; by default these for CT, percentiles for others.
        workers: processes at work; 0 takes one per core, at most 4.
    """
    from flarecps.cli.console import Console
    from flarecps.reporting.result_figures import write_result_figures
    from flarecps.reporting.results import gather_results, named_folders
    from flarecps.reporting.tables import score_text

    if window_hu is not None and (len(window_hu) != 2 or window_hu[0] >= window_hu[1]):
        raise ConfigError(f"--window {window_hu}: expected two grey values, the darker one first: [-160, 240]")
    if rows < 0 or worst < 0:
        raise ConfigError(f"--rows {rows} --worst {worst}: expected 0 or more")
    shown = comma_list(cases)
    if shown is not None and images is None:
        raise ConfigError("--cases needs the scans: name their folder with --images")
    called = comma_list(names)
    processes = workers or min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, MOST_WORKERS)
    results = gather_results(
        named_folders(predictions, called), references, images, labels, protocol, processes, keep=out / KEPT
    )
    window = (window_hu[0], window_hu[1]) if window_hu is not None else None
    written = write_result_figures(out, results, shown, rows, worst, window, processes)
    console, problems = Console(), Console(stderr=True)
    for method in results.methods:
        scores = results.tables[method].scores
        mean = score_text(scores.mean())
        console.print(f"{method}: mean DSC {mean} over {len(scores.cases)} cases", highlight=False, markup=False)
    for note in written.notes:
        console.print(f"- {note}", style="yellow", **PLAIN)
    for case, error in written.failed.items():
        problems.print(f"not shown: {case}: {error}", style="red", **PLAIN)
    files = ", ".join(path.name for path in written.files)
    console.print(f"written to {out}: {files}", **PLAIN)
    return FAILED if written.failed else 0
