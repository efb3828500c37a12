"""``flarecps inspect``: the data set doctor at the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from flarecps.datasets.inspection import Inspection

SHOWN_PER_CODE = 8  # of warnings and notes; errors are shown up to
SHOWN_ERRORS_PER_CODE = 100
STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def inspect(
    dataset: Path,
    *,
    split: str | None = None,
    json: Path | None = None,
    html: Path | None = None,
    annotated: Path | None = None,
    workers: int = 2,
    progress: bool = True,
) -> int:
    """Check every scan and label map of a data set before time is spent on training.

    Prints what was found, worst first; exit code 1 when something would break training or make its result false.
    DATASET may be nnU-Net v2's raw layout plus imagesUn/ for unlabelled scans, FLARE22's or MSD's own folders, or plain
    images/ labels/ unlabelled/ [test/] with a dataset.json.

    Args:
        dataset: folder of the data set
        split: name of a split in its splits.json; without it the folders say who is labelled
        json: also write all findings, proposals and a record of every case to this file
        html: also write a page with pictures to this file, one file without any other
        annotated: also write a splits.json for review, with the drawn ids of every case that lacks a structure
        workers: processes at work, one scan each
        progress: show progress and the time left
    """
    from rich.console import Console

    from flarecps.atomic import write_json
    from flarecps.datasets.inspection import inspect_folder, inspection_to_json

    inspection = inspect_folder(dataset, split, workers, progress)
    console = Console()
    _show_summary(console, inspection.summary)
    _show_findings(console, inspection)
    _show_renumbering(console, inspection)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        write_json(json, inspection_to_json(inspection))
        console.print(f"all findings: {json}", markup=False, highlight=False, soft_wrap=True)
    if annotated is not None:
        proposal = inspection.annotated_proposal()
        annotated.parent.mkdir(parents=True, exist_ok=True)
        write_json(annotated, proposal if split is None else {split: proposal})
        count = len(proposal.get("annotated", {}))
        console.print(
            f"a splits.json to review, {count} cases with a list of drawn ids: {annotated}",
            markup=False, highlight=False,
        )  # fmt: skip
    if html is not None:
        from flarecps.reporting.doctor import write_doctor_page

        write_doctor_page(html, inspection, workers, progress)
        console.print(f"the page with pictures: {html}", markup=False, highlight=False, soft_wrap=True)
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
    stored = ", ".join(f"{codes} {count}" for codes, count in summary["stored_as"].items())
    console.print(table)
    console.print(f"cases: {cases}", highlight=False, markup=False)
    console.print(f"stored as: {stored}", highlight=False, markup=False)
    console.print(
        f"structures, in how many of {summary['cases_with_labels']} label maps: {structures}",
        highlight=False,
        markup=False,
    )


def _show_findings(console: Console, inspection: Inspection) -> None:
    from itertools import groupby

    from rich.markup import escape
    from rich.table import Table

    if not inspection.findings:
        return
    table = Table("", "case", "found", title="findings", title_justify="left")
    seen: dict[str, int] = {}
    for code, group in groupby(inspection.findings, key=lambda finding: finding.code):
        members = list(group)
        seen[code] = len(members)
        shown = members[: _most(members[0].severity)]
        for index, finding in enumerate(shown):
            style = STYLES[finding.severity]
            kind = f"[{style}]{finding.severity}[/]\n{code}" if index == 0 else ""
            cure = index + 1 == len(shown) or shown[index + 1].cure != finding.cure
            words = f"{finding.found}; expected {finding.expected}" + (f"\n→ {finding.cure}" if cure else "")
            table.add_row(
                kind, escape(finding.case) or "(data set)", escape(words), end_section=index + 1 == len(shown)
            )
    console.print(table)
    severities = {finding.code: finding.severity for finding in inspection.findings}
    for code, count in seen.items():
        hidden = count - _most(severities[code])
        if hidden > 0:
            console.print(f"… and {hidden} more of {code!r}: all of them with --json FILE", style="dim", markup=False)


def _most(severity: str) -> int:
    return SHOWN_ERRORS_PER_CODE if severity == "error" else SHOWN_PER_CODE


def _show_renumbering(console: Console, inspection: Inspection) -> None:
    proposal = inspection.renumbering
    if proposal is None:
        return
    console.print("proposed renumbering of the labels", style="bold")
    lines = [
        f"  why: {proposal.reason}",
        f"  label maps: flarecps relabel LABELS OUT --ids {proposal.words}",
        f"  dataset.json: {proposal.fragment or 'stays as it is'}",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
