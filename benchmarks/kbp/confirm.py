"""What the screen chose, judged on the test scans: levels, and the comparisons that the README wrote down before.

``table.py`` prints these beside its own. Only files in results/kbp/confirm are read. A difference is one of means over
organs and scans, paired by seed and shown with Student's interval over the seeds, and paired by scan, the seeds
averaged, with a bootstrap interval over the scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from arms import CONFIRM
from entries import entry, level, same_seeds, seed_differences
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator
from scipy import stats

from flarecps.cli.configs import config_path
from flarecps.evaluation.comparison import OVERALL, compare_methods
from flarecps.evaluation.statistics import Interval
from flarecps.experiments.study.cost import Costs
from flarecps.reporting.comparison_files import read_method

LABELS = (10, 5)
ASKED = ((10,), (5,), LABELS)  # each number of labels, and all pairs of trainings together
PRIMARIES = (  # of the three confirmations
    (CONFIRM.primary.method, CONFIRM.primary.baseline),
    ("self_more_pseudo", CONFIRM.primary.baseline),
    ("cps_smooth", "control"),
)
QUESTIONS = (  # method, baseline, what is asked
    ("self_longer", "control_long", "equal steps"),
    ("self_longer", "control_of_self_longer", "equal total compute"),
    ("self_longer", "control_long_two", "two controls averaged"),
    ("self_more_pseudo", "control_long", "equal steps"),
    ("self_more_pseudo", "control_of_self_longer", "equal total compute"),
    ("self_more_pseudo", "control_long_two", "two controls averaged"),
    ("self_more_pseudo", "self_longer", "two and two patches"),
    ("cps_smooth", "control", "equal steps"),
    ("cps_smooth", "control_smooth", "equal steps, same smooth"),
    ("cps_smooth", "control_long", "equal total compute"),
    ("cps_smooth", "control_long_two", "two controls averaged"),
    ("cps_entropy", "control", "equal steps"),
    ("cps_entropy", "control_long", "equal total compute"),
    ("cps_entropy", "control_long_two", "two controls averaged"),
    ("control_long_smooth", "control_long", "equal steps"),
)
SHOWN_AS = {
    "self_more_pseudo": ("self-training, 1 + 3", "tab:blue"),  # patches of the two kinds a step
    "self_longer": ("self-training, 2 + 2", "tab:green"),
    "cps_smooth": ("CPS, smooth of 100", "tab:red"),
    "cps_entropy": ("CPS, cross-entropy", "tab:orange"),
    "control_long_smooth": ("control, smooth of 100", "tab:grey"),
}
WAYS = ("1", "1_largest")  # how the names of score tables end
WIDEST = 0.065  # of the figure: one lost organ would make the others' axes too wide to read


@dataclass(frozen=True)
class Answer:
    """A method minus a baseline: the mean, by seed, and its intervals over seeds (None for one) and over scans."""

    by_seed: tuple[float, ...]
    over_seeds: Interval | None
    over_scans: Interval

    @property
    def mean(self) -> float:
        """Over seeds and scans."""
        return float(np.mean(self.by_seed))


def level_rows(results: Path) -> list[list[str]]:
    """Of each arm with scores: title, scans labelled, compute, trainings, DSC (of largest pieces), CPU minutes."""
    costs, rows = Costs(CONFIRM, config_path), []
    for labels in LABELS:
        for arm in CONFIRM.arms:
            found = [entry(arm.title, arm, labels, way, results) for way in WAYS]
            if not found[0].files:
                continue
            minutes = "" if found[0].minutes is None else f"{found[0].minutes:.0f}"
            compute = f"{costs.total(arm.name) / costs.total('control'):.1f}"
            rows.append(
                [
                    arm.title,
                    str(labels),
                    compute,
                    str(len(found[0].files)),
                    *(level(one.method(), "dsc") if one.files else "" for one in found),
                    minutes,
                ]
            )
    return rows


def answer_rows(asked_of: Sequence[tuple[int, ...]], results: Path) -> list[list[str]]:
    """Of each question that trainings of common seeds answer, for these numbers of labels: who, beside what, pairs
    above 0, the answer, as it is and of the largest piece."""
    rows = []
    for labels in asked_of:
        for method, baseline, asked in QUESTIONS:
            found = [answer(method, baseline, labels, way, results) for way in WAYS]
            if found[0] is None:
                continue
            titles = [CONFIRM.arm(name).title for name in (method, baseline)]
            mark = "**" if (method, baseline) in PRIMARIES and labels == LABELS[:1] else ""
            pairs = f"{sum(one > 0 for one in found[0].by_seed)} of {len(found[0].by_seed)}"
            cells = [f"{mark}{asked}{mark}", _and(labels), *titles, pairs]
            rows.append([*cells, *("" if one is None else _answer(one, len(found[0].by_seed)) for one in found)])
    return rows


def answer(method: str, baseline: str, labels: tuple[int, ...], way: str, results: Path) -> Answer | None:
    """The difference in DSC over the pairs of one seed and as many labels; None where a number of labels has none."""
    by_seed, files = list[float](), (list[Path](), list[Path]())
    for number in labels:
        pair = same_seeds(*(entry(name, CONFIRM.arm(name), number, way, results) for name in (baseline, method)))
        if not pair[0].files:
            return None
        by_seed += seed_differences(*pair)
        for known, one in zip(files, pair, strict=True):
            known.extend(one.files)
    base, other = (read_method(name, known) for name, known in zip((baseline, method), files, strict=True))
    scans = compare_methods([base, other]).differences["dsc"][method][OVERALL].interval
    assert scans is not None  # 25 scans
    return Answer(tuple(by_seed), over_seeds(by_seed), scans)


def over_seeds(by_seed: Sequence[float]) -> Interval | None:
    """Student's 95 % interval of the mean; None for one seed."""
    if len(by_seed) < 2:
        return None
    low, high = stats.t.interval(0.95, len(by_seed) - 1, np.mean(by_seed), stats.sem(by_seed))
    return Interval(float(low), float(high))


def draw_answers(results: Path) -> None:
    """confirm.png: a row per question, a panel per number of labels and one of all pairs together; every answer with
    both intervals, a dot per seed (a triangle at the edge: beyond it), and the paper's gain as a line."""
    panels = {labels: [answer(method, baseline, labels, "1", results) for method, baseline, _ in QUESTIONS]
              for labels in ASKED}  # fmt: skip
    panels = {labels: found for labels, found in panels.items() if any(found)}
    if not panels:
        return
    size = (3.0 + 3.2 * len(panels), 1.2 + 0.42 * len(QUESTIONS))
    figure, axes = plt.subplots(
        1, len(panels), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (labels, answers) in zip(axes[0], panels.items(), strict=True):
        for row, ((method, *_), found) in enumerate(zip(QUESTIONS, answers, strict=True)):
            if found:
                _draw_answer(axis, row, SHOWN_AS[method][1], found)
        axis.axvline(0, color="black", lw=0.8)
        axis.axvline(0.0167, color="grey", lw=0.8, ls=":")
        axis.set_title(f"{_and(labels)} labelled scans", fontsize=10)
        axis.xaxis.set_major_locator(MultipleLocator(0.02))
        axis.tick_params(axis="x", labelsize=8)
        axis.set_xlim(-WIDEST, WIDEST)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set(yticks=range(len(QUESTIONS)), ylim=(len(QUESTIONS) - 0.5, -0.5))
    axes[0][0].set_yticklabels([f"{SHOWN_AS[method][0]}: {asked}" for method, _, asked in QUESTIONS])
    figure.supxlabel(
        "difference in DSC, 25 test scans (thin: over pairs of trainings; broad: over scans; dotted: the paper's gain; "
        "triangle: beyond the edge)",
        fontsize=9,
    )
    figure.savefig(results / "confirm.png", dpi=120)
    plt.close(figure)


def _draw_answer(axis: Axes, row: int, colour: str, found: Answer) -> None:
    if found.over_seeds:
        axis.plot([found.over_seeds.low, found.over_seeds.high], [row - 0.12] * 2, color=colour, lw=1.2)
    axis.plot([found.over_scans.low, found.over_scans.high], [row + 0.12] * 2, color=colour, lw=4, alpha=0.35)
    for one in found.by_seed:
        inside, edge = abs(one) <= WIDEST, WIDEST * np.sign(one)
        mark = "o" if inside else (">" if one > 0 else "<")
        axis.plot(
            one if inside else edge, row - 0.12, mark, color=colour, ms=4 if inside else 8, alpha=0.7, clip_on=False
        )
    axis.plot(found.mean, row, "|", color=colour, ms=18, mew=2)


def _and(labels: tuple[int, ...]) -> str:
    return " and ".join(map(str, labels))


def _answer(found: Answer, pairs: int) -> str:
    seeds = "" if found.over_seeds is None else f"; seeds {_interval(found.over_seeds)}"
    fewer = "" if len(found.by_seed) == pairs else f"; of {len(found.by_seed)}"
    return f"{found.mean:+.4f} (scans {_interval(found.over_scans)}{seeds}{fewer})"


def _interval(one: Interval) -> str:
    return f"{one.low:+.4f} to {one.high:+.4f}"
