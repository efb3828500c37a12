"""ONNX files: the same logits as PyTorch's, by ONNX Runtime, and a plan's essentials beside them."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_model import small_plan, write_model

from flarecps.checkpoint import FinestScale, TrainedModel, read_checkpoint
from flarecps.cli.main import main
from flarecps.errors import CheckpointError, ConfigError
from flarecps.interop import onnx_export
from flarecps.interop.onnx_export import export_to_onnx
from flarecps.networks import ResidualEncoderUNet
from flarecps.planning.plan import Topology


def check(path: Path, network: FinestScale, shape: tuple[int, ...]) -> None:
    """Other patches and batches than the export itself looked at."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        patch = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(100 + batch)) * 2
        with torch.no_grad():
            expected = network(patch).numpy()
        (found,) = session.run(None, {"patch": patch.numpy()})
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_three_dimensions_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint, out = write_model(tmp_path / "a.ckpt"), tmp_path / "out" / "second.onnx"
    assert main(["export", str(checkpoint), str(out), "--to", "onnx", "--sibling", "2"]) == 0
    assert "sibling 2; ONNX Runtime and PyTorch differ by at most" in capsys.readouterr().out
    model = read_checkpoint(checkpoint)
    check(out, model.siblings[1], (1, 16, 16, 16))
    kept = {entry.key: json.loads(entry.value) for entry in onnx.load(out).metadata_props if "flarecps" in entry.key}
    assert kept["flarecps.labels"] == model.labels
    assert kept["flarecps.spacing_mm"] == [3.0, 3.0, 3.0]
    assert kept["flarecps.patch_voxels"] == [16, 16, 16]
    assert kept["flarecps.intensity"] == {
        "scheme": "ct", "source": "global", "low_hu": -200, "high_hu": 200, "mean_hu": 0, "sd_hu": 50,
    }  # fmt: skip
    assert kept["flarecps.sibling"] == 2


def two_dimensional_model(path: Path) -> TrainedModel:
    topology = Topology((4, 8), ((1, 1), (2, 2)), ((3, 3), (3, 3)))
    plan = small_plan(dimensions=2, patch_voxels=(16, 24), topology=topology)
    torch.manual_seed(0)
    network = ResidualEncoderUNet(1, 3, topology.features, topology.strides, topology.kernels, [1, 2])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return TrainedModel(plan, (FinestScale(network).eval(),), 1, path)


def test_two_dimensions_residual(tmp_path: Path) -> None:
    model = two_dimensional_model(tmp_path / "a.ckpt")
    assert export_to_onnx(model, tmp_path / "a.onnx") < 1e-4
    check(tmp_path / "a.onnx", model.siblings[0], (1, 16, 24))


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def another(network: FinestScale, plan: Any) -> Any:
        return convert(two_dimensional_model(tmp_path / "b.ckpt").siblings[0], plan)

    model, convert = two_dimensional_model(tmp_path / "a.ckpt"), onnx_export._converted
    with torch.no_grad():
        next(model.siblings[0].parameters()).mul_(-2)
    monkeypatch.setattr(onnx_export, "_converted", another)
    with pytest.raises(CheckpointError, match="not written: ONNX Runtime's logits differ"):
        export_to_onnx(model, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_what_can_not_be_exported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = two_dimensional_model(tmp_path / "a.ckpt")
    (tmp_path / "there.onnx").touch()
    for out, sibling, message in (
        ("a.pt", "1", r"\.onnx file"),
        ("there.onnx", "1", "exists"),
        ("a.onnx", "2", "one network"),
    ):
        with pytest.raises(CheckpointError, match=message):
            export_to_onnx(model, tmp_path / out, sibling)  # type: ignore[arg-type]
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"needs the package onnxruntime: pip install onnx onnxruntime onnxscript"):
        export_to_onnx(model, tmp_path / "a.onnx")


def test_an_onnx_file_holds_one_network(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = str(write_model(tmp_path / "a.ckpt"))
    assert main(["export", checkpoint, str(tmp_path / "a.onnx"), "--to", "onnx", "--sibling", "both"]) == 2
    assert "an ONNX file holds one network" in capsys.readouterr().err
