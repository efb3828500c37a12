"""The plan: every number a data set decides, as one readable, versioned JSON file with units in its key names.

Spatial triples (``spacing_mm``, ``median_shape_voxels``, ``patch_voxels``, strides, kernels) are in *network* order:
network axis ``a`` is canonical axis ``axis_order[a]``. That is (slice, row, column) unless the coarse axis is another
one. In 2D the slice axis is not resampled: ``spacing_mm[0]`` is the data's median, for information, and the patch has
two numbers (row, column).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from flarecps import atomic
from flarecps.errors import PlanError
from flarecps.json_fields import Reader
from flarecps.text_files import read_json
from flarecps.typing import SpacingMm, Triple, triple

FORMAT = "flarecps-plan"
VERSION = 1
CANONICAL_LATERAL_AXIS = 2  # of (slice, row, column) in RAS voxel order
MOST_SHOWN = 80  # characters of an entry in a message
# Beyond them plans are no plans, and would decide how much memory is taken
MOST_STAGES, MOST_FEATURES, LARGEST_KERNEL, LARGEST_EDGE, MOST_PATCH_VOXELS = 16, 4096, 64, 2**13, 2**30
MOST_LAYERS, MOST_CHANNELS, MOST_PATCHES = 64, 256, 2**16  # of a stage, an image, a step
FORMER_CONVENTIONS = "habits"  # the key of plans written before "conventions"

IntensityScheme = Literal["ct", "zscore"]
IntensitySource = Literal["global", "foreground"]


@dataclass(frozen=True)
class Intensity:
    """How intensities become network input.

    ``ct``: clip to [low, high], subtract mean, divide by sd; all in HU and the same for every scan, taken from all
    voxels of labelled and unlabelled scans (``global``, the paper's way) or from the voxels of labelled structures
    (``foreground``, nnU-Net's). ``zscore``: every scan by its own mean and SD; the four numbers are 0, 0, 0, 1.
    """

    scheme: IntensityScheme
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    sd: float = 1.0
    source: IntensitySource = "global"

    def __post_init__(self) -> None:
        if self.scheme == "zscore":
            for name, value in (("low", 0.0), ("high", 0.0), ("mean", 0.0), ("sd", 1.0)):
                object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Conventions:
    """How a scan is brought to the network, where a plan that was made elsewhere differs from this program's ways.

    ``orientation``: voxels in RAS order, or as the scan's file stores them. ``intensity``: CT is clipped to its window
    after resampling, or before it, as nnU-Net v2 does. ``crop``: to the field of view (in CT, what is above -1024 HU),
    or to what is not 0, which is nnU-Net's rule. A plan's JSON holds them only where they are not the defaults.
    """

    orientation: Literal["ras", "as_stored"] = "ras"
    intensity: Literal["after_resampling", "before_resampling"] = "after_resampling"
    crop: Literal["field_of_view", "nonzero"] = "field_of_view"


OWN_CONVENTIONS = Conventions()


@dataclass(frozen=True)
class Topology:
    """The network's shape: one entry per resolution stage, finest first; the first stride is all 1."""

    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    @property
    def total_stride(self) -> tuple[int, ...]:
        """By how much each axis is reduced from the input to the deepest stage."""
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))


@dataclass(frozen=True)
class Plan:
    """Everything the data decided; see the module's first lines for the order of axes."""

    dataset: str
    dimensions: Literal[2, 3]
    labels: dict[str, int]  # name -> id, background 0, ids without gaps
    left_right_pairs: tuple[tuple[int, int], ...]  # label ids that a left-right mirror exchanges
    channels: tuple[str, ...]
    spacing_mm: SpacingMm
    axis_order: Triple
    median_shape_voxels: Triple  # of the training scans after cropping and resampling
    patch_voxels: tuple[int, ...]
    topology: Topology
    global_batch: dict[str, int]  # patches per optimiser step, over all ranks: labelled, unlabelled [, pseudo_labelled]
    batch_dice: bool
    intensity: Intensity
    fingerprint: dict[str, Any]  # what the numbers were decided from: a summary for people
    memory_gb: float  # estimated GPU memory of one training step (two siblings, both kinds of patches, bf16-mixed)
    conventions: Conventions = OWN_CONVENTIONS

    @property
    def class_count(self) -> int:
        """Number of classes including background."""
        return len(self.labels)

    @property
    def integer_hu(self) -> bool:
        """Whether cases on the network's grid hold whole HU: CT, unless it was clipped before it was resampled."""
        return self.intensity.scheme == "ct" and self.conventions.intensity == "after_resampling"

    @property
    def lateral_axis(self) -> int:
        """The network axis, of three, that runs from the patient's left to right: canonical columns."""
        return self.axis_order.index(CANONICAL_LATERAL_AXIS)

    def preprocessing_hash(self) -> str:
        """A digest of what decides the stored voxels; plans that share it share a case store.

        Intensity numbers, patch, batch and topology are not part of it: they are applied when a patch is read. Where
        CT is clipped before resampling, its window is.
        """
        deciding: dict[str, Any] = {
            "dimensions": self.dimensions,
            "labels": sorted(self.labels.values()),
            "channels": self.channels,
            "spacing_mm": self.spacing_mm,
            "axis_order": self.axis_order,
            "scheme": self.intensity.scheme,
        }
        if self.conventions != OWN_CONVENTIONS:
            deciding[FORMER_CONVENTIONS] = asdict(self.conventions)  # or stores made before would be refused
        if self.conventions.intensity == "before_resampling":
            deciding["window"] = (self.intensity.low, self.intensity.high)
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan in plain types (dict, list, str, int, float, bool), keys in reading order."""
    content = {"format": FORMAT, "version": VERSION, **asdict(plan)}
    intensity: dict[str, Any] = {"scheme": plan.intensity.scheme, "source": plan.intensity.source}
    if plan.intensity.scheme == "ct":
        intensity |= {f"{name}_hu": getattr(plan.intensity, name) for name in ("low", "high", "mean", "sd")}
    content["intensity"] = intensity
    if plan.conventions == OWN_CONVENTIONS:
        del content["conventions"]
    return json.loads(json.dumps(content, default=_plain))


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays in plain types."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise PlanError(f"plan: holds a {type(value).__name__}, {value!r}; expected numbers, text, lists and dicts")


def plan_from_json(content: Any, where: str = "plan") -> Plan:
    """The plan that ``content`` (parsed JSON) describes.

    ``where`` opens every message, usually the file's name. Raises ``PlanError`` that names the key, its value,
    what was expected and the usual cure, for missing, misspelt, mistyped and contradicting entries.
    """
    reader = Reader(content, where)
    if reader.string("format") != FORMAT:
        raise reader.error("format", f"'{FORMAT}'", "is this a plan? 'flarecps plan' writes one")
    if reader.integer("version") != VERSION:
        raise reader.error("version", str(VERSION), "it was written by another version of flarecps: plan again")
    dimensions = reader.integer("dimensions")
    if dimensions not in (2, 3):
        raise reader.error("dimensions", "2 or 3", "plan again with --dimensions 2 or 3")
    plan = Plan(
        dataset=reader.string("dataset"),
        dimensions=dimensions,  # type: ignore[arg-type]  # checked just above
        labels=_labels(reader),
        left_right_pairs=tuple((right, left) for right, left in reader.rows("left_right_pairs", 2)),
        channels=_channels(reader),
        spacing_mm=triple(reader.numbers("spacing_mm", 3, above=0.0)),
        axis_order=triple(reader.integers("axis_order", 3, at_least=0)),
        median_shape_voxels=triple(reader.integers("median_shape_voxels", 3)),
        patch_voxels=_patch(reader, dimensions),
        topology=_topology(reader.section("topology"), dimensions),
        global_batch=_batch(reader.section("global_batch")),
        batch_dice=reader.boolean("batch_dice"),
        intensity=_intensity(reader.section("intensity")),
        fingerprint=reader.mapping("fingerprint"),
        memory_gb=reader.number("memory_gb", at_least=0.0),
        conventions=_conventions(reader),
    )
    reader.refuse_unknown()
    _check_agreement(plan, reader)
    return plan


def checked(plan: Plan, where: str = "plan") -> Plan:
    """``plan`` itself when it would be accepted from a file; ``PlanError`` otherwise."""
    plan_from_json(plan_to_json(plan), where)
    return plan


def plan_differences(former: Plan, latter: Plan) -> list[str]:
    """What a plan says otherwise than a former one, a line for each of its entries."""
    ours, theirs = plan_to_json(latter), plan_to_json(former)
    changed = [name for name in ours if ours[name] != theirs.get(name)]
    return [
        f"{name}: {_brief(ours[name])} instead of {_brief(theirs.get(name))}"
        if name not in ("fingerprint", "topology")
        else f"{name}: another"
        for name in changed
    ]


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} …"


def read_plan(path: Path | str) -> Plan:
    """The plan in a JSON file; ``PlanError`` names the file when it is missing, not JSON, or not a sound plan."""
    expected = f"expected a plan: undo the last edit, or write it with 'flarecps plan DATASET --out {path}'"
    return plan_from_json(read_json(path, PlanError, expected), str(path))


def write_plan(path: Path | str, plan: Plan) -> None:
    """Write the plan as readable JSON, atomically; refused (``PlanError``) when it would not be read back."""
    content = plan_to_json(checked(plan, str(path)))
    atomic.write_text(path, _readable(content) + "\n")


def _labels(reader: Reader) -> dict[str, int]:
    labels = reader.mapping("labels")
    ids = list(labels.values())
    if any(type(label) is not int for label in ids) or sorted(ids) != list(range(len(ids))):
        raise reader.error(
            "labels",
            "whole-number ids 0, 1, 2, … without gaps or repeats (0 is background)",
            "renumber the labels in dataset.json and in the label files, then plan again",
        )
    if len(ids) < 2 or labels.get("background") != 0:
        raise reader.error("labels", "'background': 0 and at least one structure", "complete dataset.json, plan again")
    if len(ids) > 256:
        raise reader.error("labels", "at most 255 structures (labels are stored as 8 bits)", "merge some structures")
    return labels


def _channels(reader: Reader) -> tuple[str, ...]:
    channels = reader.strings("channels")
    if len(channels) > MOST_CHANNELS:
        raise reader.error("channels", f"at most {MOST_CHANNELS}", "plan again")
    return channels


def _patch(reader: Reader, dimensions: int) -> tuple[int, ...]:
    patch = reader.integers("patch_voxels", dimensions)
    if max(patch) > LARGEST_EDGE or math.prod(patch) > MOST_PATCH_VOXELS:
        expected = f"at most {LARGEST_EDGE} voxels along an axis, and {MOST_PATCH_VOXELS} in all"
        raise reader.error("patch_voxels", expected, "use a smaller patch")
    return patch


def _topology(reader: Reader, dimensions: int) -> Topology:
    topology = Topology(
        features=reader.integers("features", None),
        strides=reader.rows("strides", dimensions),
        kernels=reader.rows("kernels", dimensions),
    )
    reader.refuse_unknown()
    stages = len(topology.features)
    if stages > MOST_STAGES or max(topology.features) > MOST_FEATURES:
        raise reader.error("features", f"at most {MOST_STAGES} stages of at most {MOST_FEATURES}", "use fewer")
    for key, rows in (("strides", topology.strides), ("kernels", topology.kernels)):
        if len(rows) != stages:
            raise reader.error(key, f"{stages} entries, one per stage as in 'features'", "add or remove stages in all")
        if max(map(max, rows)) > LARGEST_KERNEL:
            raise reader.error(key, f"numbers of at most {LARGEST_KERNEL}", "strides are 1 or 2, kernels 1 or 3")
    if set(topology.strides[0]) != {1}:
        raise reader.error("strides", f"first entry {[1] * dimensions}", "the first stage keeps the input's resolution")
    if any(size % 2 == 0 for kernel in topology.kernels for size in kernel):
        raise reader.error("kernels", "odd sizes (1 or 3)", "an even kernel would shift the image")
    return topology


def _batch(reader: Reader) -> dict[str, int]:
    batch = {"labelled": reader.integer("labelled"), "unlabelled": reader.integer("unlabelled", at_least=0)}
    if "pseudo_labelled" in reader.content:  # of a training's plan
        batch["pseudo_labelled"] = reader.integer("pseudo_labelled")
    reader.refuse_unknown()
    if sum(batch.values()) > MOST_PATCHES:
        raise reader.error("labelled", f"at most {MOST_PATCHES} patches in all", "use fewer")
    return batch


def _intensity(reader: Reader) -> Intensity:
    scheme, source = reader.choice("scheme", ("ct", "zscore")), reader.choice("source", ("global", "foreground"))
    if scheme == "zscore":
        reader.refuse_unknown()
        return Intensity("zscore", source=source)  # type: ignore[arg-type]  # one of the choices
    low, high, mean = reader.number("low_hu"), reader.number("high_hu"), reader.number("mean_hu")
    sd = reader.number("sd_hu", above=0.0)
    reader.refuse_unknown()
    if low >= high:
        raise reader.error("low_hu", f"less than high_hu ({high})", "the window must not be empty")
    return Intensity("ct", low, high, mean, sd, source)  # type: ignore[arg-type]  # one of the choices


def _conventions(plan: Reader) -> Conventions:
    plan.asked |= {"conventions", FORMER_CONVENTIONS}
    present = [key for key in ("conventions", FORMER_CONVENTIONS) if key in plan.content]
    if not present:
        return OWN_CONVENTIONS
    if len(present) == 2:
        raise plan.error(FORMER_CONVENTIONS, "to be left out beside 'conventions', its new name", "remove it")
    reader = plan.section(present[0])
    choices = {key: get_args(hint) for key, hint in get_type_hints(Conventions).items()}
    chosen = {key: reader.choice(key, known) for key, known in choices.items() if key in reader.content}
    reader.asked |= choices.keys()
    reader.refuse_unknown()
    return Conventions(**chosen)  # type: ignore[arg-type]  # each is one of the choices


def _check_agreement(plan: Plan, reader: Reader) -> None:
    if sorted(plan.axis_order) != [0, 1, 2]:
        raise reader.error("axis_order", "0, 1 and 2 once each", "[0, 1, 2] keeps (slice, row, column)")
    for axis, (size, stride) in enumerate(zip(plan.patch_voxels, plan.topology.total_stride, strict=True)):
        if size % stride:
            nearest = max(stride, round(size / stride) * stride)
            raise reader.error(
                "patch_voxels",
                f"axis {axis} to be a multiple of {stride}, the product of the strides on that axis",
                f"use {nearest}, or remove a stage from 'topology'",
            )
    deepest = [size // stride for size, stride in zip(plan.patch_voxels, plan.topology.total_stride, strict=True)]
    if max(deepest) == 1:
        raise reader.error(
            "patch_voxels",
            "more than one voxel at the deepest stage, or instance normalisation has nothing to normalise",
            "use a larger patch, or remove a stage from 'topology'",
        )
    if plan.left_right_pairs and plan.conventions.orientation == "as_stored":
        raise reader.error(
            "left_right_pairs",
            "none with conventions.orientation 'as_stored', where left and right may be on any axis",
            "write []",
        )
    known = set(plan.labels.values()) - {0}
    for pair in plan.left_right_pairs:
        if not set(pair) <= known or pair[0] == pair[1]:
            raise reader.error("left_right_pairs", f"two different label ids out of {sorted(known)}", "edit the pair")


def _readable(value: Any, indent: int = 0) -> str:
    """JSON with lists of numbers on one line each."""
    inner = " " * (indent + 1)
    if isinstance(value, dict) and value:
        entries = (
            f"{inner}{json.dumps(key, ensure_ascii=False)}: {_readable(v, indent + 1)}" for key, v in value.items()
        )
        return "{\n" + ",\n".join(entries) + "\n" + " " * indent + "}"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def batch_words(global_batch: Mapping[str, int]) -> str:
    """The patches of a step for people.

    >>> batch_words({"labelled": 2, "unlabelled": 0, "pseudo_labelled": 4})
    '2 labelled + 0 unlabelled + 4 pseudo-labelled patches'
    """
    return " + ".join(f"{number} {kind.replace('_', '-')}" for kind, number in global_batch.items()) + " patches"


def volume_patch(patch_voxels: Sequence[int]) -> Triple:
    """The patch with three axes: a 2D patch (row, column) is one slice thick.

    >>> volume_patch([64, 48])
    (1, 64, 48)
    """
    return triple((1, *patch_voxels)[-3:])
