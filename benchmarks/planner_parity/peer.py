"""nnU-Net v2's default planner on given geometries: peer.py GEOMETRIES.json ANSWERS.json, with the peer's Python.

Each geometry becomes a data set folder with a fingerprint in nnU-Net's format, in a temporary folder. The planner is
used as it is; only the networks it builds to count their feature maps are built without memory (torch's meta device),
which changes no count and saves minutes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

SECONDS_A_PLAN = 120  # the planner can shrink a patch for ever


def main(geometries: Path, answers: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{name}"] = str(Path(folder) / name)
        found = [plan(Path(folder), index, one) for index, one in enumerate(json.loads(geometries.read_text()))]
    packages = ("nnunetv2", "dynamic-network-architectures", "torch", "numpy")
    content = {"versions": {name: version(name) for name in packages}, "answers": found}
    answers.write_text(json.dumps(content, indent=1) + "\n")


def plan(folder: Path, index: int, geometry: dict[str, Any]) -> dict[str, Any]:
    """What the planner decides: axis order, and per configuration spacing, patch, network, batch."""
    import torch
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    dataset = f"Dataset{index + 1:03}_parity"
    write_dataset(folder, dataset, geometry)
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(SECONDS_A_PLAN)
    try:
        with contextlib.redirect_stdout(io.StringIO()), torch.device("meta"):
            planner = ExperimentPlanner(dataset, gpu_memory_target_in_gb=geometry["gpu_memory_gb"])
            plans = json.loads(json.dumps(planner.plan_experiment(), default=_plain))
    except Exception as error:  # kept as the answer: a planner that fails is a finding
        return {"name": geometry["name"], "error": f"{type(error).__name__}: {error}"}
    finally:
        signal.alarm(0)
    configurations = plans["configurations"]
    print(f"{index + 1}: {geometry['name']}: {', '.join(configurations)}", flush=True)
    return {
        "name": geometry["name"],
        "axis_order": plans["transpose_forward"],
        **{name: decided(configurations[name]) for name in ("3d_fullres", "2d") if name in configurations},
        "low_resolution_stage": "3d_lowres" in configurations,
    }


def decided(configuration: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one configuration, with this project's names."""
    network = configuration["architecture"]["arch_kwargs"]
    return {
        "spacing_mm": configuration["spacing"],
        "median_shape_voxels": configuration["median_image_size_in_voxels"],
        "patch_voxels": configuration["patch_size"],
        "features": network["features_per_stage"],
        "strides": network["strides"],
        "kernels": network["kernel_sizes"],
        "convolutions_per_stage": [network["n_conv_per_stage"], network["n_conv_per_stage_decoder"]],
        "batch": configuration["batch_size"],
        "batch_dice": configuration["batch_dice"],
    }


def write_dataset(folder: Path, dataset: str, geometry: dict[str, Any]) -> None:
    """A data set without images: a description that lists them, and the fingerprint."""
    channels, count = geometry["channels"], len(geometry["shapes_voxels"])
    description = {
        "channel_names": {str(channel): "CT" for channel in range(channels)},
        "labels": {"background": 0} | {f"structure {label}": label for label in range(1, geometry["classes"])},
        "numTraining": count,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {
            f"case_{i}": {"images": [f"case_{i}_0000.nii.gz"], "label": f"case_{i}.nii.gz"} for i in range(count)
        },
    }
    intensities = {"mean": 40.0, "median": 40.0, "std": 80.0, "min": -200.0, "max": 400.0,
                   "percentile_99_5": 300.0, "percentile_00_5": -150.0}  # fmt: skip
    fingerprint = {
        "spacings": geometry["spacings_mm"],
        "shapes_after_crop": geometry["shapes_voxels"],
        "foreground_intensity_properties_per_channel": {str(channel): intensities for channel in range(channels)},
        "median_relative_size_after_cropping": 1.0,
    }
    for place, name, content in (
        ("raw", "dataset.json", description),
        ("preprocessed", "dataset_fingerprint.json", fingerprint),
    ):
        (folder / place / dataset).mkdir(parents=True)
        (folder / place / dataset / name).write_text(json.dumps(content))


def _out_of_time(*_: object) -> None:
    raise TimeoutError(f"no plan after {SECONDS_A_PLAN} s")


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
