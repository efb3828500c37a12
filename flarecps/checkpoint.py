"""The checkpoint's schema: what a file must hold so that ``segment`` needs nothing else.

Lightning writes weights, optimisers, schedulers and loop counters; beside them stands one entry, ``flarecps``, in
plain types: the plan, the label set, and how to build the siblings. So a file loads with ``weights_only=True`` and
runs no code of whoever sent it: it names its network's class, and only this program's networks, or classes that the
reader says to trust, are built (docs/decisions/0010-what-a-checkpoint-trusts.md).
"""

from __future__ import annotations

import importlib
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from flarecps import __version__
from flarecps.errors import CheckpointError, ConfigError, PlanError
from flarecps.json_fields import shown
from flarecps.networks import NETWORKS, network_name
from flarecps.planning.plan import MOST_FEATURES, MOST_LAYERS, MOST_STAGES, Plan, plan_from_json, plan_to_json
from flarecps.torch_files import check_finite, check_whole

ENTRY = "flarecps"
SCHEMA_VERSION = 1
LONGEST_REASON = 120  # characters of torch's explanations, which name every tensor
# Of two plans, to share a network:
MUST_AGREE = ("labels", "channels", "spacing_mm", "axis_order", "intensity", "conventions")
DOTTED = re.compile(r"(?=.{,255}$)[^\W\d]\w*(\.[^\W\d]\w*)+")  # my_lab.nets.MyUNet
Trusted: TypeAlias = Sequence[type[nn.Module] | str]  # classes, or their dotted paths
MOST_SIBLINGS = 64
LAYERS = ("convolutions", "blocks_per_stage", "decoder_convolutions")  # arguments that say how many a stage has
SIBLINGS_PREFIX = "siblings."  # of the module's state_dict: siblings.0.…, siblings.1.…
METHOD_PREFIX = "method."  # what a method keeps, such as a teacher


class FinestScale(nn.Module):
    """A network's logits at full resolution, ``(batch, class, *patch)``, without its coarser heads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.to(next(self.network.parameters()).dtype))[0]


@dataclass(frozen=True)
class TrainedModel:
    """What a checkpoint gives back: the plan it was trained by and its networks in evaluation mode.

    ``siblings`` are those that the method lets inference use: two after CPS, one after the supervised control.
    """

    plan: Plan
    siblings: tuple[FinestScale, ...]
    epoch: int  # completed epochs
    path: Path

    @property
    def labels(self) -> dict[str, int]:
        """The label set, name to id."""
        return self.plan.labels

    @property
    def patch_voxels(self) -> tuple[int, ...]:
        """The patch the siblings were trained on: three numbers, or two for a 2D network."""
        return self.plan.patch_voxels


def model_entry(
    plan: Plan, siblings: nn.ModuleList, completed_epochs: int, inference: Sequence[str] | None = None
) -> dict[str, Any]:
    """The ``flarecps`` entry of a checkpoint. A network must offer ``arguments``, the plain values that build it.

    ``inference`` names the networks that inference may use by where their weights begin in the state_dict, such as
    ``["method.teacher."]``; None: all siblings. They are of the siblings' architecture.
    """
    network: Any = siblings[0]
    if inference is None:
        inference = [f"{SIBLINGS_PREFIX}{index}." for index in range(len(siblings))]
    return {
        "schema": SCHEMA_VERSION,
        "version": __version__,
        "plan": plan_to_json(plan),
        "network": {"name": network_name(network), "arguments": network.arguments},
        "siblings": len(siblings),
        "inference_networks": list(inference),
        "completed_epochs": completed_epochs,
    }


def load_plain(path: Path | str) -> dict[str, Any]:
    """A checkpoint's content, loaded without running any code in it.

    Raises ``CheckpointError`` when the file is missing, damaged (every byte is checked), holds other objects than
    tensors and plain types or weights that are not finite, or was not written by this program.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; a run's checkpoints are in RUN/checkpoints/")
    check_unpacked_size(path)
    check_whole(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not one, none of them for the user's eyes
        raise CheckpointError(
            f"{path}: not a checkpoint that can be loaded safely; "
            "expected a .ckpt file written by 'flarecps fit', copied completely"
        ) from error
    if not isinstance(content, Mapping) or ENTRY not in content:
        raise CheckpointError(
            f"{path}: a PyTorch file, but without the plan of a flarecps checkpoint; "
            "expected a .ckpt file written by 'flarecps fit'"
        )
    entry = content[ENTRY]
    if not isinstance(entry, Mapping) or "schema" not in entry:
        raise CheckpointError(f"{path}: its '{ENTRY}' entry is not one; expected a file written by 'flarecps fit'")
    if entry["schema"] != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint schema {entry['schema']}, this version reads {SCHEMA_VERSION}; "
            f"use the flarecps that wrote it ({entry.get('version', 'unknown')})"
        )
    if isinstance(content.get("state_dict"), Mapping):
        if not all(isinstance(name, str) for name in content["state_dict"]):
            raise CheckpointError(f"{path}: its weights have no names; expected a .ckpt file written by 'flarecps fit'")
        learnt = (SIBLINGS_PREFIX, METHOD_PREFIX)
        check_finite(path, {name: value for name, value in content["state_dict"].items() if name.startswith(learnt)})
    check_finite(path, {"optimizer_states": content.get("optimizer_states")}, "optimisers' states")
    return dict(content)


def check_unpacked_size(path: Path) -> None:
    """Nothing, or CheckpointError for a PyTorch file that is packed: a few MB of it could fill the memory.

    PyTorch stores tensors as they are. What is no zip archive is left for ``torch.load`` to refuse.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    if unpacked > path.stat().st_size:
        raise CheckpointError(
            f"{path}: {path.stat().st_size} bytes that unpack to {unpacked}; PyTorch packs no checkpoint: "
            "it is damaged or was made by hand; use the file that the training wrote"
        )


def check_fits(content: Mapping[str, Any], plan: Plan, siblings: nn.ModuleList) -> None:
    """Nothing, or ``CheckpointError`` when a checkpoint's networks are others, or see other images, than these."""
    theirs, ours = content[ENTRY], model_entry(plan, siblings, 0)
    pairs = [(name, theirs.get(name), ours[name]) for name in ("siblings", "network")]
    planned = plan_to_json(plan_from_json(theirs["plan"], where="the checkpoint's plan"))
    pairs += [(name, planned.get(name), ours["plan"].get(name)) for name in MUST_AGREE]
    for name, found, expected in pairs:
        if found != expected:
            raise CheckpointError(
                f"the checkpoint's {name} is {found}, this config's is {expected}; use the config and the case store "
                "it was trained with (RUN/config.yaml)"
            )


def inference_prefixes(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the weights of each network that inference may use begin in a checkpoint's state_dict, in order.

    A checkpoint that names none was written before methods could say so: all its siblings. ValueError or IndexError
    when the entry and the weights contradict each other.
    """
    entry = content[ENTRY]
    if type(entry["siblings"]) is not int or not 0 <= entry["siblings"] <= MOST_SIBLINGS:
        raise ValueError(f"siblings is {str(entry['siblings'])[:20]}, expected 1 to {MOST_SIBLINGS}")
    every = tuple(f"{SIBLINGS_PREFIX}{index}." for index in range(entry["siblings"]))
    for key in content["state_dict"]:
        if key.startswith(SIBLINGS_PREFIX) and not key.startswith(every):
            raise IndexError(f"holds {key} of {len(every)} siblings")
    chosen = tuple(entry.get("inference_networks", every))
    if len(chosen) > MOST_SIBLINGS or not all(isinstance(prefix, str) for prefix in chosen):
        raise ValueError(f"{len(chosen)} networks for inference, expected the names of 1 to {MOST_SIBLINGS}")
    return chosen


def sibling_states(content: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """The state of each network that inference may use, in order, out of a checkpoint's content."""
    return [
        {key.removeprefix(prefix): value for key, value in content["state_dict"].items() if key.startswith(prefix)}
        for prefix in inference_prefixes(content)
    ]


def _network_class(path: Path | str, name: Any, trusted: Trusted) -> type[nn.Module]:
    """The class that a checkpoint calls ``name``: one of this program's, or a trusted one. Nothing else is imported."""
    if isinstance(name, str) and name in NETWORKS:
        return NETWORKS[name]
    known = ", ".join(sorted(NETWORKS))
    if not isinstance(name, str) or not DOTTED.fullmatch(name):
        raise CheckpointError(f"{path}: holds a network {str(name)[:LONGEST_REASON]!r}, known are {known}")
    for one in trusted:
        kind = _imported(one) if isinstance(one, str) else one
        if name in (one, f"{kind.__module__}.{kind.__qualname__}"):
            return kind
    raise CheckpointError(
        f"{path}: its network is {name}, whose code is not this program's ({known}) and runs only if you trust it; if "
        f"you know this class, add --trust {name} (in Python: trusted=['{name}'])"
    )


def _check_sizes(arguments: Mapping[str, Any]) -> None:
    """Nothing, or ValueError for more layers or features than any network has: building them would take for ever."""
    for name, value in arguments.items():
        rows = value if isinstance(value, list | tuple) else [value]
        numbers = [one for row in rows for one in (row if isinstance(row, list | tuple) else [row])]
        most = MOST_LAYERS if name in LAYERS else MOST_FEATURES
        if len(rows) > MOST_STAGES or any(isinstance(one, int | float) and not one <= most for one in numbers):
            raise ValueError(f"{name} is {shown(value)}; expected at most {MOST_STAGES} numbers of at most {most}")


def _imported(dotted: str) -> type[nn.Module]:
    module, _, name = dotted.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name) if DOTTED.fullmatch(dotted) else None
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"--trust {dotted}: can't be imported ({error}); install its package, or put its folder on PYTHONPATH"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ConfigError(f"--trust {dotted}: expected the path of a torch.nn.Module class, such as my_lab.nets.MyUNet")
    return kind


def read_checkpoint(path: Path | str, trusted: Trusted = ()) -> TrainedModel:
    """The trained model in ``path``, on the CPU.

    ``trusted`` are classes of networks of one's own that the file may name, or their dotted paths
    (``"my_lab.nets.MyUNet"``), which are imported when it does. Raises ``CheckpointError`` for anything that is no
    checkpoint, or names another network; ``ConfigError`` for a trusted path that is no network's.
    """
    content = load_plain(path)
    entry = content[ENTRY]
    try:
        build = _network_class(path, entry["network"]["name"], trusted)
        arguments = entry["network"]["arguments"]
        plan = plan_from_json(entry["plan"], where=str(path))
        seen, planned = (arguments["in_channels"], arguments["classes"]), (len(plan.channels), plan.class_count)
        if seen != planned:
            raise ValueError(f"the network has (channels, classes) {seen}, the plan {planned}")
        siblings = []
        for state in sibling_states(content):
            if build in NETWORKS.values():  # a size that the weights don't have is told before memory is taken for it
                _check_sizes(arguments)
                with torch.device("meta"):
                    build(**arguments).load_state_dict({name: value.to("meta") for name, value in state.items()})
            network = build(**arguments)
            network.load_state_dict(state)
            siblings.append(FinestScale(network).eval())
        if not siblings:
            raise ValueError("no network")
        epoch = int(entry["completed_epochs"])
    except (PlanError, RuntimeError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise CheckpointError(f"{path}: its plan and its weights do not fit together ({reason})") from error
    return TrainedModel(plan, tuple(siblings), epoch, Path(path))
