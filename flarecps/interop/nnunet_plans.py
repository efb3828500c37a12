"""A plan in nnU-Net v2's words: its ``plans.json`` and ``dataset.json``."""

from __future__ import annotations

from typing import Any

from flarecps.errors import CheckpointError
from flarecps.interop.nnunet_architecture import architecture_of
from flarecps.networks.unet import UNet
from flarecps.planning.plan import Plan

READERS = {"ras": "SimpleITKIOWithReorient", "as_stored": "SimpleITKIO"}  # by a plan's orientation
PLANS_NAME = "flarecps"
IGNORE = "ignore"  # a label of this name means "do not look here" to nnU-Net
LARGEST_ID = 254  # of labels that nnU-Net writes as 8 bits


def configuration_name(plan: Plan) -> str:
    """nnU-Net's name of the configuration that a plan is."""
    return "3d_fullres" if plan.dimensions == 3 else "2d"


def dataset_name(plan: Plan) -> str:
    """A name of the form that nnU-Net expects, DatasetNNN_Name."""
    return f"Dataset001_{''.join(letter if letter.isalnum() else '_' for letter in plan.dataset)}"


def plans_of(plan: Plan, network: UNet) -> dict[str, Any]:
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
    function = "resample_data_or_seg_to_shape"
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
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_probabilities": function,
        "resampling_fn_data_kwargs": resampling | {"order": 3},
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "batch_dice": plan.batch_dice,
        "architecture": architecture_of(network),
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


def dataset_of(plan: Plan) -> dict[str, Any]:
    """nnU-Net's ``dataset.json`` for ``plan``."""
    return {
        "name": plan.dataset,
        "channel_names": {str(number): channel for number, channel in enumerate(plan.channels)},
        "labels": dict(sorted(plan.labels.items(), key=lambda pair: pair[1])),
        "numTraining": plan.fingerprint.get("cases", {}).get("labelled", 0),
        "file_ending": ".nii.gz",
    }
