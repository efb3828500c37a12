"""The weights a new training starts from: those of an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from flarecps.checkpoint import ENTRY, load_plain, sibling_states
from flarecps.errors import CheckpointError, ConfigError
from flarecps.networks import class_tensors, network_name
from flarecps.planning.plan import Plan


def load_start_weights(path: Path | str, plan: Plan, siblings: nn.ModuleList, into: Sequence[int] | None = None) -> str:
    """Put a checkpoint's weights into ``siblings``, in place; what was done, in one line.

    Sibling 1 starts from sibling 1, sibling 2 from sibling 2. A checkpoint with one network (of the supervised control,
    or imported) gives it to sibling 1, and sibling 2 keeps its own random weights, for two equal siblings have nothing
    to teach each other. ``into`` names the siblings that are given weights instead, such as [2]; a checkpoint's one
    network goes to each of them. Where the label sets differ the heads keep their random weights. Optimisers,
    schedulers and epochs start anew.

    Raises ``CheckpointError`` when the networks or their input channels are others, ``ConfigError`` for a sibling that
    this training has not.
    """
    content = load_plain(path)
    theirs = content[ENTRY]
    network: Any = siblings[0]
    _compare(path, "network", theirs["network"]["name"], network_name(network))
    _compare(path, "channels", list(theirs["plan"]["channels"]), list(plan.channels))
    found, ours = ({**arguments} for arguments in (theirs["network"]["arguments"], network.arguments))
    for arguments in (found, ours):
        del arguments["classes"]
    for name in sorted(found.keys() | ours.keys()):
        _compare(path, name, found.get(name), ours.get(name))
    same_labels = dict(theirs["plan"]["labels"]) == plan.labels
    heads = set() if same_labels else class_tensors(network)
    states = sibling_states(content)
    chosen = _chosen(into, len(siblings), len(states))
    for number in chosen:
        sibling, state = siblings[number - 1], states[min(number, len(states)) - 1]
        kept = sibling.state_dict()
        sibling.load_state_dict({name: kept[name] if name in heads else value for name, value in state.items()})
    words = f"start from {path}: " + " and ".join(f"sibling {number}" for number in chosen)
    for number in sorted(set(range(1, 1 + len(siblings))) - set(chosen)):
        reason = ", since the checkpoint holds one network" if into is None else ""
        words += f"; sibling {number} starts from random weights{reason}"
    if len(chosen) > len(states):
        words += "; both from the same network, so they differ by their draws alone at first"
    return words if same_labels else words + "; heads start from random weights, since the labels differ"


def _chosen(into: Sequence[int] | None, siblings: int, states: int) -> list[int]:
    if into is None:
        return list(range(1, 1 + min(siblings, states)))
    if not into or not set(into) <= set(range(1, 1 + siblings)):
        raise ConfigError(f"init_siblings is {list(into)}; expected some of {list(range(1, 1 + siblings))}")
    return sorted(set(into))


def _compare(path: Path | str, what: str, found: Any, ours: Any) -> None:
    if found != ours:
        raise CheckpointError(
            f"{path}: its {what} is {found}, this config's is {ours}; to start from its weights give model.network, "
            "model.topology and the plan's channels as in its RUN/config.yaml (labels may differ)"
        )
