"""The program's own commands on phantoms of full size: a training, whole scans, validation."""

from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from bench import ROOT, Bench

from flarecps import metric_names
from flarecps.cli.main import main as flarecps
from flarecps.processes import usable_cores


def scans(bench: Bench) -> dict[str, Any]:
    """Scans, plan and store, made by the commands."""
    done = bench.work / "store" / "cases"
    if not done.is_dir():
        os.nice(5)  # what is measured meanwhile comes first
    few = ["--labelled", 5, "--unlabelled", 1 if bench.tiny else 4, "--test", 1 if bench.tiny else 2]
    workers = 1 if bench.tiny else min(11, usable_cores())
    size = ["--size", "small" if bench.tiny else "full", "--workers", workers]
    if not (bench.work / "scans" / "phantom.json").is_file():
        command("phantom", bench.work / "scans", *few, *size)
    more = ["--patch", "[16, 16, 16]", "--spacing", "[12, 12, 12]"] if bench.tiny else []
    command("plan", bench.work / "scans", "--out", bench.work / "plan.json", "--workers", workers, *more)
    out = ["--out", bench.work / "store", "--workers", workers]
    command("preprocess", bench.work / "scans", bench.work / "plan.json", *out)
    return {"cases": len(list(done.iterdir()))}


def command(*words: object) -> None:
    """Run a command of flarecps in this process; RuntimeError where it fails."""
    code = flarecps([str(word) for word in words])
    if code:
        raise RuntimeError(f"flarecps {words[0]} ended with exit code {code}")


def fit_words(bench: Bench, run: Path, cards: int = 1) -> list[object]:
    """`fit` with the paper's config and λ from the first step on, two epochs."""
    config = bench.config()
    data, steps = config["data"], 2 if bench.tiny else 60
    batch = {name: cards * size for name, size in data["global_batch"].items()}
    words: list[object] = [
        "fit",
        "--config",
        ROOT / "configs" / "flare22_3d.yaml",
        "--data.store",
        bench.work / "store",
    ]
    words += ["--trainer.default_root_dir", run, "--overwrite", "true", "--trainer.max_epochs", 2]
    words += ["--data.iterations_per_epoch", steps, "--data.workers", 0 if bench.tiny else min(12, usable_cores())]
    words += ["--data.global_batch", json.dumps(batch), "--data.patch_voxels", data["patch_voxels"]]
    words += ["--model.method.init_args.ramp", json.dumps({"final": 0.5, "length": 0, "start": 0})]
    words += ["--trainer.devices", cards, "--data.validation_patches", 0]
    if cards > 1:
        words += ["--trainer.strategy", "ddp"]
    if bench.tiny:
        words += ["--model.topology", json.dumps(config["model"]["topology"]), "--trainer.precision", "32-true"]
    return words


def fit(bench: Bench, cards: int = 1) -> dict[str, Any]:
    """Patches a second, data wait and peak memory of a real training's second epoch."""
    run = bench.work / ("run" if cards == 1 else "run_all_cards")
    words = fit_words(bench, run, cards)
    if cards == 1:
        command(*words)
    else:  # Lightning starts this process's command again for each rank
        subprocess.run([sys.executable, "-m", "flarecps", *map(str, words)], check=True)
    with (run / "csv" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(metric_names.PATCHES_PER_SECOND)]
    last = rows[-1]
    patches = float(last[metric_names.PATCHES_PER_SECOND])
    return {
        "patches_per_s": patches,
        "step_s": cards * sum(bench.config()["data"]["global_batch"].values()) / patches,
        "data_wait_share": float(last[metric_names.DATA_WAIT]),
        "predicted_gb": bench.predicted_gb(),
        "peak_gb": float(last.get(metric_names.GPU_MEMORY) or "nan") if not bench.tiny else None,
    }


def fit_on_all(bench: Bench) -> dict[str, Any]:
    """The same training on every card, each with the whole batch of one; nothing where there is one."""
    cards = 1 if bench.tiny else torch.cuda.device_count()
    return fit(bench, cards) | {"cards": cards} if cards > 1 else {"cards": cards}


def _checkpoint(bench: Bench) -> Path:
    found = bench.work / "run" / "checkpoints" / "last.ckpt"
    if not found.is_file():
        raise RuntimeError(f"{found} is not there: the part 'fit' makes it")
    return found


def validate(bench: Bench) -> dict[str, Any]:
    """Seconds of the whole validation of one stored scan by both siblings, loading included."""
    began = time.perf_counter()
    command("validate", "--config", bench.work / "run" / "config.yaml", "--ckpt_path", _checkpoint(bench))
    return {"seconds": time.perf_counter() - began, "scans": 1}


class Busy:
    """What share of the time a kernel ran on the first card, by NVML's own samples; only looked at within ``with``."""

    def __init__(self, nvml: Any, every_s: float = 0.1) -> None:
        self.nvml, self.every_s = nvml, every_s
        self.percent: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Busy:
        try:
            if self.nvml is not None:
                self.nvml.nvmlInit()
                self._thread.start()
        except self.nvml.NVMLError:  # a figure less, not a part less
            self.nvml = None
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self.nvml is not None:
            self._thread.join()
            self.nvml.nvmlShutdown()

    def _look(self) -> None:
        card = self.nvml.nvmlDeviceGetHandleByIndex(0)
        while not self._over.wait(self.every_s):
            self.percent.append(int(self.nvml.nvmlDeviceGetUtilizationRates(card).gpu))

    @property
    def share(self) -> float | None:
        """From the first sample with a kernel to the last, so without start-up; None where none was seen."""
        at_work = [place for place, percent in enumerate(self.percent) if percent]
        if not at_work:
            return None
        seen = self.percent[at_work[0] : at_work[-1] + 1]
        return sum(seen) / len(seen) / 100


def _nvml(bench: Bench) -> Any:
    if bench.tiny:
        return None
    import pynvml

    return pynvml


def segment(bench: Bench, *more: str) -> dict[str, Any]:
    """Wall and CPU seconds a scan, the first time and once the card is warm (the model is loaded both times), and what
    share of the time from the first kernel to the last one ran.
    """
    folder = bench.work / "scans" / "imagesTs"
    count = len(list(folder.iterdir()))
    passes = []
    with tempfile.TemporaryDirectory(dir=bench.work) as out:
        for _ in range(2):
            began, cpu_s = time.perf_counter(), _cpu_s()
            with Busy(_nvml(bench)) as busy:
                command("segment", _checkpoint(bench), folder, out, "--device", bench.device, "--overwrite", *more)
            seconds = {"wall_s": (time.perf_counter() - began) / count, "cpu_s": (_cpu_s() - cpu_s) / count}
            passes.append(seconds | {"busy": busy.share})
    return {"scans": count, "first": passes[0], "warm": passes[1]}


def _cpu_s() -> float:
    """Processor seconds of this process and of the children that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usages)
