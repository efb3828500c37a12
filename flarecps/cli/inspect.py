"""``flarecps inspect``: the data set doctor at the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from flarecps.datasets.inspection import Inspection

SHOWN_PER_CODE = 8  # of warnings and notes; errors are all shown
STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def inspect(
    dataset: Path, *, split: str | None = None, json: Path | None = None, workers: int = 2, progress: bool = True
) -> int:
    """Check every scan and label map of a data set before time is spent on training.

    Prints what was found, worst first; exit code 1 when something would break training or make its result false.
    DATASET may be nnU-Net v2's raw layout plus imagesUn/ for unlabelled scans, FLARE22's or MSD's own folders, or plain
    images/ labels/ unlabelled/ [test/] with a dataset.json.

    Args:
        dataset: folder of the data set
        split: name of a split in its splits.json; without it the folders say who is labelled
        json: also write all findings and a summary to this file
        workers: processes at work, one scan each
        progress: show progress and the time left
    """
    from rich.console import Console

    from flarecps.atomic import write_json
    from flarecps.datasets.catalogue import read_catalogue
    from flarecps.datasets.inspection import inspect_catalogue, inspection_to_json

    inspection = inspect_catalogue(read_catalogue(dataset, split), workers, progress)
    console = Console()
    _show_summary(console, inspection.summary)
    _show_findings(console, inspection)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        write_json(json, inspection_to_json(inspection))
    counts = inspection.summary["findings"]
    verdict = "[bold red]would break training[/]" if inspection.breaks_training else "[green]fit for training[/]"
    console.print(f"{verdict}: {counts['error']} errors, {counts['warning']} warnings, {counts['note']} notes")
    return 1 if inspection.breaks_training else 0


def _show_summary(console: Console, summary: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{summary['dataset']} ({summary['layout']} layout)"), title_justify="left",
                  caption="axes: slice×row×column, from feet to head, back to front, left to right",
                  caption_justify="left")  # fmt: skip
    for heading in ("", "lowest", "median", "highest"):
        table.add_column(heading, justify="left" if not heading else "right")
    for key, heading in (("shape_voxels", "shape, voxels"), ("spacing_mm", "spacing, mm")):
        if key in summary:
            table.add_row(heading, *("×".join(f"{value:g}" for value in triple) for triple in summary[key].values()))
    if "intensities" in summary:
        unit = ", HU" if summary["channels"][0].upper() == "CT" else ""
        table.add_row(f"intensities{unit}", *(f"{summary['intensities'][end]:g}" if end else "" for end in
                                              ("lowest", "", "highest")))  # fmt: skip
    cases = ", ".join(f"{count} {role}" for role, count in summary["cases"].items() if count)
    structures = ", ".join(f"{name} {count}" for name, count in summary["cases_with_structure"].items())
    console.print(table)
    console.print(f"cases: {cases}", highlight=False, markup=False)
    console.print(
        f"structures, in how many of {summary['cases_with_labels']} label maps: {structures}",
        highlight=False,
        markup=False,
    )


def _show_findings(console: Console, inspection: Inspection) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not inspection.findings:
        return
    table = Table("", "case", "what", "finding", title="findings", title_justify="left")
    shown: dict[str, int] = {}
    for finding in inspection.findings:
        shown[finding.code] = shown.get(finding.code, 0) + 1
        if finding.severity != "error" and shown[finding.code] > SHOWN_PER_CODE:
            continue
        style = STYLES[finding.severity]
        table.add_row(f"[{style}]{finding.severity}[/]", escape(finding.case), finding.code, escape(finding.message))
    console.print(table)
    for code, count in shown.items():
        hidden = count - SHOWN_PER_CODE
        if hidden > 0 and all(one.severity != "error" for one in inspection.findings if one.code == code):
            console.print(f"… and {hidden} more of {code!r}: all of them with --json FILE", style="dim", markup=False)
