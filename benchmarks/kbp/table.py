"""The kbp experiment's tables and figures, from the files that ``study/keep.py`` and ``pseudo_labels.py`` kept.

    python benchmarks/kbp/table.py

Only files in results/kbp and results/nnunet_kbp are read: whoever has the repository can make them again. Written are
tables.md, one folder of ``flarecps compare`` per number of labels, the figures, and the blocks of the README files and
docs/measured.md that begin with ``<!-- kbp: … -->``: the numbers there are never typed.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from arms import (
    ABLATIONS,
    ALL_LABELS,
    CONTROL,
    CONTROL_LONG,
    CPS,
    CPS_LONG,
    FEW_LABELS,
    KBP,
    MAIN_ARMS,
    RESULTS,
    ROOT,
    SCREEN,
)
from confirm import ASKED, answer_rows, draw_answers, level_rows
from entries import LINES, Entry, entry, level, main_entries, read_rows, same_seeds, seed_differences
from figures import draw_curves, draw_labels, draw_scores
from scipy import stats

from flarecps.evaluation.comparison import OVERALL, Difference, compare_methods
from flarecps.evaluation.score_table import MethodScores, paired_change
from flarecps.evaluation.statistics import bootstrap_interval
from flarecps.experiments.study.protocol import Arm

PEERS = ROOT / "benchmarks" / "results" / "nnunet_kbp"  # nnU-Net on the same scans
DOCS = ROOT / "docs"
READMES = (ROOT / "README.md", RESULTS / "README.md", PEERS / "README.md", DOCS / "measured.md", DOCS / "methods.md")
PAIRS = (  # whose difference by seed is shown over the number of labelled scans: title, CPS, control
    (f"CPS, sibling 1, minus {CONTROL.title}", CPS, CONTROL),
    (f"CPS, sibling 1, minus {CONTROL_LONG.title}", CPS, CONTROL_LONG),
    (f"{CPS_LONG.title}, sibling 1, minus control of as many steps", CPS_LONG, CONTROL_LONG),
)
HEADING = ["", "trainings", "DSC", "NSD", "CPU min", "DSC beside equal steps", "DSC beside equal compute"]


def by_labels_table(
    results: Path, lines: Sequence[tuple[str, Arm, str]] = LINES, compared: Sequence[tuple[str, Arm, Arm]] = PAIRS
) -> list[str]:
    """Markdown: DSC of the arms by the number of labelled scans; differences between arms of the same seed.

    Without all ``lines``, for README, the differences are only summed up.
    """
    counts = [count for count in (*sorted(FEW_LABELS), ALL_LABELS) if entry("", CONTROL, count, results=results).files]
    rows = []
    for title, arm, sibling in lines:
        entries = [entry(title, arm, count, sibling, results) for count in counts]
        if any(one.files for one in entries):
            rows.append(
                [title, *(f"{level(one.method(), 'dsc')} ({len(one.files)})" if one.files else "" for one in entries)]
            )
    sentences = []
    for name, arm, control in compared:
        pairs = [
            seed_differences(entry("", control, count, results=results), entry("", arm, count, results=results))
            for count in counts
        ]
        if lines is LINES:
            rows.append([f"{name}, by seed", *map(mean_difference, pairs)])
        found = [one for some in pairs for one in some]
        if len(found) > 1:
            sentences += ["", f"{name}: {over_pairs(found)}."]
    return markdown(["DSC (trainings)", *(f"{count} labelled" for count in counts)], rows) + sentences


def mean_difference(found: Sequence[float]) -> str:
    """Mean ± SD, and how many are above 0; empty for none."""
    if not found:
        return ""
    spread = f" ± {np.std(found, ddof=1):.4f}" if len(found) > 1 else ""
    return f"{np.mean(found):+.4f}{spread} ({sum(one > 0 for one in found)} of {len(found)} above 0)"


def over_pairs(found: Sequence[float]) -> str:
    """Mean of at least two differences with the 95 % interval of Student's t."""
    mean = np.mean(found)
    low, high = stats.t.interval(0.95, len(found) - 1, mean, stats.sem(found))
    return (
        f"{mean:+.4f} over all {len(found)} pairs of trainings (95 % interval by Student's t {low:+.4f} to {high:+.4f})"
    )


def ablation_entries(labels: int = 10) -> list[Entry]:
    """The ablations that are done, after the arms they are to be held against; [] where none is done."""
    baselines = [one for one in main_entries(labels) if one.arm in MAIN_ARMS and one.labels == labels]
    found = [
        entry(arm.title if sibling == "1" else f"{arm.title}; siblings averaged", arm, labels, sibling)
        for arm in ABLATIONS
        for sibling in arm.siblings
    ]
    done = [one for one in found if one.files]
    return [*baselines, *done] if done else []


def effects_table(results: Path, labels: int = 10) -> list[str]:
    """Markdown: sibling 1 of every ablation minus the arms that differ from it by one thing, over their common seeds.

    Those are the method without the change, and for CPS also the control with the same change. [] where none is done.
    """
    rows = []
    for arm in ABLATIONS:
        method, _, change = arm.name.partition("_")
        names = (method, f"control_{change}") if method == CPS.name else (method,)
        for other in (one for name in names for one in KBP.arms if one.name == name):
            mine, base = same_seeds(entry(arm.title, arm, labels, "1", results), entry("", other, labels, "1", results))
            if mine.files:
                found = compare_methods([base.method(), mine.method()]).differences["dsc"][mine.method().name][OVERALL]
                better = f"{found.counts.wins} of {found.n}"
                rows.append([arm.title, other.title, str(len(mine.files)), interval(found), better])
    return markdown(["", "beside", "seeds", "DSC", "scans better"], rows) if rows else []


def table(entries: Sequence[Entry]) -> list[str]:
    """Markdown: a row per entry, with its paired differences from the two controls of the same number of labels."""
    rows = []
    controls = [next((one for one in entries if one.arm == arm), None) for arm in (CONTROL, CONTROL_LONG)]
    for one in entries:
        own = one.method()
        minutes = "" if one.minutes is None else f"{one.minutes:.1f}"
        cells = [one.title, str(len(one.files)), level(own, "dsc"), level(own, "nsd"), minutes]
        for control in controls:
            cells.append("" if control is None or control == one else difference(control.method(), own))
        rows.append(cells)
    return markdown(HEADING, rows)


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, the first column to the left and the others to the right."""
    lines = ["| " + " | ".join(heading) + " |", "|---|" + "--:|" * (len(heading) - 1)]
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows]


def difference(baseline: MethodScores, method: MethodScores) -> str:
    """Mean difference, its 95 % interval, and p of Wilcoxon's signed ranks, over test scans."""
    return interval(compare_methods([baseline, method]).differences["dsc"][method.name][OVERALL])


def interval(found: Difference) -> str:
    """A difference as ``difference`` shows it."""
    assert found.interval is not None  # 25 scans
    return f"{found.mean:+.4f} ({found.interval.low:+.4f} to {found.interval.high:+.4f}), p {found.p:.2g}"


def compare_organs(results: Path, labels: int, entries: Sequence[Entry]) -> None:
    """One folder of ``flarecps compare``: every organ, with tests."""
    words = [",".join(os.path.relpath(path, results) for path in one.files) for one in entries]
    names = ",".join(one.title.replace(",", ";") for one in entries)
    command = [sys.executable, "-m", "flarecps", "compare", *words, "--names", names, "--out", f"{labels}_labelled"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=results)


def fill(text: str, name: str, lines: Sequence[str]) -> str:
    """The text with new content between ``<!-- kbp: NAME -->`` and ``<!-- end -->``; as it was without these."""
    block = re.compile(rf"(<!-- kbp: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    return block.sub(lambda found: found[1] + "\n" + "\n".join(lines) + "\n\n" + found[2], text)


def mistakes_table(results: Path, labels: int = 10) -> list[str]:
    """Markdown of mistakes.csv: the mean over trainings of each arm; [] without the file."""
    path = results / "mistakes.csv"
    rows = [row for row in read_rows(path) if row["labels"] == str(labels)] if path.is_file() else []
    titles = {arm.name: arm.title for arm in (CONTROL, CONTROL_LONG, CPS, CPS_LONG, *ABLATIONS)}
    columns = {
        "dsc_on_labelled": "DSC, labelled scans",
        "dsc": "DSC, test scans",
        "dsc_largest_piece": "largest piece only",
        "dsc_near_reference": "within 20 mm of the reference",
        "volume_ratio": "volume / true volume",
    }
    body = []
    for name, title in titles.items():
        mine = [row for row in rows if row["arm"] == name]
        means = [f"{np.mean([float(row[column]) for row in mine]):.3f}" for column in columns] if mine else []
        body += [[title, str(len(mine)), *means]] if mine else []
    return markdown(["", "trainings", *columns.values()], body) if rows else []


def screen_table(results: Path) -> list[str]:
    """Markdown: the screen's arms on withheld training scans, beside the control of the same seed; [] before it is run.

    What ``mistakes.py`` says of a run's largest pieces and volumes stands there when that was run, with the number of
    trainings where they are fewer.
    """
    screen = results / "screen"
    path = screen / "mistakes.csv"
    mistakes = read_rows(path) if path.is_file() else []
    control = entry("", SCREEN.arm("control"), 10, results=screen)
    rows = []
    for arm, sibling in [(each, sibling) for each in SCREEN.arms for sibling in each.siblings]:
        one = entry(arm.title if sibling == "1" else f"{arm.title}; siblings averaged", arm, 10, sibling, screen)
        if not one.files:
            continue
        mine = [row for row in mistakes if row["arm"] == arm.name and sibling == "1"]
        fewer = "" if len(mine) == len(one.files) else f" ({len(mine)})"
        means = [f"{np.mean([float(row[column]) for row in mine]):.3f}{fewer}" if mine else ""
                 for column in ("dsc_largest_piece", "volume_ratio")]  # fmt: skip
        minutes = "" if one.minutes is None else f"{one.minutes:.1f}"
        beside = "" if arm == control.arm else mean_difference(seed_differences(control, one))
        rows.append([one.title, str(len(one.files)), level(one.method(), "dsc"), beside, *means, minutes])
    heading = [
        "",
        "trainings",
        "DSC",
        "minus control, by seed",
        "largest piece only",
        "volume / true volume",
        "CPU min",
    ]
    return markdown(heading, rows) if rows else []


def confirm_tables(results: Path) -> dict[str, list[str]]:
    """Markdown of the confirmation: ``confirm`` are the arms' levels, ``confirm answers`` the differences by number of
    labels, ``confirm together`` those of all pairs; [] each before it is run."""
    levels, answers, together = level_rows(results), answer_rows(ASKED[:-1], results), answer_rows(ASKED[-1:], results)
    heading = ["", "labelled", "computes", "trainings", "DSC", "DSC, largest piece", "CPU min"]
    asked = ["asked", "labelled", "method", "beside", "pairs above 0", "DSC", "DSC, largest piece"]
    return {
        "confirm": markdown(heading, levels) if levels else [],
        "confirm answers": markdown(asked, answers) if answers else [],
        "confirm together": markdown(asked, together) if together else [],
    }


def views_table(results: Path) -> list[str]:
    """Markdown: CPS minus the control of as many steps, by what the test scans show; [] without views.csv."""
    if not (results / "views.csv").is_file():
        return []
    view = {row["case"]: row["view"] for row in read_rows(results / "views.csv")}
    rows, organs = [], ()
    for labels, (arm, control) in itertools.product(sorted(FEW_LABELS), ((CPS, CONTROL), (CPS_LONG, CONTROL_LONG))):
        pair = same_seeds(entry("", control, labels, results=results), entry("", arm, labels, results=results))
        if not pair[0].files:
            continue
        base, method = (one.method() for one in pair)
        cases, organs = base.cases, base.organs
        change = paired_change(base, method).select(cases, organs).values["dsc"]
        for shown in ("trunk", "tube"):
            mine = change[[view[case] == shown for case in cases]]
            cells = [mean_with_interval(values) for values in (*mine.T, mine.mean(axis=1))]
            rows.append([arm.title, str(labels), str(len(pair[0].files)), f"{shown} ({len(mine)})", *cells])
    names = [organ.replace("_", " ") for organ in organs]
    return markdown(["", "labelled", "seeds", "scans", *names, "mean"], rows)


def volumes_table(results: Path) -> list[str]:
    """Markdown of volumes.csv: predicted / true volume of each organ by view, mean over trainings; [] without it.

    Ablations are left to the file.
    """
    path, shown_arms = results / "volumes.csv", {arm.name for arm in (*MAIN_ARMS, CPS_LONG)}
    rows = [row for row in read_rows(path) if row["arm"] in shown_arms] if path.is_file() else []
    organs, shown = (list(dict.fromkeys(row[column] for row in rows)) for column in ("organ", "view"))
    body = []
    for labels, name in dict.fromkeys((row["labels"], row["arm"]) for row in rows):
        mine = [row for row in rows if (row["labels"], row["arm"]) == (labels, name)]
        for view in shown:
            kept = [row for row in mine if row["view"] == view]
            means = [np.mean([float(row["volume_ratio"]) for row in kept if row["organ"] == organ]) for organ in organs]
            seeds = ", ".join(dict.fromkeys(row["seed"] for row in kept))
            body.append([KBP.arm(name).title, labels, seeds, view, *(f"{mean:.2f}" for mean in means)])
    names = [organ.replace("_", " ") for organ in organs]
    return markdown(["", "labelled", "seeds", "scans", *names], body) if rows else []


def mean_with_interval(differences: np.ndarray) -> str:
    """Mean and 95 % bootstrap interval of differences of several cases."""
    found = bootstrap_interval(differences)
    assert found is not None
    return f"{differences.mean():+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def state_table(results: Path) -> list[str]:
    """Markdown: which of the planned trainings are done, by seed."""
    rows, count = [], 0
    for labels in KBP.judged.labels:
        for arm in (one for one in KBP.arms if labels in KBP.labels_of(one) and not one.average_of):
            kept = results / "runs" / labels / arm.name
            done = [(kept / f"seed_{seed}" / "run.json").is_file() for seed in range(KBP.seeds)]
            seeds = [", ".join(str(seed) for seed in range(KBP.seeds) if done[seed] == one) for one in (True, False)]
            rows.append([arm.title, labels.removesuffix("_labelled"), *seeds])
            count += sum(done)
    heading = ["arm", "labelled", "seeds done", "not done"]
    return [f"{count} of {KBP.seeds * len(rows)} planned trainings are done.", "", *markdown(heading, rows)]


def peers_tables(path: Path) -> dict[str, list[str]]:
    """Markdown of ../nnunet_kbp's results.csv: ``peers``, whole, and ``peers in short``, only what was trained."""
    rows = read_rows(path)
    whole = list(rows[0])
    short = [name for name in whole if name not in ("test time", "parameters", "patch", "wall min")]
    trained = [row for row in rows if row["DSC"] != "–"]
    return {
        "peers": markdown(whole, [[row[name] for name in whole] for row in rows]),
        "peers in short": markdown(short, [[row[name] for name in short] for row in trained]),
    }


def all_tables() -> dict[str, list[str]]:
    """Name → Markdown lines of every table; comparisons need two rows."""
    found = {f"{labels} labelled": main_entries(labels) for labels in (*FEW_LABELS, ALL_LABELS)}
    found["ablations"] = ablation_entries()
    tables = {name: table(entries) for name, entries in found.items() if len(entries) > 1}
    tables |= {
        "by labels": by_labels_table(RESULTS),
        "in short": by_labels_table(RESULTS, LINES[:3], PAIRS[:2]),
        "effects": effects_table(RESULTS),
        "mistakes": mistakes_table(RESULTS),
        "screen": screen_table(RESULTS),
        "views": views_table(RESULTS),
        "volumes": volumes_table(RESULTS),
        "state": state_table(RESULTS),
    }
    tables |= confirm_tables(RESULTS / "confirm")
    return tables | peers_tables(PEERS / "results.csv")


def main() -> None:
    tables = all_tables()
    for labels in FEW_LABELS:
        if f"{labels} labelled" in tables:
            compare_organs(RESULTS, labels, main_entries(labels))
    draw_scores(RESULTS)
    draw_labels(RESULTS)
    draw_curves(RESULTS)
    draw_answers(RESULTS / "confirm")
    text = "\n".join(line for name, lines in tables.items() for line in (f"### {name}", "", *lines, ""))
    (RESULTS / "tables.md").write_text(text, encoding="utf-8")
    for readme in READMES:
        content = readme.read_text(encoding="utf-8")
        for name, lines in tables.items():
            content = fill(content, name, lines)
        readme.write_text(content, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
