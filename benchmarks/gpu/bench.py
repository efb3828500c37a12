"""What is measured on: where things lie, the card, tiny or not; and the card's own rates."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from memory import ruled_gb

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training_step"))
import ours

from flarecps.kernels import no_triton
from flarecps.networks import NETWORKS
from flarecps.planning.memory import Learners
from flarecps.planning.plan import Topology
from flarecps.processes import usable_cores

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 14


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

    def predicted_gb(self, network: str = "PlainUNet", dimensions: int = 3, in_turn: bool = False) -> float:
        """Peak memory of a step's tensors by the planner's rule."""
        config, arguments = self.config(dimensions), self.spec(network, dimensions)["arguments"]
        topology = Topology(
            tuple(arguments["features"]), *(_tuples(arguments[name]) for name in ("strides", "kernels"))
        )
        with torch.device("meta"):
            built = NETWORKS[network](**arguments)
        patch, batch = config["data"]["patch_voxels"], config["data"]["global_batch"]["labelled"]
        return ruled_gb(built, topology, patch, batch, Learners(in_turn=in_turn), 2, half=not self.tiny)

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


def _tuples(rows: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, rows))


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
