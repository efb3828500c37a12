"""One self-contained HTML page of one run, or of several side by side: no scripts, no second file, no request."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from flarecps import metric_names
from flarecps.anatomy import Organ
from flarecps.atomic import write_text
from flarecps.durations import duration_in_words
from flarecps.evaluation.score_table import MEASURES, MethodScores, Scores, mean_of, paired_change, summarise
from flarecps.evaluation.statistics import bootstrap_interval, count_wins
from flarecps.method_config import method_name
from flarecps.reporting.curves import ORGAN_CHARTS, PANELS, drawable, last_epoch, organ_figure, panel_figure
from flarecps.reporting.overlays import LABEL_OPACITY
from flarecps.reporting.page import render_page
from flarecps.reporting.plotting import inline_svg
from flarecps.reporting.report_cases import case_overlays, overlay_histories, validation_scores
from flarecps.reporting.run_description import describe_plan, parse_time, run_status, sessions_of
from flarecps.reporting.run_folder import Group, Run, averaged_over_runs, groups_of
from flarecps.reporting.score_charts import box_figure, medians_in_words
from flarecps.reporting.tables import BOLD, clearly_best, empty_mark, empty_rule, score_text

CUT_AXIS = " The axis does not begin at 0."


def write_report(
    out: Path, runs: Sequence[Run], images: Mapping[str, Path], references: Mapping[str, Path]
) -> list[str]:
    """Write the page of ``runs``, of which two are compared, to ``out`` atomically; notes on what could not be shown.

    Overlays are of ``images``, with the outlines of ``references``, both by case name; either may be empty.
    """
    shown, notes = case_overlays(runs, images, references)
    notes = [note for run in runs for note in run.notes] + notes
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, report_page(runs, shown, notes, asked_for_pictures=bool(images)))
    return notes


def report_page(
    runs: Sequence[Run], shown: Sequence[Mapping[str, Any]], notes: Sequence[str], asked_for_pictures: bool = True
) -> str:
    """The page as text. It holds whatever the runs have; a part without any content is left out."""
    organs = next((run.organs for run in runs if run.organs), ())
    groups = groups_of(runs)
    group_of = {place: index for index, group in enumerate(groups) for place in group.places}
    belongs = [group_of[place] for place in range(len(runs))]
    charts, organ_charts = _charts(runs, organs, belongs)
    methods = [averaged_over_runs(runs, group) for group in groups]
    pictures = overlay_histories(runs, [group.places[0] for group in groups])
    return render_page(
        "report.html",
        {
            "title": " · ".join(run.name for run in methods),
            "heads": [_head(belongs[place], run) for place, run in enumerate(runs)],
            "groups": list(enumerate(groups)),
            "grouped": len(groups) < len(runs),
            "seeds": _seeds(runs, groups),
            "difference": pair_change(methods),
            "table": runs_table(methods, organs),
            "bold": BOLD,
            "empty_rule": empty_rule({run.name: run.scores for run in runs if run.scores is not None}),
            "boxes": _boxes(methods, organs),
            "cases": hardest_first(methods),
            "case_overlays": shown,
            "opacity_percent": round(100 * LABEL_OPACITY),
            "pictures_wanted": not asked_for_pictures and not pictures,
            "validation": validation_scores(runs, organs),
            "histories": pictures,
            "colours": belongs,
            "charts": charts,
            "organ_charts": organ_charts,
            "has_siblings": any(name.endswith("sibling_2") for run in runs for name in run.metrics),
            "plans": _plans(runs),
            "environments": _environments(runs),
            "sessions": [(run.name, found) for run in runs if len(found := sessions_of(run.environment)) > 1],
            "commands": [(run.name, _commands(run)) for run in runs],
            "notes": notes,
        },
        {"score": score_text, "signed": _signed, "time": _time_in_words, "duration": duration_in_words},
    )


def runs_table(runs: Sequence[Run], organs: Sequence[Organ]) -> dict[str, Any] | None:
    """The scores of all scored runs per organ, marked as `flarecps compare` marks them; None when no run has scores.

    ``runs`` are their indices among all and their names, ``rows`` a line per organ, ``mean`` the last line, and
    ``partial`` says whether some organ has no score in some case.
    """
    scored = [(index, run.name, run.scores) for index, run in enumerate(runs) if run.scores is not None]
    if not scored:
        return None
    tables = [scores for _, _, scores in scored]
    change = _change(*tables) if len(tables) == 2 else None
    mean = _score_line(None, tables, change)
    rows = [_score_line(one, tables, change) for one in organs if any(one.column in table.organs for table in tables)]
    partial = any(row["counts"] != mean["counts"] for row in rows)
    return {"runs": [(index, name) for index, name, _ in scored], "rows": rows, "mean": mean, "partial": partial}


def _score_line(organ: Organ | None, tables: Sequence[Scores], change: Scores | None) -> dict[str, Any]:
    """One organ, or the mean (None): per measure each run's summary and whether it is marked as best of the row.

    ``change`` is the first run minus the second over the cases of both, where there are just two; ``counts`` how many
    cases each run's DSC is of.
    """
    column = None if organ is None else organ.column
    line: dict[str, Any] = {"organ": organ, "change": None, "interval": None}
    for measure in MEASURES:
        found = [scores.summary(measure, column) for scores in tables]
        methods = [MethodScores("", (scores,)) for scores in tables]
        line[measure] = list(zip(found, clearly_best(methods, measure, column), strict=True))
    if change is not None:
        changes = change.case_means() if column is None else change.organ(column)
        line["change"], line["interval"] = summarise(changes).mean, bootstrap_interval(changes[np.isfinite(changes)])
    line["empty"] = empty_mark(tables, column)
    line["counts"] = [len(one.cases) for one in tables] if organ is None else [one.n for one, _ in line["dsc"]]
    return line


def pair_change(runs: Sequence[Run]) -> dict[str, Any] | None:
    """First run minus second in mean DSC per case, over the cases that both scored.

    None unless there are exactly two, both scored, with a scored case in common.
    """
    if len(runs) != 2 or runs[0].scores is None or runs[1].scores is None:
        return None
    changes = _change(runs[0].scores, runs[1].scores).case_means()
    found = summarise(changes)
    if not found.n:
        return None
    higher, names = count_wins(changes).wins, [run.name for run in runs]
    interval = bootstrap_interval(changes[np.isfinite(changes)])
    return {"names": names, "mean": found.mean, "interval": interval, "higher": higher, "cases": found.n}


def hardest_first(runs: Sequence[Run]) -> list[tuple[str, list[dict[str, float]]]]:
    """Every case with its mean DSC and NSD in every scored run, the lowest DSC (mean over runs) first."""
    tables = [run.scores for run in runs if run.scores is not None]
    names = {case for scores in tables for case in scores.cases}
    rows = {name: [{measure: scores.of(name, measure) for measure in MEASURES} for scores in tables] for name in names}
    return sorted(rows.items(), key=lambda row: (mean_of([cell["dsc"] for cell in row[1]]), row[0]))


def _change(first: Scores, second: Scores) -> Scores:
    return paired_change(MethodScores("", (second,)), MethodScores("", (first,)))


def _seeds(runs: Sequence[Run], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Of every group of several scored runs: their mean DSC one by one, and how far they lie apart."""
    found = []
    for index, group in enumerate(groups):
        means = [scores.mean() for place in group.places if (scores := runs[place].scores) is not None]
        if len(means) > 1:
            spread = summarise(means).sd
            found.append({"index": index, "name": group.name, "kind": group.kind, "means": means, "sd": spread})
    return found


def _head(index: int, run: Run) -> dict[str, Any]:
    scores = run.scores
    validation = run.metrics.get(metric_names.DSC_MEAN)
    kind = (f"{run.plan.dimensions}D" if run.plan else "", method_name(run.config))
    return {
        "index": index,
        "name": run.name,
        "kind": " ".join(word for word in kind if word),  # "3D cross-pseudo supervision", as far as it is known
        "scored": scores is not None,
        "cases": len(scores.cases) if scores else 0,
        **{measure: scores.summary(measure) if scores else None for measure in MEASURES},
        "status": run_status(run.environment, run.config, last_epoch(run.metrics)),
        "validation": None if validation is None else (float(validation.values[-1]), int(validation.epochs[-1])),
    }


def _boxes(runs: Sequence[Run], organs: Sequence[Organ]) -> Markup | None:
    tables = [run.scores for run in runs]
    present = [organ for organ in organs if any(scores and scores.organ(organ.column).size for scores in tables)]
    if not present:
        return None
    scores = {run.name: run.scores for run in runs if run.scores}
    medians = [f"{organ.name}: {medians_in_words(organ, scores)}" for organ in present]
    alt = f"Box plots of DSC per organ. Medians: {'; '.join(medians)}."
    return inline_svg(box_figure(tables, present), alt, "boxes")


def _charts(
    runs: Sequence[Run], organs: Sequence[Organ], groups: Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The learning curves, and the charts that have a small one for every organ."""
    metrics = [run.metrics for run in runs]
    charts, organ_charts = [], []
    for panel in PANELS:
        if drawable(panel, metrics):
            ends = [
                f"{run.name} ends at {run.metrics[name].values[-1]:.4g}" + (f" (sibling {sibling})" if sibling else "")
                for run in runs
                for sibling, name in panel.metrics
                if name in run.metrics
            ]
            alt = f"{panel.title} over epochs. {'; '.join(ends)}."
            drawn = panel_figure(panel, metrics, groups)
            cut = "" if panel.logarithmic or drawn.axes[0].get_ylim()[0] == 0 else CUT_AXIS
            svg = inline_svg(drawn, alt, f"curve-{panel.key}")
            charts.append({"title": panel.title, "caption": panel.caption + cut, "svg": svg})
    for chart in ORGAN_CHARTS:
        figure = organ_figure(metrics, [organ.name for organ in organs], chart, groups)
        if figure is not None:
            svg = inline_svg(figure, f"{chart.title}: over epochs, one small chart per organ.", chart.key)
            organ_charts.append({"title": chart.title, "caption": chart.caption, "svg": svg})
    return charts, organ_charts


def _plans(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Plans in words; runs with the same plan share one."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in runs:
        if run.plan is not None:
            found.setdefault(tuple(describe_plan(run.plan)), []).append(run.name)
    return [{"names": names, "words": words} for words, names in found.items()]


def _environments(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(entry, its value in every run) of the environment files; the command and the sessions have their own places."""
    elsewhere = ("command", "sessions", "seen", "first_epoch", "ended_by")
    keys = list(dict.fromkeys(key for run in runs for key in run.environment if key not in elsewhere))
    return [(key.replace("_", " "), [_in_words(run.environment.get(key)) for run in runs]) for key in keys]


def _in_words(value: Any) -> str:
    """A JSON value on one line: "torch 2.13.0 · numpy 2.4.6"; a time without its seconds."""
    if isinstance(value, dict):
        return " · ".join(f"{str(key).replace('_', ' ')} {_in_words(inner)}" for key, inner in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(_in_words(inner) for inner in value) or "none"
    if isinstance(value, str) and "T" in value and (found := parse_time(value)) is not None:
        return _time_in_words(found)
    return "–" if value is None or value == "" else str(value)


def _commands(run: Run) -> str:
    """What to type to get this run and its scores again: the first session's command, which began it."""
    began = sessions_of(run.environment)
    environment = began[0].record if began else run.environment
    git = environment.get("git")
    lines = []
    if isinstance(git, dict) and git.get("commit"):
        changed = "  # with changes that were not committed" if git.get("state") not in (None, "clean") else ""
        lines.append(f"git checkout {git['commit']}{changed}")
    command = environment.get("command")
    if command and isinstance(command, str | list):
        lines.append(command if isinstance(command, str) else shlex.join(map(str, command)))
    elif run.config:
        lines.append(f"flarecps fit --config {shlex.quote(str(run.folder / 'config.yaml'))}")
    checkpoint, predictions, scores = (
        shlex.quote(str(run.folder / part)) for part in ("checkpoints/last.ckpt", "segmentations", "scores")
    )
    lines.append(f"flarecps segment {checkpoint} IMAGES {predictions}")
    lines.append(f"flarecps score {predictions} REFERENCES --out {scores}")
    return "\n".join(lines)


def _time_in_words(value: datetime.datetime | None) -> str:
    return "–" if value is None else value.strftime("%Y-%m-%d %H:%M %Z").strip()


def _signed(value: float | None) -> str:
    return score_text(value, signed=True).replace("-", "−")
