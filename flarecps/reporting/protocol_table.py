"""The paper's Table 2 (protocols, parameters, operations, hours) beside what was really run."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from flarecps.errors import FlarecpsError
from flarecps.method_config import method_of
from flarecps.reporting.paper_tables import METHOD_TITLES, read_paper
from flarecps.reporting.run_folder import Run, read_run
from flarecps.reporting.tables import markdown_table

NOT_RUN = "not run"


def protocol_markdown(runs: Mapping[str, Path], continued: Mapping[str, bool]) -> str:
    """Table 2 as Markdown, with a column "here" beside each of the paper's.

    Args:
        runs: method → run folder; a folder that is not there, or without checkpoint, gives "not run".
        continued: method → whether the training was stopped and went on; its time is then not known.
    """
    heading, body = _table(runs, continued)
    return f"## Table 2: {read_paper()['protocols']['title']}\n\n{markdown_table(heading, body)}"


def protocol_csv(runs: Mapping[str, Path], continued: Mapping[str, bool]) -> str:
    """Table 2 as CSV."""
    text = io.StringIO()
    heading, body = _table(runs, continued)
    csv.writer(text, lineterminator="\n").writerows([heading, *body])
    return text.getvalue()


def _table(runs: Mapping[str, Path], continued: Mapping[str, bool]) -> tuple[list[str], list[list[str]]]:
    printed = read_paper()["protocols"]
    methods = printed["columns"]
    own = {method: run_protocol(runs[method], continued.get(method, False)) for method in methods}
    heading = ["Mode"]
    for method in methods:
        heading += [f"{METHOD_TITLES[method].replace('Baseline+', '+ ')}, paper", "here"]
    body = []
    for row, values in printed["rows"].items():
        line = [row]
        for method, value in zip(methods, values, strict=True):
            line += [value, own[method].get(row, NOT_RUN)]
        body.append(line)
    return heading, body


def run_protocol(run: Path, continued: bool = False) -> dict[str, str]:
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
