"""What a step takes of a card's memory: the planner's rule, tensors counted one by one, and peaks measured on cards.

    python benchmarks/gpu/memory.py --out benchmarks/results/gpu/memory

Counted: a whole step (forward, backward, clipping, SGD) of the real method and networks with PyTorch's fake tensors,
which have sizes and no content, so no card and little memory are needed; every storage counts, in blocks of 512 bytes
as PyTorch's allocator deals them out, from when it is made until it is gone. Not counted: what cuDNN needs beside.
The one peak that a card showed is the allocator's (`max_memory_allocated`), of the step as it was then (FIRST_CARD; a
test counts that one, too). A card's next run (`run.py`) prints its own beside the rule; type it in as `measured_gb`.
Writes OUT.json and OUT.md, prints the latter.
"""

from __future__ import annotations

import argparse
import json
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flarecps import atomic
from flarecps.losses import LinearRamp
from flarecps.methods import CrossPseudoSupervision, Supervised
from flarecps.networks import NETWORKS
from flarecps.networks.cost import network_cost
from flarecps.planning.memory import HALF, SINGLE, Learners, MemoryModel
from flarecps.planning.plan import Topology

GB, GIB, BLOCK = 1e9, 2**30, 512
CLASSES = 14
CONTEXT_GB = 0.5  # of CUDA and its libraries: assumed
RESERVE = 0.1  # of what is left, for cuDNN's workspaces and the allocator's remainders: assumed
CARDS_GIB = (8, 12, 16, 24, 40, 80)
WIDTHS = (32, 64, 128, 256, 320, 320)
TOGETHER, IN_TURN, ALONE = Learners(), Learners(in_turn=True), Learners(1)


class Held(TorchDispatchMode):
    """The bytes of all tensors that were made meanwhile and are there: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.note(made)
        return made

    def note(self, made: object) -> None:
        """Count the tensors in ``made`` that are new."""
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and (storage := one.untyped_storage()) not in self.known:
                size = -(-storage.nbytes() // BLOCK) * BLOCK
                self.known.add(storage)
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._let_go, size)

    def _let_go(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class Step:
    """A step of the paper's kind, and its peak on a card in GB, if somebody measured it."""

    name: str
    patch: tuple[int, ...]
    stages: int = 6
    batch: int = 2
    learners: Learners = TOGETHER
    half: bool = True
    network: str = "PlainUNet"
    widths: tuple[int, ...] = WIDTHS
    measured_gb: float | None = None

    @property
    def topology(self) -> Topology:
        """Halved in every stage; the last one only as far as the patch is even."""
        dimensions, size = len(self.patch), self.patch
        strides = [(1,) * dimensions]
        for _ in range(1, self.stages):
            strides.append(tuple(2 if edge % 2 == 0 and edge > 7 else 1 for edge in size))
            size = tuple(edge // step for edge, step in zip(size, strides[-1], strict=True))
        return Topology(self.widths[: self.stages], tuple(strides), ((3,) * dimensions,) * self.stages)

    @property
    def streams(self) -> int:
        """Labelled patches, and as many unlabelled ones for siblings."""
        return 2 if self.learners.count > 1 else 1

    def built(self) -> nn.Module:
        """Its network, on the device of the context."""
        one = self.topology
        network: nn.Module = NETWORKS[self.network](1, CLASSES, one.features, one.strides, one.kernels)
        return network

    def ruled_gb(self) -> float:
        """By the planner's rule; a network that is no plain U-Net in proportion to its feature maps."""
        with torch.device("meta"):
            network = self.built()
        return ruled_gb(network, self.topology, self.patch, self.batch, self.learners, self.streams, self.half)

    def counted_gb(self) -> float:
        """Tensor by tensor, in the second of two steps: the first makes gradients and momentum."""
        method: Any = Supervised()
        if self.streams == 2:
            ramp = LinearRamp(final=0.5, length=0)
            method = CrossPseudoSupervision(ramp=ramp, siblings_in_turn=self.learners.in_turn)
        size = (self.batch, 1, *self.patch)
        with FakeTensorMode(), Held() as held:
            siblings = nn.ModuleList(self.built() for _ in range(self.learners.count))
            held.note(list(siblings.parameters()))
            optimizer = torch.optim.SGD(siblings.parameters(), 0.01, momentum=0.99, nesterov=True)
            batch = {"labelled": {"image": torch.randn(size), "labels": torch.zeros(size, dtype=torch.uint8)}}
            if self.streams == 2:
                batch["unlabelled"] = {"image": torch.randn(size)}
            for _ in range(2):
                held.most = 0
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
                    method.step(siblings, batch, 0).total.backward()  # its logits go, as in a training step
                for sibling in siblings:
                    nn.utils.clip_grad_norm_(sibling.parameters(), 12.0)
                optimizer.step()
        return held.most / GB


def ruled_gb(
    network: nn.Module,
    topology: Topology,
    patch: Sequence[int],
    batch: int,
    learners: Learners,
    streams: int,
    half: bool,
) -> float:
    """GB of a step of such networks by the planner's rule."""
    model = MemoryModel(0.0, len(patch), CLASSES, learners, streams)
    plain_gb = model.step_gb(patch, topology, batch, HALF if half else SINGLE)
    elements = network_cost(network, 1, patch).convolved_elements
    return plain_gb * elements / model.elements_per_patch(patch, topology)


PAPER = (112, 160, 128)
STEPS = (
    Step("the paper's", PAPER),
    Step("… in turn", PAPER, learners=IN_TURN),
    Step("… in single precision", PAPER, half=False),
    Step("… one network, 2 patches", PAPER, learners=ALONE),
    Step("3 + 3, 64×96×96, five stages", (64, 96, 96), 5, 3),
    Step("… in turn", (64, 96, 96), 5, 3, IN_TURN),
    Step("6 + 6, 64×64×64, four stages", (64, 64, 64), 4, 6),
    Step("2D: 12 + 12, 512×512, seven stages", (512, 512), 7, 12, widths=(32, 64, 128, 256, 480, 480, 480)),
    Step("… in turn", (512, 512), 7, 12, IN_TURN, widths=(32, 64, 128, 256, 480, 480, 480)),
    # in single precision: a CPU's autocast, which counts here, keeps its pooling in it, a GPU's does not
    Step("residual encoder, paper's patch, single", PAPER, half=False, network="ResidualEncoderUNet"),
)
FIRST_CARD = {"measured_gb": 19.6, "counted_gb": 19.52}  # the paper's step, which kept logits and copied gradients
NNUNET_GB = 6.0  # measured, of its own step with 2 patches of the paper's size; its loss keeps probabilities


def compared(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """Of every step its three figures."""
    return [
        {"step": one.name, "rule_gb": one.ruled_gb(), "counted_gb": one.counted_gb(), "measured_gb": one.measured_gb}
        for one in steps
    ]


def fitting(card_gib: float, learners: Learners) -> dict[str, float]:
    """How much of the paper's patch 2 + 2 may have on a card, and how many of its patches fit whole."""
    step = Step("", PAPER, learners=learners)
    model = MemoryModel(0.0, 3, CLASSES, learners)
    most_gb = (card_gib * GIB / GB - CONTEXT_GB) * (1 - RESERVE)
    two, four = (model.step_gb(PAPER, step.topology, batch) for batch in (2, 4))
    a_patch = (four - two) / 2  # the rest are weights, whatever the patch
    patches = (most_gb - (two - 2 * a_patch)) / a_patch
    # the limit that lets ``plan`` choose as much, by nnU-Net's rule
    elements = model.elements_per_patch(PAPER, step.topology)
    limit_gb = 8.0 * elements * patches * learners.networks * 2 / (560e6 * 2)
    return {"card_gib": card_gib, "most_gb": most_gb, "patches": patches, "plan_gpu_memory": limit_gb}


def report(rows: list[dict[str, Any]], cards: list[tuple[dict[str, float], dict[str, float]]]) -> str:
    """Both tables in Markdown."""
    lines = [
        "| step (bf16-mixed, 2 + 2 patches where not said) | rule, GB | counted, GB | measured, GB | rule's error |"
    ]
    lines.append("|---|--:|--:|--:|--:|")
    for row in rows:
        measured = row["measured_gb"]
        error = row["rule_gb"] / (measured or row["counted_gb"]) - 1
        of = "measured" if measured else "counted"
        shown = "–" if measured is None else f"{measured:.1f}"
        lines.append(
            f"| {row['step']} | {row['rule_gb']:.2f} | {row['counted_gb']:.2f} | {shown} | {error:+.1%} of {of} |"
        )
    lines += ["", "| card | for tensors, GB | siblings at once | `plan --gpu-memory` | in turn | `--gpu-memory` |"]
    lines.append("|--:|--:|---|--:|---|--:|")
    for joint, turn in cards:
        at_once = f"{joint['most_gb']:.1f} | {_words(joint)} | {joint['plan_gpu_memory']:.0f}"
        lines.append(f"| {joint['card_gib']:.0f} GB | {at_once} | {_words(turn)} | {turn['plan_gpu_memory']:.0f} |")
    return "\n".join(lines) + "\n"


def _words(found: dict[str, float]) -> str:
    if found["patches"] < 2:
        return f"2 + 2 patches of {found['patches'] / 2:.0%} of the paper's voxels"
    return f"{int(found['patches'])} + {int(found['patches'])} of the paper's"


def main() -> None:
    """Write and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    rows = compared(STEPS)
    cards = [(fitting(card, TOGETHER), fitting(card, IN_TURN)) for card in CARDS_GIB]
    text = report(rows, cards)
    content = {"torch": torch.__version__, "steps": rows, "cards": cards}
    content |= {"first_card": FIRST_CARD, "nnunet_measured_gb": NNUNET_GB}
    atomic.write_json(out.with_suffix(".json"), json.loads(json.dumps(content)))
    atomic.write_text(out.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
