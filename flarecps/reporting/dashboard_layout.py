"""Which charts of a training a dashboard shows, in which order: its hundreds of metrics as sections for reading.

No dashboard's package is needed here; `wandb_view` turns a layout into what wandb shows.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flarecps import metric_names as names
from flarecps.errors import ConfigError

BOTH = (1, 2)  # siblings
MOST_LINES = 8  # of one run in one chart: beyond, colours can't be told apart
TABLE, OVERLAYS = Path("csv", "metrics.csv"), "overlays"  # of a run's folder


@dataclass(frozen=True)
class Panel:
    """One panel. Its lines are ``metrics`` or, where they are not known yet, all metrics that ``pattern`` matches.

    Args:
        title: what stands above it.
        metrics: names of metrics, of one picture, or of one table.
        pattern: a regular expression for names of metrics; empty where ``metrics`` says which.
        kind: lines over the epochs, a picture through the epochs, or a table.
        smoothed: whether a smoothed line is drawn over the values, for what is noisy from epoch to epoch.
        is_share: whether its axis goes from 0 to 1.
    """

    title: str
    metrics: tuple[str, ...] = ()
    pattern: str = ""
    kind: Literal["lines", "picture", "table"] = "lines"
    smoothed: bool = False
    is_share: bool = False


@dataclass(frozen=True)
class Section:
    """Panels under one heading; ``is_open`` when the page is loaded."""

    name: str
    panels: tuple[Panel, ...]
    is_open: bool = True


def _by_organ(title: str, name: str, *, smoothed: bool = False, is_share: bool = True) -> Panel:
    """A line for each organ: ``name`` is that of the organ '' and ends with a slash."""
    return Panel(title, pattern=f"^{re.escape(name)}[^/]+$", smoothed=smoothed, is_share=is_share)


SECTIONS = (
    Section(
        "Is it learning?",
        (
            Panel("Loss: Lsup + λ Lcps of all siblings", (names.LOSS_TOTAL,), smoothed=True),
            Panel("Lsup by sibling", tuple(map(names.supervised_loss, BOTH)), smoothed=True),
            Panel("Lcps by sibling, before λ", tuple(map(names.cross_pseudo_loss, BOTH)), smoothed=True),
            Panel("λ", (names.LAMBDA,)),
            Panel("Loss on validation patches by sibling", tuple(map(names.patch_loss, BOTH)), smoothed=True),
        ),
    ),
    Section(
        "How good is it?",
        (
            Panel("Mean DSC of whole validation scans", (names.DSC_MEAN,), is_share=True),
            Panel("Mean DSC on validation patches by sibling", tuple(map(names.patch_dsc_mean, BOTH)), is_share=True),
            _by_organ("DSC of whole validation scans", names.dsc("average", "")),
        ),
    ),
    Section(
        "Are the pseudo-labels sound?",
        (
            _by_organ("Agreement of the siblings", names.health_agreement(""), smoothed=True),
            *(
                _by_organ(f"Volume ratio, sibling {one}", names.health_volume(one, ""), smoothed=True, is_share=False)
                for one in BOTH
            ),
            _by_organ("Entropy", names.health_entropy(""), smoothed=True, is_share=False),
            Panel("Vanished classes, and for how many epochs λ was held", (names.HEALTH_VANISHED, names.HEALTH_HELD)),
        ),
    ),
    Section(
        "Speed and memory",
        (
            Panel("Learning rate by sibling", tuple(map(names.learning_rate, BOTH))),
            Panel("Patches/s", (names.PATCHES_PER_SECOND,)),
            Panel("Share of the time spent waiting for data", (names.DATA_WAIT,), is_share=True),
            Panel("GPU memory (GB)", (names.GPU_MEMORY,)),
        ),
    ),
    Section("Pictures and cases", (Panel("DSC by case and organ", (names.CASES,), kind="table"),)),
    Section(
        "Each sibling by organ",
        (
            *(_by_organ(f"DSC of whole validation scans, sibling {n}", names.dsc(f"sibling_{n}", "")) for n in BOTH),
            *(_by_organ(f"DSC on validation patches, sibling {n}", names.patch_dsc(n, "")) for n in BOTH),
        ),
        is_open=False,
    ),
)


def layout(logged: Collection[str] | None = None) -> list[Section]:
    """The sections of a dashboard, in reading order; a panel for each organ and metric would be far over 100.

    Args:
        logged: names of what a training logs (`logged_names`): panels without any of it are left out, organs are named
            and spread over panels of at most ``MOST_LINES`` lines, and each picture has its panel. Without it every
            panel is there, organs are found by pattern, and there are no pictures, whose cases only a run knows.
    """
    if logged is None:
        return list(SECTIONS)
    pictures = sorted(name for name in logged if name.startswith(names.overlay("")))
    shown = [Panel(name.removeprefix(names.overlay("")), (name,), kind="picture") for name in pictures]
    found = []
    for section in SECTIONS:
        panels = [part for panel in section.panels for part in _of_what_is_logged(panel, logged)]
        if any(panel.kind == "table" for panel in section.panels):
            panels = [*shown, *panels]
        if panels:
            found.append(replace(section, panels=tuple(panels)))
    return found


def _of_what_is_logged(panel: Panel, logged: Collection[str]) -> list[Panel]:
    """The panel with the names that are there; several with about as many lines each for many organs; none for none."""
    if not panel.pattern:
        there = tuple(name for name in panel.metrics if name in logged)
        return [replace(panel, metrics=there)] if there else []
    there = tuple(sorted(name for name in logged if re.match(panel.pattern, name) and not name.endswith("/mean")))
    parts = -(-len(there) // MOST_LINES)
    size = -(-len(there) // parts) if parts else 1
    shares = [there[first : first + size] for first in range(0, len(there), size)]
    if len(shares) == 1:
        return [replace(panel, metrics=there, pattern="")]
    return [
        replace(panel, title=f"{panel.title}: {_organ(share[0])} to {_organ(share[-1])}", metrics=share, pattern="")
        for share in shares
    ]


def _organ(name: str) -> str:
    return name.rpartition("/")[2].replace("_", " ")


def logged_names(run: Path) -> set[str]:
    """The names of all that the training in the folder ``run`` has logged: metrics, pictures, the table of cases.

    Raises ConfigError where no epoch was completed there.
    """
    from flarecps.reporting.curves import read_metrics  # draws: only where a run is read

    found = set(read_metrics(run / TABLE))
    if not found:
        raise ConfigError(f"{run}: no figures in {TABLE}; expected a training's folder with a completed epoch")
    found |= {names.overlay(pictures.name) for pictures in (run / OVERLAYS).glob("*") if any(pictures.glob("*.jpg"))}
    return found | ({names.CASES} if (run / "validation.csv").is_file() else set())
