"""Metrics in the middle of an epoch: what each process has counted so far, as plain values for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from flarecps.training.ranks import of_all_ranks

UPDATES = "updates"  # beside the names of a metric's states

State = dict[str, Any]


def metric_states(metrics: Mapping[str, Metric]) -> dict[str, State]:
    """What every metric of this process holds, by name: its states (on the CPU) and how often it was updated."""
    return {
        name: {UPDATES: metric.update_count}
        | {key: value.detach().cpu().clone() for key, value in metric.metric_state.items() if isinstance(value, Tensor)}
        for name, metric in metrics.items()
    }


def states_of_all_ranks(metrics: Mapping[str, Metric]) -> list[dict[str, State]]:
    """``metric_states`` of every process, in the order of the ranks; all ranks must ask."""
    return of_all_ranks(metric_states(metrics))


def load_metric_states(metrics: Mapping[str, Metric], by_rank: list[dict[str, State]], rank: int, ranks: int) -> None:
    """Let this process's metrics go on from what ``states_of_all_ranks`` gave.

    As many processes as then: each goes on from its own counts, so that sums are rounded as if nothing had happened.
    Another number of processes: rank 0 takes all counts, the others none, which is the same up to rounding. Only for
    metrics whose states are sums.
    """
    if len(by_rank) == ranks:
        by_rank = [by_rank[rank]]
    elif rank > 0:
        return
    for name, metric in metrics.items():
        states = [one[name] for one in by_rank if name in one]
        if not states:
            continue
        for key, initial in metric.metric_state.items():
            if isinstance(initial, Tensor):
                total = states[0][key]
                for state in states[1:]:
                    total = total + state[key]
                setattr(metric, key, total.to(initial.device, initial.dtype))
        metric._update_count = sum(state[UPDATES] for state in states)  # torchmetrics gives it no setter
