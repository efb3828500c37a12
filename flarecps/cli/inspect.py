"""``flarecps inspect``: the data set doctor at the terminal."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flarecps.cli.console import Console
    from flarecps.datasets.inspection import Inspection

SHOWN_PER_CODE = {"error": 100, "warning": 8, "note": 8}
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
        annotated: also write a splits.json for review: in cases that lack a structure, the ids of the annotated ones
        workers: processes at work, one scan each
        progress: show progress and the time left
    """
    from flarecps.atomic import write_json
    from flarecps.cli import next_command
    from flarecps.cli.console import Console
    from flarecps.datasets.inspection import inspect_folder, inspection_to_json
    from flarecps.errors import counted

    inspection = inspect_folder(dataset, split, workers, progress)
    console = Console()
    plain = partial(console.print, markup=False, highlight=False)
    _show_summary(console, inspection.summary)
    _show_findings(console, inspection)
    if proposed := inspection.renumbering:
        console.print("proposed renumbering of the labels", style="bold")
        plain(f"  why: {proposed.reason}", soft_wrap=True)
        for command in proposed.commands or ["stay as they are"]:
            plain(f"  label maps: {command}", soft_wrap=True)
        plain(f"  dataset.json: {proposed.fragment or 'stays as it is'}", soft_wrap=True)
    for file in (json, annotated):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    if json is not None:
        write_json(json, inspection_to_json(inspection))
        plain(f"all findings: {json}", soft_wrap=True)
    if annotated is not None:
        proposal = inspection.annotated_proposal()
        write_json(annotated, proposal if split is None else {split: proposal})
        count = len(proposal.get("annotated", {}))
        plain(f"a splits.json to review, {count} cases with a list of drawn ids: {annotated}")
    if html is not None:
        from flarecps.reporting.doctor import write_doctor_page

        write_doctor_page(html, inspection, workers, progress)
        plain(f"the page with pictures: {html}", soft_wrap=True)
    counts = inspection.summary["findings"]
    verdict = "[bold red]would break training[/]" if inspection.breaks_training else "[green]fit for training[/]"
    console.print(f"{verdict}: {', '.join(counted(number, severity) for severity, number in counts.items())}")
    if not inspection.breaks_training:
        chosen = ("--split", split) if split else ()
        plain(next_command("plan", dataset, *chosen, "--out", "plan.json"), soft_wrap=True)
    return 1 if inspection.breaks_training else 0


def _show_summary(console: Console, summary: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from flarecps.errors import counted, first_few

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
    if table.row_count:  # a scan could be read
        console.print(table)
    labelled = f"structures, in how many of {summary['cases_with_labels']} label maps"
    lines = [f"cases: {cases}", *([f"stored as: {stored}"] if stored else []), f"{labelled}: {structures}"]
    lines += [
        f"{direction} can't be judged of {counted(len(names), 'CT')} (no telling organs, no torso; see the pictures of "
        f"--html): {first_few(names)}"
        for direction, names in summary["not_judged"].items()
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)


def _show_findings(console: Console, inspection: Inspection) -> None:
    from itertools import groupby

    from rich.markup import escape
    from rich.table import Table

    if not inspection.findings:
        return
    table = Table("", "case", "found", title="findings", title_justify="left")
    left_out = []
    for (code, severity), group in groupby(inspection.findings, key=lambda finding: (finding.code, finding.severity)):
        members = list(group)
        shown = members[: SHOWN_PER_CODE[severity]]
        if len(members) > len(shown):
            left_out.append(f"… and {len(members) - len(shown)} more of {code!r}: all of them with --json FILE")
        for index, finding in enumerate(shown):
            last = index + 1 == len(shown)
            kind = f"[{STYLES[severity]}]{severity}[/]\n{code}" if index == 0 else ""
            cure = f"\n→ {finding.cure}" if last or shown[index + 1].cure != finding.cure else ""
            words = f"{finding.found}; expected {finding.expected}{cure}"
            table.add_row(kind, escape(finding.case) or "(data set)", escape(words), end_section=last)
    console.print(table)
    for line in left_out:
        console.print(line, style="dim", markup=False)
