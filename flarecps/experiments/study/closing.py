"""The last stages of a study: tables, comparison, verdict, page; and what people do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from flarecps.atomic import write_json, write_text
from flarecps.errors import ConfigError
from flarecps.experiments.stages import Stage, StageRecords, command_stage
from flarecps.experiments.study.protocol_file import protocol_text
from flarecps.experiments.study.results import compare_words, read_study, write_study_tables
from flarecps.experiments.study.splits import split_name
from flarecps.experiments.study.stages import MODEL, StudyStages
from flarecps.experiments.study.verdict import Standing, Verdict, verdict_of
from flarecps.json_fields import is_number
from flarecps.reporting.study import StudyPage, StudyRow, write_study_page
from flarecps.reporting.tables import markdown_table, plain_markdown
from flarecps.text_files import csv_text, read_own_json

RESULTS, VERDICT, PAGE = "results", "verdict.json", "report.html"
CSV = ("labels", "arm", "mean", "seeds_sd", "difference", "low", "high", "p_holm", "verdict", "compute", "minutes")
HEADING = (
    "arm",
    "mean",
    "SD over seeds",
    "minus baseline",
    "95 % interval",
    "p (Holm)",
    "verdict",
    "compute",
    "minutes",
)


def closing_stages(stages: StudyStages, records: StageRecords, judged: list[Stage]) -> list[Stage]:
    """Tables of the scores, the comparison organ by organ, and the verdict."""
    out, protocol = stages.out / RESULTS, stages.protocol
    scored = tuple(one.name for one in judged if one.name.startswith("score_"))
    found = [Stage("tables", (), (out / "scores.csv",), scored, description="scores of all folds and seeds, by arm",
                   action=lambda: write_study_tables(read_study(stages), out))]  # fmt: skip
    for labels in protocol.judged.labels:
        names = {one.name for one in protocol.arms if one.siblings and labels in protocol.labels_of(one)}
        if len(names) > 1:
            way = protocol.post_processing[0]
            place = out / f"comparison_{labels}"
            words = ("compare", *compare_words(stages, out, labels, way), "--out", place)
            found.append(command_stage(f"compare_{labels}", words, place, "tables"))
    path = stages.out / VERDICT
    found.append(Stage("verdict", (), (path,), ("tables",), description="which method to use, and why",
                       action=lambda: write_json(path, _without_nan(verdict(stages, records).content))))  # fmt: skip
    return [replace(one, lacking=stages.splits.lacking) for one in found]


def verdict(stages: StudyStages, records: StageRecords) -> Verdict:
    """The verdict of a study whose scores are there."""
    judged = stages.protocol.judged
    labelled = {
        labels: float(np.mean([len(stages.splits.splits[split_name(judged, labels, fold)].labelled)
                               for fold in range(stages.protocol.folds)]))
        for labels in judged.labels
    }  # fmt: skip
    return verdict_of(read_study(stages), stages.costs, computing_seconds(stages, records), labelled)


def computing_seconds(stages: StudyStages, records: StageRecords) -> dict[str, float]:
    """What a training of each arm computed, in seconds of CPU (of the clock with a GPU), teachers and pairs counted.

    Trainings that were interrupted do not count; an arm that only has such is left out.
    """
    from torch import cuda

    key, own = "wall_s" if cuda.is_available() else "cpu_s", dict[str, list[float]]()
    for name, stage in records.stages.items():
        record = records.read(stage)
        if name.startswith("train_") and len(record.get("starts", [])) == 1 and is_number(record.get(key)):
            own.setdefault(name.rsplit(".", 3)[1], []).append(float(record[key]))
    means = {name: float(np.mean(times)) for name, times in own.items()}
    found = {}
    for arm in stages.protocol.arms:
        parts = [arm.average_of] * 2 if arm.average_of else [arm.name, *([arm.teachers] * 2 if arm.teachers else [])]
        if all(one in means for one in parts):
            found[arm.name] = sum(means[one] for one in parts)
    return found


def chosen_model(stages: StudyStages) -> tuple[str, str] | None:
    """(arm, sibling) that the verdict recommends; None before there is one. ConfigError for a damaged one."""
    path = stages.out / VERDICT
    if not path.exists():
        return None
    content = read_own_json(path).get("recommended")
    known = [(arm.name, sibling) for arm in stages.protocol.arms for sibling in arm.siblings]
    found = (content.get("arm"), content.get("sibling")) if isinstance(content, dict) else None
    if found not in known:
        raise ConfigError(f"{path}: damaged; remove it, and the same command makes it again")
    return found


def model_command(stages: StudyStages, arm: str, sibling: str) -> str:
    """The command that uses the recommended model, words in capitals to be filled in; empty for another program's."""
    if stages.protocol.arm(arm).predictions:
        return ""
    cell = stages.final_cell(arm)
    rules = stages.out / MODEL / "postprocessing.json"
    more = ["--postprocess", rules] if "determined" in stages.protocol.post_processing else []
    words = ("segment", *stages.checkpoints(cell), "SCANS", "LABELS", *stages.segment_words(sibling), *more)
    return f"flarecps {shlex.join(map(str, words))}"


def page_stage(stages: StudyStages, records: StageRecords, after: tuple[str, ...]) -> Stage:
    """The stage that writes OUT/report.html, verdict.md and results/standings.csv, with whatever is known."""
    return Stage("report", (), (stages.out / PAGE,), after, action=partial(_write_page, stages, records), always=True,
                 description="the page, and the verdict in words")  # fmt: skip


def _write_page(stages: StudyStages, records: StageRecords) -> None:
    found, out = verdict(stages, records), stages.out
    command = model_command(stages, found.recommended.arm, found.recommended.sibling)
    tables = {"": found.standings, **found.other_labels}
    rows = {labels: [_row(one) for one in standings] for labels, standings in tables.items()}
    first = stages.protocol.judged.labels[0]
    numbers = [(labels or first, *_numbers(row)) for labels, some in rows.items() for row in some]
    write_text(out / RESULTS / "standings.csv", csv_text([CSV, *numbers]))
    whole = ", trained on all labelled scans" if stages.protocol.held_out_fold is None else ""
    words = ["# What this study found", *(f"- {plain_markdown(one)}" for one in found.sentences), "", markdown_table(
        HEADING, [_cells(one) for one in rows[""]]), "", *(f"- {plain_markdown(one)}" for one in found.remarks), "",
        *((f"The recommended model{whole}:", "", f"    {command}") * bool(command))]  # fmt: skip
    write_text(out / "verdict.md", "\n".join(words) + "\n")
    catalogue, judged = stages.splits.catalogue, stages.protocol.judged
    counts = f"{len(catalogue.labelled)} labelled and {len(catalogue.unlabelled)} unlabelled scans"
    write_study_page(out / PAGE, StudyPage(
        catalogue.name, counts, found.measure, found.sentences, (*stages.protocol.remarks, *found.remarks), rows[""],
        {labels: some for labels, some in rows.items() if labels}, found.curve.points if found.curve else (),
        command, protocol_text(stages.protocol), stages.out.name, judged.by))  # fmt: skip


def _row(one: Standing) -> StudyRow:
    judged = one.judged
    found = judged.difference if judged else None
    return StudyRow(
        one.title, one.mean, one.seeds_sd, found.mean if found else None,
        (found.interval.low, found.interval.high) if found and found.interval else None,
        judged.p_holm if judged else None, judged.verdict if judged else "baseline", one.cost,
        one.seconds / 60 if one.seconds else None, one.reads_unlabelled, one.with_holm)  # fmt: skip


def _numbers(row: StudyRow) -> tuple[object, ...]:
    found = (row.mean, row.seeds_sd, row.difference, *(row.interval or (None, None)), row.p)
    rounded = ("" if one is None else round(one, 6) for one in found)
    return (
        row.title,
        *rounded,
        row.verdict,
        *("" if one is None else round(one, digits) for one, digits in ((row.cost, 4), (row.minutes, 1))),
    )


def _cells(row: StudyRow) -> list[str]:
    return [row.title, f"{row.mean:.4f}", "" if row.seeds_sd is None else f"{row.seeds_sd:.4f}",
            "" if row.difference is None else f"{row.difference:+.4f}",
            "" if row.interval is None else f"{row.interval[0]:+.4f} to {row.interval[1]:+.4f}",
            "" if row.p is None else f"{row.p:.3g}", row.verdict, "" if row.cost is None else f"{row.cost:.2f}",
            "" if row.minutes is None else f"{row.minutes:.1f}"]  # fmt: skip


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
