"""The paper's tables beside one's own numbers: Tables 2 to 6 of Huang et al., FLARE 2022.

The paper's numbers stand in ``flare22_paper.json``, typed from its tables. A cell of one's own is a number, or words
that say why there is none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

from flarecps.errors import FlarecpsError
from flarecps.evaluation.score_table import Scores, mean_of
from flarecps.method_config import method_of
from flarecps.reporting.run_folder import Run, read_run
from flarecps.reporting.tables import markdown_table, organ_title
from flarecps.text_files import csv_text

PAPER = Path(__file__).with_name("flare22_paper.json")
MEAN = "mean"  # the last row of each table of scores
NOT_RUN = "not run"
METHOD_TITLES = {
    "2d_supervised": "2D Baseline",
    "2d_cps": "2D Baseline+CPS",
    "3d_supervised": "3D Baseline",
    "3d_cps": "3D Baseline+CPS",
    "3d_cps_test": "3D-CPS",
}
Column: TypeAlias = tuple[str, str]  # key of the method, "dsc" or "nsd"


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables: organs (FLARE's column names, then ``MEAN``) as rows."""

    number: int
    title: str
    cases: int
    remark: str
    columns: tuple[Column, ...]
    rows: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class OwnScores:
    """What there is for one method: a score table and the cases of it that count, or ``lacking``: why there is none."""

    scores: Scores | None = None
    cases: tuple[str, ...] = ()
    lacking: str = NOT_RUN


def read_paper() -> dict[str, Any]:
    """The content of the paper's data file."""
    content: dict[str, Any] = json.loads(PAPER.read_text(encoding="utf-8"))
    return content


def paper_tables() -> list[PaperTable]:
    """Tables 3 to 6."""
    return [
        PaperTable(
            one["number"],
            one["title"],
            one["cases"],
            one["remark"],
            tuple((method, measure) for method, measure in one["columns"]),
            {row: tuple(values) for row, values in one["rows"].items()},
        )
        for one in read_paper()["scores"]
    ]


def own_cell(own: OwnScores, row: str, measure: str) -> float | str:
    """The mean over cases of one organ, or the mean of the organs' means; else words.

    An organ that a table lacks has no number: its cell, and the mean's, say so.
    """
    if own.scores is None:
        return own.lacking
    counted = own.scores.select([case for case in own.scores.cases if case in own.cases], own.scores.organs)
    if not counted.cases:
        return "no case scored"
    if row != MEAN:
        return mean_of(counted.organ(row, measure)) if row in counted.organs else "not scored"
    if any(not counted.organ(organ, measure).size for organ in counted.organs):
        return "an organ without a score"
    return counted.mean(measure)


def _filled_rows(table: PaperTable, own: Mapping[str, OwnScores]) -> list[list[float | str]]:
    """Rows of one's own cells, in the table's order of rows and columns."""
    return [[own_cell(own[method], row, measure) for method, measure in table.columns] for row in table.rows]


def filled_markdown(table: PaperTable, own: Mapping[str, OwnScores]) -> str:
    """The table as Markdown: for every column the paper's number and one's own."""
    heading = ["organ"]
    for method, measure in table.columns:
        heading += [f"{METHOD_TITLES[method]} {measure.upper()}, paper", "here"]
    body = []
    for (row, printed), cells in zip(table.rows.items(), _filled_rows(table, own), strict=True):
        line = ["**mean**" if row == MEAN else organ_title(row)]
        for number, cell in zip(printed, cells, strict=True):
            line += [f"{number:.4f}", _words(cell)]
        body.append(line)
    remarks = [table.remark] if table.remark else []
    remarks += _counts(table, own)
    said = "".join(f"- {remark}\n" for remark in remarks)
    return f"## Table {table.number}: {table.title}\n\n{markdown_table(heading, body)}" + (f"\n{said}" if said else "")


def filled_csv(table: PaperTable, own: Mapping[str, OwnScores]) -> str:
    """The table as CSV: organ, method, measure, paper, here, difference, cases, and why a number is missing."""
    rows: list[list[Any]] = [["organ", "method", "measure", "paper", "here", "difference", "cases", "lacking"]]
    for (row, printed), cells in zip(table.rows.items(), _filled_rows(table, own), strict=True):
        for (method, measure), number, cell in zip(table.columns, printed, cells, strict=True):
            found = isinstance(cell, float) and math.isfinite(cell)
            line = [f"{cell:.4f}", f"{cell - number:+.4f}"] if found else ["", ""]  # type: ignore[operator]  # a float
            count = len(own[method].cases) if own[method].scores is not None else 0
            rows.append([row, METHOD_TITLES[method], measure.upper(), f"{number:.4f}", *line, count,
                         "" if found else _words(cell)])  # fmt: skip
    return csv_text(rows)


def _counts(table: PaperTable, own: Mapping[str, OwnScores]) -> list[str]:
    """How many cases the numbers are of, where there are numbers."""
    there = {len(own[method].cases) for method, _ in table.columns if own[method].scores is not None}
    if not there:
        return []
    counts = " or ".join(str(count) for count in sorted(there))
    same = there == {table.cases}
    return [f"Here: mean over {counts} cases" + ("." if same else f"; the paper's are over {table.cases}.")]


def _words(cell: float | str) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell:.4f}" if math.isfinite(cell) else "no number"


def protocol_table(runs: Mapping[str, Path], continued: Mapping[str, bool]) -> tuple[str, str]:
    """Table 2 as Markdown and as CSV, with a column "here" beside each of the paper's.

    Args:
        runs: method → run folder; a folder that is not there, or without checkpoint, gives "not run".
        continued: method → whether the training was stopped and went on; its time is then not known.
    """
    printed = read_paper()["protocols"]
    methods = printed["columns"]
    own = {method: _run_protocol(runs[method], continued.get(method, False)) for method in methods}
    heading = ["Mode"]
    for method in methods:
        heading += [f"{METHOD_TITLES[method].replace('Baseline+', '+ ')}, paper", "here"]
    body = []
    for row, values in printed["rows"].items():
        line = [row]
        for method, value in zip(methods, values, strict=True):
            line += [value, own[method].get(row, NOT_RUN)]
        body.append(line)
    return f"## Table 2: {printed['title']}\n\n{markdown_table(heading, body)}", csv_text([heading, *body])


def _run_protocol(run: Path, continued: bool = False) -> dict[str, str]:
    """The rows of Table 2 as one run has them; {} for a run without checkpoint or configuration."""
    last = run / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return {}
    found = read_run(run, run.name, Path("segmentations"), Path("scores"))
    if not found.config:
        return {}
    data, model = found.config["data"], found.config["model"]
    epochs = found.config["trainer"]["max_epochs"]
    optimiser = model["optimizer"]
    settings = optimiser.get("init_args", {})
    network = _network(last)
    return {
        "Network initialization": "He normal",
        "Batch size": _batch(found),
        "Patch size": "×".join(map(str, data["patch_voxels"] or (found.plan.patch_voxels if found.plan else ()))),
        "Total epochs": f"{network['epoch']} of {epochs}" if network["epoch"] != epochs else str(epochs),
        "Optimizer": _last_word(optimiser["class_path"]),
        "Weight decay": f"{settings.get('weight_decay', 0):g}",
        "Initial learning rate (lr)": f"{settings.get('lr'):g}",
        "Lr scheduler": _last_word(model["scheduler"]["class_path"]),
        "Training time": _hours(found, continued),
        "Loss function": _loss(found.config),
        "Number of model parameters": network["parameters"],
        "Number of flops": network["flops"],
    }


def _network(checkpoint: Path) -> dict[str, Any]:
    """Epochs, parameters of one sibling, and operations as the paper's counter has them."""
    from flarecps.checkpoint import read_checkpoint
    from flarecps.networks import rebuilt
    from flarecps.networks.cost import network_cost

    model = read_checkpoint(checkpoint)
    network: Any = model.siblings[0].network
    cost = network_cost(rebuilt(network), len(model.plan.channels), model.plan.patch_voxels)
    return {
        "epoch": model.epoch,
        "parameters": f"{cost.parameters / 1e6:.2f}M",
        "flops": f"{cost.macs_table_2 / 1e9:.2f}G",
    }


def _batch(run: Run) -> str:
    batch = run.config["data"]["global_batch"] or (run.plan.global_batch if run.plan else {})
    processes = run.environment.get("world_size", 1)
    each = f" on {processes} GPUs together" if processes > 1 else ""
    return f"{batch.get('labelled')} in Dl and {batch.get('unlabelled')} in Du{each}"


def _hours(run: Run, continued: bool) -> str:
    """From start to end of the training, on what; a continued one's first part is in no record."""
    started, finished = run.environment.get("started"), run.environment.get("finished")
    if not started or not finished:
        return "not finished"
    try:
        hours = (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds() / 3600
    except (TypeError, ValueError) as error:
        raise FlarecpsError(f"{run.folder}/environment.json: {started!r} to {finished!r} is no time") from error
    cards = run.environment.get("machine", {}).get("gpus", [])
    where = f"{run.environment.get('world_size', 1)} × {cards[0]}" if cards else "CPU"
    return f"{hours:.2g} hours ({where}{'; its last part, it was continued' if continued else ''})"


def _loss(config: Mapping[str, Any]) -> str:
    """The class of Lsup's loss; where the config leaves it open, the methods' own."""
    method = method_of(config)
    loss = method["init_args"].get("loss") if method else None
    return _last_word(loss["class_path"]) if loss else "DiceCrossEntropy"


def _last_word(class_path: str) -> str:
    return class_path.rpartition(".")[2]
