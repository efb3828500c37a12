"""``flarecps summary``: what a checkpoint or a config holds, in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flarecps.cli.configs import found_config
from flarecps.errors import ConfigError, counted

MACS, MACS_TABLE_2 = "MACs, one forward pass", "MACs as the paper's Table 2 counts"
MEMORY = "memory of a step, estimated"

if TYPE_CHECKING:
    from torch import nn

    from flarecps.planning.plan import Plan


def summary(
    checkpoint: Path | None = None,
    /,
    *,
    config: str | None = None,
    classes: int | None = None,
    trust: list[str] | None = None,
) -> None:
    """Print parameters, multiply-accumulates and the plan of a checkpoint or of a training config.

    Args:
        checkpoint: a .ckpt file written by 'flarecps fit'.
        config: a YAML file for 'flarecps fit', or a name that 'flarecps configs' lists. Without its case store, in
            which the plan lies, what the config says itself is printed; patch and topology must stand in it then.
            A config is code: any importable class that it names may run.
        classes: number of classes, background included, for a --config whose case store is not there; by default
            FLARE22's 14.
        trust: classes of your own networks that the checkpoint may name, such as my_lab.nets.MyUNet; their code runs.
    """
    if (checkpoint is None) == (config is None):
        raise ConfigError(
            "give either a CHECKPOINT or --config FILE, e.g. flarecps summary runs/a/checkpoints/last.ckpt"
        )
    if classes is not None and classes < 2:
        raise ConfigError(f"--classes {classes}: expected 2 or more, background included")
    if checkpoint is not None:
        if classes is not None:
            raise ConfigError(f"{checkpoint}: the checkpoint knows its classes; leave out --classes")
        from flarecps.checkpoint import read_checkpoint

        model = read_checkpoint(checkpoint, trust or ())
        networks: list[nn.Module] = [sibling.network for sibling in model.siblings]
        _show(model.plan, networks, f"{checkpoint}, after {counted(model.epoch, 'epoch')}")
    else:
        found = found_config(str(config))  # before the slow imports
        from flarecps.cli.training import instantiated_module

        module, missing = instantiated_module(found, classes)
        method = module.method
        if missing is None and classes is not None:
            raise ConfigError(f"{config}: its case store knows the classes; leave out --classes")
        said = {"method": f"{type(method).__name__}, learns from {' and '.join(method.streams)} patches"}
        if missing is not None:
            needs = f"needs the case store ({missing} is not there)"
            assumed = "FLARE22's 14 classes are assumed (see --classes)" if classes is None else f"{classes} classes"
            said |= {
                "target spacing (slice, row, column)": needs,
                "labels": f"{assumed}; the data set's own: {needs}",
            }
            if not any(module.plan.global_batch.values()):
                said |= dict.fromkeys(("global batch", MEMORY), needs)
        _show(module.plan, list(module.siblings), str(config), said)


def _show(plan: Plan, networks: list[nn.Module], title: str, said: dict[str, str] | None = None) -> None:
    """Print the table; ``said`` are rows that stand beside it, or in place of what it would say."""
    from rich.markup import escape
    from rich.table import Table

    from flarecps.cli.console import Console
    from flarecps.networks.cost import cost_of_shapes
    from flarecps.planning.memory import gb_in_words, network_step_gb
    from flarecps.planning.plan import batch_words

    network: Any = networks[0]
    cost = cost_of_shapes(network, len(plan.channels), plan.patch_voxels)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    costs = dict.fromkeys((MACS, MACS_TABLE_2, MEMORY), "not known: the network needs real voxels, not shapes alone")
    if cost is not None:
        costs = {
            MACS: f"{cost.macs / 1e9:.2f} G (convolutions only)",
            MACS_TABLE_2: f"{cost.macs_table_2 / 1e9:.2f} G",
            MEMORY: gb_in_words(network_step_gb(plan, cost.convolved_elements)),
        }
    unit = "slice, row, column" if plan.dimensions == 3 else "row, column"
    table = Table("quantity", "value", title=escape(title), title_justify="left")
    rows = {
        "networks": f"{len(networks)} × {type(network).__name__} ({plan.dimensions}D)",
        "parameters, each": f"{parameters:,} ({parameters / 1e6:.2f} M)",
        MACS: costs[MACS],
        MACS_TABLE_2: costs[MACS_TABLE_2],
        f"patch ({unit})": " × ".join(map(str, plan.patch_voxels)) + " voxels",
        "features": "-".join(map(str, plan.topology.features)),
        "strides": " ".join("×".join(map(str, stride)) for stride in plan.topology.strides),
        "target spacing (slice, row, column)": " × ".join(f"{spacing:.3f}" for spacing in plan.spacing_mm) + " mm",
        "global batch": batch_words(plan.global_batch),
        "labels": ", ".join(f"{label} {name}" for name, label in plan.labels.items()),
        MEMORY: costs[MEMORY],
    }
    for name, value in (rows | (said or {})).items():
        table.add_row(name, escape(value))
    Console().print(table)
