"""The step: seconds, peak memory beside the planner's rule, and where its time goes by kind of kernel."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from bench import ROOT, Bench, ours
from lightning.pytorch import Callback

from flarecps.networks import NETWORKS
from flarecps.networks.cost import network_cost

PASSES, STREAMS, SIBLINGS = 3, 2, 2  # forward, and two products of the same size backward
# kernels by their names, the first that fits; on a CPU operations
KINDS = {
    "layout": r"nchwToNhwc|nhwcToNchw|nchw2nhwc|nhwc2nchw|convertTensor|transpose_kernel|permute",
    "loss": r"_summed|_differentiated|softmax|nll_loss|one_hot|scatter|bincount",
    "optimiser and clipping": r"multi_tensor|fused_sgd|fusedsgd|foreach|lpnorm|_linalg",
    "norm and activation": r"_moments|_merged|_applied|_gradient_sums|_input_gradient|norm|welford|leaky",
    "convolution": r"conv|wgrad|dgrad|fprop|xmma|cutlass|cudnn|gemm|implicit|winograd|nvjet|mkldnn",
    "between cards": r"nccl|allreduce",
    "copies and concatenation": r"copy|memcpy|memset|CatArray|aten::cat|clone",
    "element by element": r"elementwise|vectorized|reduce|triton_|aten::(add|mul|sum|where|fill|zero|div|sub)",
}


def step(bench: Bench, switches: Sequence[str], network: str, dimensions: int) -> dict[str, Any]:
    """Seconds of steps under Lightning's trainer with these switches of `ours.py`, peak memory, arithmetic."""
    options = bench.options(switches, network, dimensions)
    if options.compile:  # starts processes and threads, which a forked process had better not
        words = [
            *_step_words(bench, options),
            "--steps",
            options.steps,
            *(f"--{one.replace('_', '-')}" for one in switches),
        ]
        found = _said([sys.executable, ours.__file__, "measure", *words])
    else:
        found = ours.measure(options)
    with torch.device("meta"):
        built = NETWORKS[network](**options.spec["arguments"])
    macs = network_cost(built, options.spec["arguments"]["in_channels"], options.patch).macs
    passes = PASSES + (0.5 if "in_turn" in switches else 0)  # sibling 1's forward pass of three twice
    operations = 2 * macs * passes * options.batch * STREAMS * SIBLINGS
    return {
        "step_s": statistics.median(found["seconds"]),
        "seconds": found["seconds"],
        "peak_gb": found["peak_gb"],
        "predicted_gb": bench.predicted_gb(network, dimensions, "in_turn" in switches),
        "operations": operations,
    }


def peer_step(bench: Bench, *more: str) -> dict[str, Any]:
    """Seconds of four steps of nnU-Net's, as many patch passes as one CPS step, and peak memory."""
    options = bench.options([], "PlainUNet", 3)
    blocks = ["--blocks", 2 if bench.tiny else 5]
    script = ROOT / "benchmarks" / "training_step" / "peer.py"
    found = _said([bench.peer, script, "measure", *_step_words(bench, options), *blocks, *more])
    return {"step_s": statistics.median(found["seconds"]), "seconds": found["seconds"], "peak_gb": found["peak_gb"]}


def _step_words(bench: Bench, options: argparse.Namespace) -> list[object]:
    """What both sides' scripts are told alike."""
    words: list[object] = ["--spec", json.dumps(options.spec), "--patch", *options.patch, "--batch", options.batch]
    return [*words, "--device", bench.device, "--precision", bench.precision]


def _said(command: Sequence[object]) -> dict[str, Any]:
    """The JSON in the last line that a command prints."""
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Profiled(Callback):
    """Notes what ran on the device in the measured steps."""

    def __init__(self, device: torch.device, warm_up: int) -> None:
        self.device, self.warm_up = device, warm_up
        self.steps, self.wall_s = 0, 0.0
        kind = torch.profiler.ProfilerActivity
        self.profile = torch.profiler.profile(activities=[kind.CUDA if device.type == "cuda" else kind.CPU])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.warm_up:
            self._wait()
            self.profile.start()
            self.wall_s = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps += batch_idx >= self.warm_up

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._wait()
        self.wall_s = time.perf_counter() - self.wall_s
        self.profile.stop()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def shares(bench: Bench, switches: Sequence[str]) -> dict[str, Any]:
    """Milliseconds of a step by kind of kernel, the longest kernels, and the time in which none ran."""
    options = bench.options(switches, "PlainUNet", 3)
    options.steps = 2 if bench.tiny else 3
    profiled = Profiled(torch.device(bench.device), options.warm_up)
    ours.measure(options, profiled)
    spent: dict[str, float] = {}
    for event in profiled.profile.events():
        on_device = event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
        if on_device or bench.tiny:
            microseconds = event.time_range.elapsed_us() if on_device else event.self_cpu_time_total
            spent[event.name] = spent.get(event.name, 0.0) + microseconds / 1e3 / profiled.steps
    kinds = dict.fromkeys([*KINDS, "other"], 0.0)
    for name, milliseconds in spent.items():
        kinds[kind_of(name)] += milliseconds
    longest = sorted(spent.items(), key=lambda one: -one[1])[:25]
    wall = 1e3 * profiled.wall_s / profiled.steps
    return {
        "kinds_ms": kinds,
        "step_ms": wall,
        "nothing_ran_ms": max(0.0, wall - sum(spent.values())),
        "longest": [{"kernel": name[:120], "kind": kind_of(name), "ms": time_ms} for name, time_ms in longest],
    }


def kind_of(kernel: str) -> str:
    """The kind of a kernel by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE)), "other")
