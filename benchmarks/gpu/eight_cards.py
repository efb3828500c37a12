"""What eight cards would do with a config, on paper: bytes between them, what hides behind the backward pass, reads.

    python benchmarks/gpu/eight_cards.py configs/flare22_3d_8gpu.yaml --store STORE --out eight_cards

Nothing here is measured on several cards. Bytes and messages are counted: the gradients from the network's shapes, the
small messages in two gloo processes that take steps of the config's method and topology on small patches, the reads of
a store by the system's own count while patches are read from it. Times are then a model of one step: a layer's share of
the backward pass is its share of multiply-accumulates, a bucket is sent once its last gradient is there and the one
before it is through, and a ring of N cards moves 2 (N - 1) / N of a bucket's bytes at the link's rate (it crosses each
node's border once, however many cards the node has). Rates and latencies are assumptions, given here, not measurements.
Writes OUT.json and OUT.md, prints the latter.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training_step"))
from ours import plan as plan_of

from flarecps import atomic
from flarecps.losses import LinearRamp
from flarecps.methods import CrossPseudoSupervision
from flarecps.networks import PlainUNet
from flarecps.planning.plan import plan_to_json
from flarecps.training.module import SegmentationModule

CLASSES = 14
SIBLINGS = 2
BACKWARD_SHARE = 2 / 3  # of a step's arithmetic
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # DDP's defaults, bytes
MB, GB = 1e6, 1e9


@dataclass(frozen=True)
class Link:
    """How cards reach each other: bytes a second that a card's ring moves, seconds that a message takes at least."""

    name: str
    rate: float
    latency_s: float


LINKS = (
    Link("NVLink within a node", 230 * GB, 30e-6),  # what NCCL's own tests are known to reach on 8 A100 with NVSwitch
    Link("100 Gb/s between nodes", 11 * GB, 100e-6),  # 90 % of the line
)


@dataclass(frozen=True)
class Layer:
    """A layer with weights: their bytes in single precision and its multiply-accumulates a patch."""

    size: int
    macs: int


def main() -> None:
    """Count, compute, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="OUT.json and OUT.md")
    parser.add_argument("--cards", type=int, default=8)
    parser.add_argument("--workers", type=int, default=12, help="data workers of each card")
    parser.add_argument("--step-seconds", type=float, nargs="+", default=[0.314, 0.13], help="of one card alone")
    parser.add_argument("--store", type=Path, help="a case store to count reads in")
    parser.add_argument("--patches", type=int, default=40, help="that are read for it")
    options = parser.parse_args()
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    topology, patch = config["model"]["topology"], config["data"]["patch_voxels"]
    layers = layers_of(topology, patch)
    found: dict[str, Any] = {
        "settings": {"config": options.config.name, "cards": options.cards, "workers": options.workers},
        "links": [asdict(link) for link in LINKS],
        "gradient_bytes": {"float32": gradient_bytes(layers), "bfloat16": gradient_bytes(layers) // 2},
        "small_messages": small_messages(topology),
        "steps": [
            predicted(layers, link, options.cards, seconds, width)
            for seconds in options.step_seconds
            for link in LINKS
            for width in (4, 2)
        ],
    }
    for step in found["steps"]:
        link = next(one for one in LINKS if one.name == step["link"])
        step["small_s"] = found["small_messages"]["count"] * link.latency_s
        step["efficiency"] = step["alone_s"] / (step["alone_s"] + step["exposed_s"] + step["small_s"])
    if options.store is not None:
        found["reads"] = reads(options.store, patch, options.patches)
        patches = sum(config["data"]["global_batch"].values())
        found["reads"]["patches_per_second"] = {str(one): patches / one for one in options.step_seconds}
    text = report(found)
    atomic.write_json(options.out.with_suffix(".json"), found)
    atomic.write_text(options.out.with_suffix(".md"), text)
    print(text)


def layers_of(topology: dict[str, Any], patch: list[int]) -> list[Layer]:
    """One sibling's layers with weights in the order of the forward pass, counted on torch's meta device."""
    layers: list[Layer] = []

    def count(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        weight = getattr(layer, "weight", None)
        if weight is None:
            return
        transposed = isinstance(layer, nn.ConvTranspose3d)
        voxels = (inputs[0] if transposed else output)[0, 0].numel()
        macs = weight.numel() * voxels if weight.ndim > 1 else 0
        layers.append(Layer(4 * sum(one.numel() for one in layer.parameters()), macs))

    with torch.device("meta"):
        network = PlainUNet(1, CLASSES, topology["features"], topology["strides"], topology["kernels"])
        for layer in network.modules():
            if not list(layer.children()):
                layer.register_forward_hook(count)
        network.train()(torch.empty(1, 1, *patch))
    return layers


def gradient_bytes(layers: list[Layer]) -> int:
    """Bytes of all siblings' gradients in single precision."""
    return SIBLINGS * sum(layer.size for layer in layers)


def buckets(layers: list[Layer], backward_s: float) -> list[tuple[float, int]]:
    """DDP's buckets in the order in which they are sent: when the last gradient is there, and bytes.

    The sibling that came last in the forward pass is differentiated first, each from its heads to its first layer.
    """
    order = [layer for _ in range(SIBLINGS) for layer in reversed(layers)]
    whole = sum(layer.macs for layer in order)
    done, held, found = 0, 0, []
    for layer in order:
        done += layer.macs
        held += layer.size
        if held >= (BUCKET if found else FIRST_BUCKET):
            found.append((backward_s * done / whole, held))
            held = 0
    return [*found, (backward_s, held)] if held else found


def predicted(layers: list[Layer], link: Link, cards: int, alone_s: float, width: int) -> dict[str, Any]:
    """Of one step: seconds on the wire, and those of them that no backward pass hides."""
    backward_s = BACKWARD_SHARE * alone_s
    wire_s = free_at = 0.0
    for ready_s, size in buckets(layers, backward_s):
        takes_s = link.latency_s + 2 * (cards - 1) / cards * size * width / 4 / link.rate
        wire_s += takes_s
        free_at = max(free_at, ready_s) + takes_s
    return {
        "link": link.name,
        "alone_s": alone_s,
        "gradients": {4: "float32", 2: "bfloat16"}[width],
        "buckets": len(buckets(layers, backward_s)),
        "wire_s": wire_s,
        "exposed_s": max(0.0, free_at - backward_s),
    }


# -- small messages, counted


def small_messages(topology: dict[str, Any]) -> dict[str, int]:
    """All-reduces of one step beside the gradients', and their bytes, as two gloo processes send them.

    The config's method, stages and loss, with few features and a patch as small as the strides allow.
    """
    with tempfile.TemporaryDirectory() as folder:
        context: Any = torch.multiprocessing.start_processes
        context(_take_steps, args=(folder, topology), nprocs=2, start_method="spawn")
        counted: dict[str, int] = json.loads(Path(folder, "0.json").read_text())
    return counted


def _take_steps(rank: int, folder: str, topology: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    arguments = {**topology, "features": [2] * len(topology["features"]), "classes": CLASSES}
    patch = [2 * math.prod(stride[axis] for stride in topology["strides"]) for axis in range(3)]
    method = CrossPseudoSupervision(ramp=LinearRamp(final=0.5, length=0))
    module = SegmentationModule(plan_to_json(plan_of(arguments, patch, 1)), method)
    generator = torch.Generator().manual_seed(rank)
    image, sent, send = torch.randn(2, 1, 1, *patch, generator=generator), [], dist.all_reduce
    labels = torch.randint(0, CLASSES, (1, 1, *patch), generator=generator).byte()
    annotated = torch.ones(1, CLASSES, dtype=torch.bool)
    batch = {
        "labelled": {"image": image[0], "labels": labels, "annotated": annotated},
        "unlabelled": {"image": image[1]},
    }

    def counted(tensor: torch.Tensor, *more: Any, **settings: Any) -> Any:
        sent.append(tensor.nbytes)
        return send(tensor, *more, **settings)

    dist.all_reduce = counted
    method.step(module.siblings, batch, epoch=0).total.backward()
    Path(folder, f"{rank}.json").write_text(json.dumps({"count": len(sent) + 1, "bytes": sum(sent) + 4}))
    dist.destroy_process_group()  # and one more message in a training: whether the step is finite on all ranks


# -- reads of the store


def reads(store: Path, patch: list[int], patches: int) -> dict[str, Any]:
    """Read calls and bytes a patch, as Linux counts them for this process; and a case's size, which each worker checks.

    Patches are augmented as in a training, so some look at a larger region. Cases are checked before, and not counted.
    """
    from flarecps.data.datamodule import ScanDataModule

    torch.set_num_threads(1)
    steps = math.ceil(patches / 2)
    settings = {"patch_voxels": patch, "global_batch": {"labelled": 2}, "unlabelled": False}
    data = ScanDataModule(str(store), iterations_per_epoch=steps, **settings)  # type: ignore[arg-type]
    for name in data.labelled_names:
        data.store.read_patch(name, (0, 0, 0), (1, 1, 1), labels=True)
        _ = data.store.record(name).samples
    before, began = _io(), time.process_time()
    count = sum(len(batch["labelled"]["image"]) for batch, _, _ in data.train_dataloader())
    after = _io()
    files = [one.stat().st_size for one in (store / "cases").rglob("*") if one.is_file()]
    return {
        "store": "labelled patches",
        "cases": len(data.labelled_names),
        "calls_per_patch": (after["syscr"] - before["syscr"]) / count,
        "mb_per_patch": (after["rchar"] - before["rchar"]) / count / MB,
        "cpu_s_per_patch": (time.process_time() - began) / count,
        "mb_per_case": sum(files) / MB / len(data.store.names),
    }


def _io() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


# -- words


def report(found: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    settings, small = found["settings"], found["small_messages"]
    sizes = ", ".join(f"{size / MB:.0f} MB in {name}" for name, size in found["gradient_bytes"].items())
    lines = [
        f"`{settings['config']}`, {settings['cards']} cards. Gradients of both siblings a step: {sizes}. Beside them "
        f"{small['count']} messages of {small['bytes'] / 1e3:.1f} kB together.",
        "",
        "| link (assumed) | a step alone, s | gradients | wire, ms | not hidden, ms | messages, ms | efficiency |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    for one in found["steps"]:
        times = " | ".join(f"{1e3 * one[name]:.1f}" for name in ("wire_s", "exposed_s", "small_s"))
        lines.append(f"| {one['link']} | {one['alone_s']} | {one['gradients']} | {times} | {one['efficiency']:.1%} |")
    assumed = "; ".join(
        f"{one['name']}: {one['rate'] / GB:.3g} GB/s a card, {one['latency_s'] * 1e6:.0f} µs a message"
        for one in found["links"]
    )
    lines += ["", f"Assumed: {assumed}; ranks that are equally fast."]
    if "reads" in found:
        of = found["reads"]
        each = settings["cards"] * settings["workers"]
        lines += [
            "",
            "| a step, s | patches a second | reads a second | MB a second | cores at work |",
            "|--:|--:|--:|--:|--:|",
        ]
        for seconds, rate in of["patches_per_second"].items():
            calls, size = rate * of["calls_per_patch"], rate * of["mb_per_patch"]
            lines.append(
                f"| {seconds} | {rate:.0f} | {calls:,.0f} | {size:,.0f} | {rate * of['cpu_s_per_patch']:.1f} |"
            )
        lines += [
            "",
            f"Of {of['store']} ({of['cases']} cases): {of['calls_per_patch']:.0f} reads, {of['mb_per_patch']:.2f} MB "
            f"and {of['cpu_s_per_patch']:.3f} CPU seconds a patch, as the system counts. Each of {each} workers also "
            f"checks each case's bytes once ({of['mb_per_case']:.1f} MB a case).",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
