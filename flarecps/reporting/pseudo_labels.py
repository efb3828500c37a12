"""How good pseudo-labels are, scan by scan and worst first: a table, and a page to look through before one trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flarecps.anatomy import organs_of
from flarecps.atomic import write_text
from flarecps.batch_processing import process_cases
from flarecps.planning.plan import Plan
from flarecps.planning.spacing import in_canonical_order
from flarecps.preprocessing.pseudo_labels import STRUCK, PseudoLabels, organs_of_plan, read_all, read_struck
from flarecps.preprocessing.store import CaseStore
from flarecps.reporting.overlays import display_window
from flarecps.reporting.page import render_page
from flarecps.reporting.tables import score_text
from flarecps.reporting.thumbnails import thumbnail
from flarecps.text_files import csv_text
from flarecps.typing import triple

TABLE, PAGE = "quality.csv", "index.html"
MOST_PICTURES = 100  # about 20 KB each; the table has all scans


def worst_first(scans: Sequence[PseudoLabels]) -> list[PseudoLabels]:
    """The scans to look at first, first: none of the organs found, then by rising mean quality."""
    return sorted(scans, key=lambda one: (-1.0 if one.mean_quality is None else one.mean_quality, one.name))


def worth_annotating(folder: Path, store: Path, count: int) -> list[str]:
    """The ``count`` scans of the lowest quality, those left out that a person struck out as a whole."""
    cases = CaseStore(store)
    organs, struck = organs_of_plan(cases.plan), read_struck(folder, cases)
    left = [one.name for one in worst_first(read_all(folder)) if len(struck.get(one.name, ())) < len(organs)]
    return left[:count]


def write_quality(folder: Path, store: Path, workers: int = 1, progress: bool = True) -> None:
    """Write the table and the page of all pseudo-labels that are in ``folder`` by now, each atomically.

    Every job of an array may do this at any time: whoever is last has seen every scan.
    """
    cases, written = CaseStore(store), None
    while (scans := worst_first(read_all(folder))) != written:
        struck = read_struck(folder, cases)
        write_text(folder / TABLE, csv_text(_rows(scans, struck, organs_of_plan(cases.plan))))
        tasks = [(one.name, (store, one)) for one in scans[:MOST_PICTURES]]
        drawn = process_cases(_picture, tasks, workers, "Drawing", progress)
        write_text(folder / PAGE, _page(folder, cases.plan, scans, {one.name: one.value for one in drawn}, struck))
        written = scans


def _rows(
    scans: Sequence[PseudoLabels], struck: Mapping[str, frozenset[str]], organs: Sequence[str]
) -> list[list[object]]:
    """A row per scan: its rank, what is struck out, quality (empty: no number) and millilitres of every organ."""
    header = ["rank", "case", "mean_quality", "struck", *(f"{organ}_quality" for organ in organs)]
    rows: list[list[object]] = [[*header, *(f"{organ}_ml" for organ in organs)]]
    for rank, one in enumerate(scans, start=1):
        numbers = [one.mean_quality, *(one.quality[organ] for organ in organs)]
        mean, *qualities = ("" if number is None else f"{number:.4f}" for number in numbers)
        out = _struck_words(struck.get(one.name, frozenset()), organs)
        rows.append([rank, one.name, mean, out, *qualities, *(f"{one.ml[organ]:.3f}" for organ in organs)])
    return rows


def _struck_words(struck: frozenset[str], organs: Sequence[str]) -> str:
    return "all" if len(struck) == len(organs) else ", ".join(organ for organ in organs if organ in struck)


def _page(
    folder: Path,
    plan: Plan,
    scans: Sequence[PseudoLabels],
    pictures: Mapping[str, str | None],
    struck: Mapping[str, frozenset[str]],
) -> str:
    organs = organs_of(plan.labels)
    names = [organ.name for organ in organs]
    shown = [
        {
            "name": one.name,
            "picture": pictures[one.name],
            "quality": score_text(one.mean_quality),
            "struck": _struck_words(struck.get(one.name, frozenset()), names),
            "organs": [(organ, score_text(one.quality[organ.name]), f"{one.ml[organ.name]:.1f}") for organ in organs],
        }
        for one in scans[:MOST_PICTURES]
    ]
    content: dict[str, Any] = {
        "dataset": plan.dataset,
        "scans": len(scans),
        "gallery": shown,
        "organs": organs,
        "struck_file": STRUCK,
        "table_file": TABLE,
        "struck_scans": sum(len(out) == len(organs) for out in struck.values()),
        "has_quality": any(one.mean_quality is not None for one in scans),
        "folder": folder.name,
    }
    return render_page("pseudo_labels.html", content)


def _picture(task: tuple[Path, PseudoLabels]) -> str:
    """The scan with its pseudo-labels in colour, and what its teachers dispute outlined in white."""
    store, one = task
    cases = CaseStore(store)
    prepared, (labels, disputed) = cases.read_prepared(one.name), one.maps()
    plan, order = cases.plan, prepared.grid_mapping.axis_order
    canonical = [order.index(axis) for axis in range(3)]
    image = prepared.image[0].transpose(canonical)
    return thumbnail(
        image,
        triple(in_canonical_order(prepared.grid_mapping.network_spacing_mm, order)),
        organs_of(plan.labels),
        display_window(image, plan.intensity.scheme == "ct"),
        labels.transpose(canonical),
        None if disputed is None else disputed.transpose(canonical),
        with_directions=plan.conventions.orientation == "ras",
    )
