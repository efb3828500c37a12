"""``flarecps report``: one HTML page of one run, or of several side by side."""

from __future__ import annotations

from pathlib import Path

from flarecps.errors import DatasetError
from flarecps.named_paths import comma_list


def report(
    runs: list[Path],
    *,
    out: Path | None = None,
    images: Path | None = None,
    references: Path | None = None,
    predictions: Path = Path("segmentations"),
    scores: Path = Path("scores"),
    names: str | None = None,
) -> None:
    """Make one self-contained HTML page of a run, or of several side by side: scores, overlays, curves, plan, commands.

    Whatever a run folder holds is shown, so a run that is still going works too. Runs that differ by their seeds or
    folds alone are shown as one method, with mean and spread. Overlays of test scans need --images.

    Args:
        runs: run folders (trainer.default_root_dir of their configs); two are also compared case by case.
        out: HTML file to write; without it RUN/report.html for one run, ./report.html for several.
        images: folder of the segmented scans (NAME_0000.nii.gz or NAME.nii.gz), for the overlays.
        references: folder of reference label maps (NAME.nii.gz), for outlines in the overlays.
        predictions: folder of predicted label maps, relative to each run folder.
        scores: folder with scores.csv from 'flarecps score --out', relative to each run folder.
        names: what the page calls the runs, separated by commas, in order; without it the folders' names.
    """
    from flarecps.cli.console import Console
    from flarecps.reporting.html import write_report
    from flarecps.reporting.run_folder import read_runs, scans_by_name

    for folder, option in ((images, "--images"), (references, "--references")):
        if folder is not None and not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; {option} names a folder of scans")
    called = comma_list(names)
    found = read_runs(runs, called, predictions, scores)
    if out is None:
        out = runs[0] / "report.html" if len(runs) == 1 else Path("report.html")
    notes = write_report(out, found, scans_by_name(images), scans_by_name(references))
    console = Console()
    for note in notes:
        console.print(note, style="yellow", highlight=False, markup=False)
    console.print(f"report: {out}", highlight=False, markup=False, soft_wrap=True)
