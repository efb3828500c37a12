"""What `run.py` measures, each function in a process of its own; what they return can be written as JSON."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from lightning.pytorch import Callback

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training_step"))
import ours

from flarecps import metric_names
from flarecps.cli.main import main as flarecps
from flarecps.kernels import Road, chosen_road, no_triton, using
from flarecps.losses import DeepSupervision, DiceCrossEntropy, LinearRamp, downsampled_labels
from flarecps.methods import CrossPseudoSupervision
from flarecps.networks import NETWORKS, he_normal_, set_memory_format
from flarecps.networks.cost import network_cost
from flarecps.processes import usable_cores

ROOT = Path(__file__).resolve().parents[2]
PASSES, STREAMS, SIBLINGS, CLASSES = 3, 2, 2, 14  # forward, and two products of the same size backward
CURVE_STEPS = 20
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


@dataclass(frozen=True)
class Bench:
    """Where things lie, on which device, and nnU-Net's Python if there is one. On a CPU everything is tiny."""

    work: Path
    device: str
    peer: str | None

    @property
    def tiny(self) -> bool:
        """Whether this is a rehearsal."""
        return self.device == "cpu"

    @property
    def precision(self) -> str:
        """Of steps."""
        return "32" if self.tiny else "bf16"

    def config(self, dimensions: int = 3) -> dict[str, Any]:
        """The paper's config; in a rehearsal three narrow stages and small patches."""
        found: dict[str, Any] = yaml.safe_load((ROOT / "configs" / f"flare22_{dimensions}d.yaml").read_text())
        if self.tiny:
            topology = found["model"]["topology"]
            found["model"]["topology"] = {name: value[:3] for name, value in topology.items()} | {"features": [4, 4, 8]}
            found["data"]["patch_voxels"] = [16] * dimensions
            found["data"]["global_batch"] = {"labelled": 2, "unlabelled": 2}
        return found

    def spec(self, network: str = "PlainUNet", dimensions: int = 3) -> dict[str, Any]:
        """Class and arguments of a network of the paper's topology."""
        topology = self.config(dimensions)["model"]["topology"]
        with torch.device("meta"):
            built: Any = NETWORKS[network](1, CLASSES, topology["features"], topology["strides"], topology["kernels"])
        return {"network": network, "arguments": built.arguments}

    def options(self, switches: Sequence[str], network: str, dimensions: int) -> argparse.Namespace:
        """What `ours.py measure` is told."""
        data = self.config(dimensions)["data"]
        known = ("compile", "channels_last", "fused", "in_turn", "fast", "padded")
        return argparse.Namespace(
            spec=self.spec(network, dimensions),
            patch=data["patch_voxels"],
            batch=data["global_batch"]["labelled"],
            device=self.device,
            precision=self.precision,
            steps=2 if self.tiny else 10,
            warm_up=1 if self.tiny else 4,
            **{name: name in switches for name in known},
        )


def machine(bench: Bench) -> dict[str, Any]:
    """The card, versions, and what the card reaches in a product of matrices and in copies."""
    options = bench.options([], "PlainUNet", 3)
    found = ours.rate(options)
    size = 2**22 if bench.tiny else 2**30
    source = torch.empty(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = ours.best(lambda: target.copy_(source), torch.device(bench.device))
    return {
        "card": found["device"],
        "cards": 0 if bench.tiny else torch.cuda.device_count(),
        "cores": usable_cores(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "no_triton": no_triton(torch.device(bench.device)),
        "matrix_flops": found["matrix_flops"],
        "convolution_flops": found["convolution_flops"],
        "copy_bytes_per_s": 2 * size / max(seconds, 1e-9),
    }


# -- numbers


def numbers(bench: Bench) -> dict[str, Any]:
    """How far logits, loss and gradients are from double precision, by road and precision; 20 steps' losses."""
    spec = bench.spec()
    patch, edge = ([16, 16, 16], 8) if bench.tiny else ([32, 64, 96], 24)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    exact = _differentiated(spec, patch, "cpu", torch.float64, "plain", None)
    fast = _fast_road(bench)
    rows = {}
    for precision, dtype in (("32", None), ("bf16", torch.bfloat16)):
        for road in ("plain", fast):
            found = _differentiated(spec, patch, bench.device, torch.float32, road, dtype)
            rows[f"{road} {precision}"] = {name: _apart(found[name], exact[name]) for name in exact}
    agree = {
        "single precision": max(rows[f"{fast} 32"].values()) < 1e-3,
        "bf16 as near as the plain road": rows[f"{fast} bf16"]["gradients"] <= 1.5 * rows["plain bf16"]["gradients"],
    }
    curves = {
        "CPU, plain road, single precision": _curve(edge, "cpu", "plain", None),
        "device, plain road, bf16": _curve(edge, bench.device, "plain", torch.bfloat16),
        "device, fast road, bf16": _curve(edge, bench.device, fast, torch.bfloat16),
    }
    reference, *others = (torch.tensor(curve, dtype=torch.float64) for curve in curves.values())
    noise, ours_apart = (float((curve / reference - 1).abs().max()) for curve in others)
    agree["20 steps within three times the plain road's distance in bf16"] = ours_apart <= max(3 * noise, 0.01)
    return {
        "road": fast,
        "from_float64": rows,
        "curves": curves,
        "curve_noise": noise,
        "curve_apart": ours_apart,
        "checks": agree,
        "agree": all(agree.values()),
    }


def _fast_road(bench: Bench) -> Road:
    """What `fit` takes on this device; in a rehearsal the composite, which a CPU can compute."""
    return "composite" if bench.tiny else chosen_road("auto", torch.device(bench.device))


@contextmanager
def _computed(road: Road, autocast: torch.dtype | None) -> Iterator[None]:
    """By this road, forward and backward.

    In bfloat16 without oneDNN: its convolutions of small patches differ every time on some CPUs, or are nan (2.13).
    """
    with using(road), torch.backends.mkldnn.flags(enabled=autocast is None):
        yield


def _differentiated(
    spec: dict[str, Any], patch: list[int], device: str, dtype: torch.dtype, road: Road, autocast: torch.dtype | None
) -> dict[str, list[torch.Tensor]]:
    """Logits, loss and gradients of Dice + cross-entropy at all scales, two patches of noise, in float64."""
    generator = torch.Generator().manual_seed(1)
    network = he_normal_(NETWORKS[spec["network"]](**spec["arguments"]), generator)
    images = torch.randn(2, 1, *patch, generator=generator)
    labels = torch.randint(0, CLASSES, (2, *patch), generator=generator).byte().to(device)
    network = network.to(device, dtype).train()
    set_memory_format([network], len(patch), channels_last=road != "plain")
    with _computed(road, autocast):
        with torch.autocast(device, autocast) if autocast else nullcontext():
            logits = network(images.to(device, dtype))
            targets = [downsampled_labels(labels, scale.shape[2:]) for scale in logits]
            loss = DeepSupervision(DiceCrossEntropy(batch_dice=True))(logits, targets)
        loss.backward()
    gradients = [one.grad for one in network.parameters() if one.grad is not None]
    found = {"logits": list(logits), "loss": [loss], "gradients": gradients}
    return {name: [one.detach().double().cpu() for one in tensors] for name, tensors in found.items()}


def _apart(ones: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """‖one - other‖ / ‖other‖, all tensors together."""
    difference = sum(float((one - other).square().sum()) for one, other in zip(ones, others, strict=True))
    return math.sqrt(difference / sum(float(other.square().sum()) for other in others))


def _curve(edge: int, device: str, road: Road, autocast: torch.dtype | None) -> list[float]:
    """Losses of 20 CPS steps of two small siblings on the same four patches of noise, of this edge."""
    generator = torch.Generator().manual_seed(2)
    topology: Any = ([8, 16, 16], [[1, 1, 1], [2, 2, 2], [2, 2, 2]], [[3, 3, 3]] * 3)
    siblings = torch.nn.ModuleList(
        he_normal_(NETWORKS["PlainUNet"](1, 4, *topology), torch.Generator().manual_seed(seed)) for seed in (0, 1)
    ).to(device)
    set_memory_format(siblings, 3, channels_last=road != "plain")
    images = torch.randn(2, 2, 1, edge, edge, edge, generator=generator)
    labels = (images[0] > 0.5).byte() + (images[0] > 1).byte()
    streams = {"labelled": {"image": images[0], "labels": labels}, "unlabelled": {"image": images[1]}}
    batch = {name: {key: one.to(device) for key, one in part.items()} for name, part in streams.items()}
    optimizer = torch.optim.SGD(siblings.parameters(), 0.01, momentum=0.9, nesterov=True)
    method, losses = CrossPseudoSupervision(ramp=LinearRamp(final=0.5, length=0)), []
    for _ in range(CURVE_STEPS):
        optimizer.zero_grad()
        with _computed(road, autocast):
            with torch.autocast(device, autocast) if autocast else nullcontext():
                loss = method.step(siblings, batch, epoch=0).total
            loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


# -- the step


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


# -- the program itself


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


def segment(bench: Bench, *more: str) -> dict[str, Any]:
    """Wall and CPU seconds a scan, the first time and once the card is warm (the model is loaded both times)."""
    folder = bench.work / "scans" / "imagesTs"
    count = len(list(folder.iterdir()))
    passes = []
    with tempfile.TemporaryDirectory(dir=bench.work) as out:
        for _ in range(2):
            began, cpu_s = time.perf_counter(), _cpu_s()
            command("segment", _checkpoint(bench), folder, out, "--device", bench.device, "--overwrite", *more)
            passes.append({"wall_s": (time.perf_counter() - began) / count, "cpu_s": (_cpu_s() - cpu_s) / count})
    return {"scans": count, "first": passes[0], "warm": passes[1]}


def _cpu_s() -> float:
    """Processor seconds of this process and of the children that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usages)


# -- between cards


def cards(bench: Bench) -> dict[str, Any]:
    """All-reduces between all cards (in a rehearsal two processes): of both siblings' gradients, and of 64 bytes."""
    count = 2 if bench.tiny else torch.cuda.device_count()
    size = 2**16 if bench.tiny else 2 * 30_790_000
    with tempfile.TemporaryDirectory() as folder:
        context: Any = torch.multiprocessing.start_processes
        start = "fork" if bench.tiny else "spawn"  # CUDA wants processes that are begun anew
        context(_all_reduced, args=(folder, count, size, bench.device), nprocs=count, start_method=start)
        seconds = json.loads(Path(folder, "found.json").read_text())
    wire = 2 * (count - 1) / count * 4 * size
    return {
        "cards": count,
        "backend": "gloo" if bench.tiny else "nccl",
        "gradients_mb": 4 * size / 1e6,
        "gradients_s": seconds["large"],
        "bus_gb_per_s": wire / seconds["large"] / 1e9,
        "message_us": 1e6 * seconds["small"],
    }


def _all_reduced(rank: int, folder: str, count: int, size: int, device: str) -> None:
    place = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(place)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    found = {}
    for name, numel in (("large", size), ("small", 16)):
        tensor = torch.ones(numel, device=place)
        for _ in range(3):
            dist.all_reduce(tensor)
        _synchronised(place)
        began = time.perf_counter()
        for _ in range(10):
            dist.all_reduce(tensor)
        _synchronised(place)
        found[name] = (time.perf_counter() - began) / 10
    if not rank:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _synchronised(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
