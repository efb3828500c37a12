"""nnU-Net v2 itself with models of ours, and ours with its: it loads what is exported, and both label one CT alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_model import small_plan

from flarecps.checkpoint import FinestScale, TrainedModel
from flarecps.interop.nnunet_export import export_to_nnunet
from flarecps.networks import PlainUNet, ResidualEncoderUNet
from flarecps.planning.plan import Topology

REPOSITORY = Path(__file__).resolve().parents[2]


ASK = """
import sys, torch
from pathlib import Path
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
for folder in map(Path, sys.argv[1:]):
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), None)
    patch = torch.load(folder / "patch.pt", weights_only=True)
    answers = []
    for weights in predictor.list_of_parameters:
        predictor.network.load_state_dict(weights)
        with torch.no_grad():
            answers.append(predictor.network.eval()(patch))
    torch.save({"logits": answers, "axes": predictor.allowed_mirroring_axes}, folder / "answer.pt")
"""


@pytest.fixture
def peer() -> str:
    python = os.environ.get("FLARECPS_PEER_PYTHON")
    if not python:
        pytest.skip("nnU-Net is not at hand (set FLARECPS_PEER_PYTHON to its Python; 'make peers' installs it)")
    return python


def model_of(kind: Any, dimensions: int, path: Path, **more: Any) -> TrainedModel:
    """Two siblings with numbers in every parameter."""
    ones, twos, threes = (1,) * dimensions, (2,) * dimensions, (3,) * dimensions
    topology = Topology((4, 8, 8), (ones, twos, twos), (threes,) * 3)
    plan = small_plan(dimensions=dimensions, patch_voxels=(16,) * dimensions, topology=topology)
    generator = torch.Generator().manual_seed(0)
    siblings = []
    for _ in range(2):
        network = kind(1, 3, topology.features, topology.strides, topology.kernels, **more)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        siblings.append(FinestScale(network).eval())
    return TrainedModel(plan, tuple(siblings), 1, path)


def test_nnunet_loads_every_kind_of_export(peer: str, tmp_path: Path) -> None:
    """Its own predictor builds the network from our plans, loads both folds strictly, and gives our logits."""
    models = {
        "plain": model_of(PlainUNet, 3, tmp_path),
        "flat": model_of(PlainUNet, 2, tmp_path, convolutions=1, deep_supervision=False),
        "residual": model_of(ResidualEncoderUNet, 3, tmp_path, blocks_per_stage=[1, 2, 2]),
        "flat_residual": model_of(ResidualEncoderUNet, 2, tmp_path, blocks_per_stage=[1, 2, 1], decoder_convolutions=2),
    }
    patches = {}
    for name, model in models.items():
        export_to_nnunet(model, tmp_path / name, "both", mirror_axes=(1, 0) if "flat" in name else ())
        patches[name] = torch.randn(2, 1, *model.patch_voxels)
        torch.save(patches[name], tmp_path / name / "patch.pt")
    subprocess.run([peer, "-c", ASK, *(str(tmp_path / name) for name in models)], check=True, capture_output=True)
    for name, model in models.items():
        answer = torch.load(tmp_path / name / "answer.pt", weights_only=True)
        assert answer["axes"] == ((0, 1) if "flat" in name else None)
        for ours, theirs in zip(model.siblings, answer["logits"], strict=True):
            with torch.no_grad():
                torch.testing.assert_close(ours(patches[name]), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_models_travel_both_ways(peer: str, shared_data: Path, tmp_path: Path) -> None:
    """Shorter trainings than the script's own, the same thresholds: 0.995 exported, 0.999 imported."""
    scan = shared_data / "ct" / "example_3mm"
    script = REPOSITORY / "benchmarks" / "interop" / "agreement.py"
    words = [scan / "ct.nii.gz", scan / "seg13.nii.gz", tmp_path, "--dimensions", 3, "--networks", "PlainUNet"]
    words += ["--nnunet-epochs", 5]
    done = subprocess.run([sys.executable, str(script), *map(str, words)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = {row["way"]: row["structures"] for row in json.loads((tmp_path / "agreement.json").read_text())["rows"]}
    assert set(rows) == {"exported", "imported back", "imported"}
    for way, threshold in (("exported", 0.995), ("imported back", 0.999), ("imported", 0.999)):
        assert rows[way]
        for structure, one in rows[way].items():
            assert one["dice"] >= threshold, (way, structure)
    assert min(one["dsc_flarecps"] for one in rows["exported"].values()) > 0.8
