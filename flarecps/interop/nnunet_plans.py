"""The plan as nnU-Net v2's ``plans.json`` and ``dataset.json``, and back, with the conventions of its models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flarecps.datasets.label_names import channel_names, left_right_pairs
from flarecps.errors import CheckpointError, DatasetError, PlanError
from flarecps.interop.nnunet_architecture import architecture_to_nnunet
from flarecps.json_fields import Reader, shown
from flarecps.networks.unet import UNet
from flarecps.planning.memory import MemoryModel
from flarecps.planning.plan import Conventions, Intensity, Plan, Topology, checked

READERS = {"ras": "SimpleITKIOWithReorient", "as_stored": "SimpleITKIO"}  # by a plan's orientation
PLANS_NAME = "flarecps"
AGAIN = "expected the plans of nnU-Net v2: copy them again"
IGNORE = "ignore"  # a label of this name means "do not look here" to nnU-Net
LARGEST_ID = 254  # of labels that nnU-Net writes as 8 bits
ORIENTATIONS = {
    "SimpleITKIO": "as_stored",
    "NibabelIO": "as_stored",
    "SimpleITKIOWithReorient": "ras",
    "NibabelIOWithReorient": "ras",
}
GPU_GB = 8.0  # the model of a GPU's memory needs a size; the estimate of one step does not depend on it
RESAMPLER = "resample_data_or_seg_to_shape"
RESAMPLING = {
    "resampling_fn_data": {"order": 3, "order_z": 0, "force_separate_z": None},
    "resampling_fn_probabilities": {"order": 1, "order_z": 0, "force_separate_z": None},
}


def configuration_name(plan: Plan) -> str:
    """nnU-Net's name of the configuration that a plan is."""
    return "3d_fullres" if plan.dimensions == 3 else "2d"


def dataset_name(plan: Plan) -> str:
    """A name of the form that nnU-Net expects, DatasetNNN_Name."""
    return f"Dataset001_{''.join(letter if letter.isalnum() else '_' for letter in plan.dataset)}"


def plan_to_nnunet(plan: Plan, network: UNet) -> dict[str, Any]:
    """nnU-Net's plans for ``plan`` and a network trained by it; CheckpointError for what nnU-Net can't express.

    nnU-Net clips before it resamples, whatever the plan says; nothing in its plans could say otherwise.
    """
    if IGNORE in plan.labels:
        raise CheckpointError(
            f"a structure is called '{IGNORE}', which nnU-Net takes for voxels without annotation; rename it"
        )
    if plan.class_count - 1 > LARGEST_ID:
        raise CheckpointError(f"{plan.class_count - 1} structures; nnU-Net's 8-bit label files hold {LARGEST_ID}")
    seen = slice(3 - plan.dimensions, None)  # in 2D plans nnU-Net leaves the slice axis out
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    channels = len(plan.channels)
    configuration = {
        "data_identifier": f"{PLANS_NAME}_{configuration_name(plan)}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": plan.global_batch["labelled"],
        "patch_size": list(plan.patch_voxels),
        "median_image_size_in_voxels": list(plan.median_shape_voxels)[seen],
        "spacing": list(plan.spacing_mm)[seen],
        "normalization_schemes": ["CTNormalization" if plan.intensity.scheme == "ct" else "ZScoreNormalization"]
        * channels,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": RESAMPLER,
        "resampling_fn_seg": RESAMPLER,
        "resampling_fn_probabilities": RESAMPLER,
        "resampling_fn_data_kwargs": resampling | {"order": 3},
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "batch_dice": plan.batch_dice,
        "architecture": architecture_to_nnunet(network),
    }
    return {
        "dataset_name": dataset_name(plan),
        "plans_name": PLANS_NAME,
        "original_median_spacing_after_transp": list(plan.spacing_mm),
        "original_median_shape_after_transp": list(plan.median_shape_voxels),
        "image_reader_writer": READERS[plan.conventions.orientation],
        "transpose_forward": list(plan.axis_order),
        "transpose_backward": [plan.axis_order.index(axis) for axis in range(3)],
        "experiment_planner_used": PLANS_NAME,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): {
                "mean": plan.intensity.mean,
                "std": plan.intensity.sd,
                "percentile_00_5": plan.intensity.low,
                "percentile_99_5": plan.intensity.high,
            }
            for channel in range(channels)
        },
        "configurations": {configuration_name(plan): configuration},
    }


def nnunet_dataset_json(plan: Plan) -> dict[str, Any]:
    """nnU-Net's ``dataset.json`` for ``plan``."""
    return {
        "name": plan.dataset,
        "channel_names": {str(number): channel for number, channel in enumerate(plan.channels)},
        "labels": dict(sorted(plan.labels.items(), key=lambda pair: pair[1])),
        "numTraining": plan.fingerprint.get("cases", {}).get("labelled", 0),
        "file_ending": ".nii.gz",
    }


def resolved_configuration(plans: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """A configuration with what it inherits from others; CheckpointError when it is not there, or a cascade's."""
    known = plans.get("configurations")
    merged: dict[str, Any] = {}
    following: Any = name
    for _ in range(len(known) + 1 if isinstance(known, Mapping) else 0):
        one = known.get(following) if isinstance(known, Mapping) and isinstance(following, str) else None
        if not isinstance(one, Mapping):
            break
        merged = {**one, **merged}
        following = one.get("inherits_from")
        if following is None:
            if merged.get("previous_stage"):
                raise CheckpointError(
                    f"{where}: '{name}' is the second stage of a cascade, which needs the first one's labels as input; "
                    "import the 3d_fullres or 3d_lowres model"
                )
            return merged
    found = ", ".join(known) if isinstance(known, Mapping) else "none"
    raise CheckpointError(f"{where}: no configuration '{name}' in plans.json, or one it inherits from; it has {found}")


def labels_of_dataset(dataset: Mapping[str, Any], where: str) -> dict[str, int]:
    """The label set that a model's output channels stand for; a label to be ignored has none.

    Raises CheckpointError for regions, ids with gaps, and a missing or malformed entry.
    """
    labels = dataset.get("labels")
    if not isinstance(labels, Mapping) or "background" not in labels:
        raise CheckpointError(f"{where}: dataset.json names no 'labels' with a 'background'")
    found: dict[str, int] = {}
    for name, value in labels.items():
        if name == "ignore":
            continue
        ids = value if isinstance(value, list) else [value]
        if len(ids) != 1:
            raise CheckpointError(
                f"{where}: '{name}' is a region of the labels {ids}; its network tells overlapping regions, here every "
                "voxel has one label"
            )
        if isinstance(ids[0], bool) or not isinstance(ids[0], int):
            raise CheckpointError(f"{where}: label '{name}' has the id {ids[0]!r}; expected a whole number")
        found[str(name)] = ids[0]
    found = dict(sorted(found.items(), key=lambda pair: pair[1]))
    if list(found.values()) != list(range(len(found))):
        raise CheckpointError(f"{where}: label ids {list(found.values())}; expected 0, 1, 2, … without gaps")
    return found


def channels_of_dataset(dataset: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The names of the image channels, in order."""
    if not {"channel_names", "modality"} & set(dataset):
        raise CheckpointError(f'{where}: dataset.json names no channels; expected \'channel_names\' as {{"0": "CT"}}')
    try:
        return channel_names(dataset, f"{where}/dataset.json")
    except DatasetError as error:
        raise CheckpointError(str(error)) from None


def plan_from_nnunet(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], configuration: Mapping[str, Any], network: UNet, where: str
) -> Plan:
    """The plan by which a model of nnU-Net's was trained. Raises CheckpointError for what this program can't do."""
    try:
        return _plan(plans, dataset, configuration, network, where)
    except PlanError as error:
        raise CheckpointError(f"{where}: its plans make no sound plan here: {error}") from error


def _plan(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], configuration: Mapping[str, Any], network: UNet, where: str
) -> Plan:
    _check_preprocessing(plans, configuration, where)
    labels, channels = labels_of_dataset(dataset, where), channels_of_dataset(dataset, where)
    whole, own = (
        Reader(one, f"{where}/plans.json", kind=CheckpointError, again=AGAIN) for one in (plans, configuration)
    )
    reader = whole.string("image_reader_writer")
    if reader not in ORIENTATIONS:
        raise CheckpointError(f"{where}: its images are read by '{reader}'; known are {', '.join(ORIENTATIONS)}")
    patch = own.integers("patch_size", None)
    edges = len(own.content["spacing"]) if len(patch) == 2 and isinstance(own.content.get("spacing"), list) else 3
    spacing, median = (
        own.numbers("spacing", edges, above=0.0),
        own.numbers("median_image_size_in_voxels", edges, above=0.0),
    )
    if len(patch) == 2:  # nnU-Net leaves the slice axis out
        slices_mm, slices = (
            whole.numbers(f"original_median_{what}_after_transp", 3, above=0.0)[0] for what in ("spacing", "shape")
        )
        spacing, median = (slices_mm, *spacing[-2:]), (slices, *median[-2:])
    given = network.arguments
    topology = Topology(
        tuple(given["features"]), tuple(map(tuple, given["strides"])), tuple(map(tuple, given["kernels"]))
    )
    order = whole.integers("transpose_forward", 3, at_least=0)
    batch = own.integer("batch_size")
    memory = MemoryModel(GPU_GB, len(patch), len(labels))
    orientation: Any = ORIENTATIONS[reader]
    plan = Plan(
        dataset=str(dataset.get("name") or plans.get("dataset_name") or "nnU-Net"),
        dimensions=len(patch),  # type: ignore[arg-type]  # 'checked' says so when it is neither 2 nor 3
        labels=labels,
        left_right_pairs=left_right_pairs(labels) if orientation == "ras" else (),
        channels=channels,
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        axis_order=(order[0], order[1], order[2]),
        median_shape_voxels=(_voxels(median[0]), _voxels(median[1]), _voxels(median[2])),
        patch_voxels=patch,
        topology=topology,
        global_batch={"labelled": batch, "unlabelled": batch},
        batch_dice=own.boolean("batch_dice"),
        intensity=_intensity(whole, own, len(channels), where),
        fingerprint={"imported_from": f"nnU-Net v2, {plans.get('dataset_name')}, {plans.get('plans_name')}"},
        memory_gb=round(memory.step_gb(patch, topology, batch), 2),
        conventions=Conventions(orientation, "before_resampling", "nonzero"),
    )
    return checked(plan, "plan")


def _check_preprocessing(plans: Mapping[str, Any], configuration: Mapping[str, Any], where: str) -> None:
    """Nothing, or CheckpointError for preprocessing that is not nnU-Net's default."""
    for what, found, expected in (
        ("preprocessor_name", configuration.get("preprocessor_name"), "DefaultPreprocessor"),
        ("label_manager", plans.get("label_manager", "LabelManager"), "LabelManager"),
        *((name, configuration.get(name), RESAMPLER) for name in RESAMPLING),
    ):
        if found != expected:
            raise CheckpointError(f"{where}: its {what} is '{found}'; only nnU-Net's default is known, '{expected}'")
    for name, expected_settings in RESAMPLING.items():
        settings = configuration.get(f"{name}_kwargs")
        if not isinstance(settings, Mapping):
            raise CheckpointError(f"{where}: {name}_kwargs is {shown(settings)}; expected {shown(expected_settings)}")
        for key, value in expected_settings.items():
            if settings.get(key) != value:
                raise CheckpointError(f"{where}: {name}_kwargs has {key} {settings.get(key)}; only {value} is known")
    masks = configuration.get("use_mask_for_norm")
    if any(masks) if isinstance(masks, list | tuple) else masks:
        raise CheckpointError(
            f"{where}: its intensities are scaled within a mask of the non-zero voxels (use_mask_for_norm), which this "
            "program does not do"
        )


def _intensity(plans: Reader, configuration: Reader, channels: int, where: str) -> Intensity:
    schemes = list(configuration.strings("normalization_schemes"))
    if schemes == ["ZScoreNormalization"] * channels:
        return Intensity("zscore", source="foreground")
    if schemes != ["CTNormalization"] * channels:
        raise CheckpointError(
            f"{where}: intensities are scaled by {', '.join(schemes)}; known are CTNormalization and "
            "ZScoreNormalization, the same for all channels"
        )
    keys = ("foreground_intensity_properties_by_modality", "foreground_intensity_properties_per_channel")
    properties = plans.section(keys[0] if keys[0] in plans.content and keys[1] not in plans.content else keys[1])
    by_channel = [properties.section(str(channel)) for channel in range(channels)]
    rows = [
        tuple(one.number(name) for name in ("percentile_00_5", "percentile_99_5", "mean", "std")) for one in by_channel
    ]
    if len(set(rows)) != 1:
        raise CheckpointError(f"{where}: its CT channels have windows of their own; here all channels share one")
    low, high, mean, sd = rows[0]
    return Intensity("ct", low, high, mean, sd, "foreground")


def _voxels(edge: float) -> int:
    return max(1, round(edge))
