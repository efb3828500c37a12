"""Two trainings compared bit for bit, and one on two processes: what tests of resuming share."""

from __future__ import annotations

import csv
import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from flarecps import metric_names
from flarecps.checkpoint import load_plain
from flarecps.cli.main import main


def assert_identical(ours: Any, theirs: Any, where: str) -> None:
    """Equal in every bit, down to the leaves of nested dicts and lists."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_identical(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_identical(one, other, f"{where}[{number}]")
    else:
        assert ours == theirs, where


def table(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what a clock measured."""
    clocks = (metric_names.PATCHES_PER_SECOND, metric_names.DATA_WAIT)
    with (run / "csv" / "metrics.csv").open() as file:
        return [{name: row[name] for name in row if name not in clocks} for row in csv.DictReader(file)]


def assert_same_training(ours: Path, theirs: Path) -> dict[str, Any]:
    """Weights, momenta, schedulers, the λ hold and counters of both runs' last checkpoints are bit-identical."""
    one, other = (load_plain(run / "checkpoints" / "last.ckpt") for run in (ours, theirs))
    for entry in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "flarecps"):
        assert_identical(one[entry], other[entry], entry)
    assert table(ours) == table(theirs), "λ, losses, health and rates of all epochs, in one table"
    return one


def on_two_ranks(words: list[str], folder: Path) -> list[int]:
    """The exit codes of the two processes of one training, forked from this one: they need not import again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_one_rank, args=(words, str(folder), port), nprocs=2, start_method="fork")  # type: ignore[attr-defined]
    return [int((folder / f"code_{rank}").read_text()) for rank in range(2)]


def _one_rank(rank: int, words: list[str], folder: str, port: int) -> None:
    torch.set_num_threads(1)  # as the job script has it
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    Path(folder, f"code_{rank}").write_text(str(main(words)))
