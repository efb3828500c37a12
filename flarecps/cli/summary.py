"""``flarecps summary``: what a checkpoint or a config holds, in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flarecps.cli.configs import found_config
from flarecps.errors import ConfigError, counted

MACS, MACS_TABLE_2 = "MACs, one forward pass", "MACs as the paper's Table 2 counts"
MEMORY = "memory of a step, estimated (bf16-mixed)"

if TYPE_CHECKING:
    from torch import nn

    from flarecps.planning.plan import Plan, Topology
    from flarecps.training.module import SegmentationModule


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
        module, missing = _instantiated_module(found, classes)
        method = module.method
        if missing is None and classes is not None:
            raise ConfigError(f"{config}: its case store knows the classes; leave out --classes")
        said = {"method": f"{type(method).__name__}, learns from {' and '.join(method.streams)} patches"}
        if missing is not None:
            needs = f"needs the case store ({missing} is not there)"
            assumed = "FLARE22's 14 classes are assumed (see --classes)" if classes is None else f"{classes} classes"
            said |= {"target spacing (slice, row, column)": needs, "labels": f"{assumed}; the data set's own: {needs}"}
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


def _instantiated_module(config: str, classes: int | None) -> tuple[SegmentationModule, str | None]:
    """The module that ``flarecps fit --config CONFIG`` would train, and the case store that it misses, if it does.

    Without its store, the module is what the config alone says: its patch, topology and batch, and CT with ``classes``
    classes, background included, by default FLARE22's. Spacing and intensities of its plan then mean nothing, and
    neither does a batch that the config leaves to the plan (0 patches). Raises ``ConfigError`` where the config leaves
    patch or topology to a store that is not there.
    """
    import jsonargparse

    from flarecps.cli.former_keys import current_words, read_config
    from flarecps.cli.library_settings import set_up_libraries
    from flarecps.cli.training import TrainingCLI
    from flarecps.method_config import CROSS_PSEUDO
    from flarecps.planning.plan import plan_to_json
    from flarecps.training.module import SegmentationModule

    set_up_libraries()
    content = read_config(current_words(["--config", config])[0][-1].removeprefix("--config="))
    data, model = (content.get(part) or {} for part in ("data", "model"))
    store = data.get("store")
    if store is None or Path(store).exists():
        cli = TrainingCLI(["--config", config], save_config_callback=None, run=False)
        return cli.model, None
    if not data.get("patch_voxels") or not model.get("topology"):
        raise ConfigError(
            f"{config}: its case store {store} is not there, and patch and topology are the plan's, which lies in it: "
            "preprocess first, or give data.patch_voxels and model.topology"
        )
    parser = jsonargparse.ArgumentParser(parser_mode="omegaconf+")
    parser.add_class_arguments(SegmentationModule, "model", skip={"plan"}, instantiate=False)
    parser.set_defaults({"model.method": {"class_path": CROSS_PSEUDO}})
    arguments = parser.instantiate_classes(parser.parse_object({"model": model})).model
    plan = plan_to_json(_plan_without_store(data, arguments["topology"], classes))
    return SegmentationModule(plan, **arguments), str(store)


def _plan_without_store(data: dict[str, Any], topology: Topology, classes: int | None) -> Plan:
    from flarecps.anatomy import FLARE22_LABELS, FLARE22_PAIRS
    from flarecps.planning.plan import Intensity, Plan

    patch = tuple(data["patch_voxels"])
    batch = dict.fromkeys(("labelled", "unlabelled"), 0) | (data.get("global_batch") or {})
    if data.get("unlabelled") is False:
        batch["unlabelled"] = 0
    return Plan(
        dataset="FLARE22",
        dimensions=2 if len(patch) == 2 else 3,
        labels=FLARE22_LABELS if classes is None else {"background": 0, **{f"class {n}": n for n in range(1, classes)}},
        left_right_pairs=FLARE22_PAIRS if classes is None else (),
        channels=("CT",),
        spacing_mm=(1.0, 1.0, 1.0),
        axis_order=(0, 1, 2),
        median_shape_voxels=(1, 1, 1),
        patch_voxels=patch,
        topology=topology,
        global_batch=batch,
        batch_dice=True,
        intensity=Intensity("ct", -1.0, 1.0, 0.0, 1.0),
        fingerprint={},
        memory_gb=0.0,
    )
