"""A flarecps checkpoint as a model that both sides load: FOLDER/ours.ckpt, and weights and plans for nnU-Net v2.

python nnunet_model.py CHECKPOINT FOLDER [--classes 14]

With more classes than the checkpoint has, the new ones' rows of the output layer are means of background's and the
first structure's: their logits lie between those two, so they are never the highest and labels stay the same, while
every class costs what a real one costs. Biases that nnU-Net v2's network has and ours has not are zeros there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flarecps.checkpoint import ENTRY, model_entry, read_checkpoint
from flarecps.networks.nnunet_names import nnunet_v2_names
from flarecps.networks.unet import PlainUNet
from flarecps.planning.plan import Plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    model = read_checkpoint(options.checkpoint)
    plan, network = with_classes(model.plan, model.siblings[0].network, options.classes or model.plan.class_count)
    state = {f"siblings.0.{key}": value for key, value in network.state_dict().items()}
    entry = model_entry(plan, torch.nn.ModuleList([network]), model.epoch)
    torch.save({"state_dict": state, ENTRY: entry}, options.folder / "ours.ckpt")
    names = nnunet_v2_names(network)
    torch.save({names[key]: value for key, value in network.named_parameters()}, options.folder / "nnunet.pth")
    (options.folder / "plans.json").write_text(json.dumps(nnunet_plans(plan, network.arguments), indent=1))
    dataset = {"channel_names": {"0": "CT"}, "labels": plan.labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (options.folder / "dataset.json").write_text(json.dumps(dataset))


def with_classes(plan: Plan, network: Any, classes: int) -> tuple[Plan, PlainUNet]:
    """The plan and network with more classes, none of the new ones ever the highest."""
    extra = range(plan.class_count, classes)
    wider = PlainUNet(**(network.arguments | {"classes": classes}))
    state = dict(network.state_dict())
    for key in [key for key in state if key.startswith("heads.")]:
        low, high = state[key][0], state[key][1]
        shares = torch.linspace(0.3, 0.7, max(len(extra), 1))
        state[key] = torch.cat([state[key], *(torch.lerp(low, high, share)[None] for share in shares[: len(extra)])])
    wider.load_state_dict(state)
    return replace(plan, labels=plan.labels | {f"structure {label}": label for label in extra}), wider


def nnunet_plans(plan: Plan, arguments: dict[str, Any]) -> dict[str, Any]:
    """The same plan in nnU-Net v2's words. Its reader reorients to RAS, as ours does."""
    stages = len(arguments["features"])
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "flarecps",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(plan.patch_voxels),
        "median_image_size_in_voxels": list(plan.median_shape_voxels),
        "spacing": list(plan.spacing_mm),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling | {"order": 3},
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": arguments["features"],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": arguments["kernels"],
                "strides": arguments["strides"],
                "n_conv_per_stage": [arguments["convolutions"]] * stages,
                "n_conv_per_stage_decoder": [arguments["convolutions"]] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    intensity = plan.intensity
    properties = {
        "mean": intensity.mean,
        "std": intensity.sd,
        "percentile_00_5": intensity.low,
        "percentile_99_5": intensity.high,
        "median": intensity.mean,
        "min": intensity.low,
        "max": intensity.high,
    }
    return {
        "dataset_name": "Dataset001_flarecps",
        "plans_name": "flarecps",
        "original_median_spacing_after_transp": list(plan.spacing_mm),
        "original_median_shape_after_transp": list(plan.median_shape_voxels),
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": list(plan.axis_order),
        "transpose_backward": [plan.axis_order.index(axis) for axis in range(3)],
        "experiment_planner_used": "flarecps",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": properties},
        "configurations": {"3d_fullres": configuration},
    }


if __name__ == "__main__":
    main()
