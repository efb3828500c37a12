"""The weights a new training starts from: those of an earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from flarecps.checkpoint import ENTRY, load_plain, sibling_states
from flarecps.errors import CheckpointError
from flarecps.planning.plan import Plan

HEADS = "heads."  # the networks' last layers, one channel per class


def start_from(path: Path | str, plan: Plan, siblings: nn.ModuleList) -> str:
    """Put a checkpoint's weights into ``siblings``, in place; what was done, in one line.

    Sibling 1 starts from sibling 1, sibling 2 from sibling 2. A supervised control has one network: it becomes sibling
    1, and sibling 2 keeps its own random weights, for two equal siblings would have nothing to teach each other. Where
    the label sets differ the heads keep their random weights. Optimisers, schedulers and epochs start anew.

    Raises ``CheckpointError`` when the networks or their input channels are others.
    """
    content = load_plain(path)
    theirs = content[ENTRY]
    network: Any = siblings[0]
    _compare(path, "network", theirs["network"]["name"], type(network).__name__)
    _compare(path, "channels", list(theirs["plan"]["channels"]), list(plan.channels))
    found, ours = ({**arguments} for arguments in (theirs["network"]["arguments"], network.arguments))
    for arguments in (found, ours):
        del arguments["classes"]
    for name in sorted(found.keys() | ours.keys()):
        _compare(path, name, found.get(name), ours.get(name))
    same_labels = dict(theirs["plan"]["labels"]) == plan.labels
    states = sibling_states(content)[: len(siblings)]
    for sibling, state in zip(siblings, states, strict=False):
        kept = sibling.state_dict()
        sibling.load_state_dict(
            {name: value if same_labels or not name.startswith(HEADS) else kept[name] for name, value in state.items()}
        )
    words = f"start from {path}: " + " and ".join(f"sibling {number}" for number in range(1, 1 + len(states)))
    if len(states) < len(siblings):
        words += "; sibling 2 starts from random weights, since the checkpoint holds one network"
    return words if same_labels else words + "; heads start from random weights, since the labels differ"


def _compare(path: Path | str, what: str, found: Any, ours: Any) -> None:
    if found != ours:
        raise CheckpointError(
            f"{path}: its {what} is {found}, this config's is {ours}; to start from its weights give model.network, "
            "model.topology and the plan's channels as in its RUN/config.yaml (labels may differ)"
        )
