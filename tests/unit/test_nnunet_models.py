"""Model folders of nnU-Net v2, written and read without nnU-Net (tests/integration/test_interop.py has it)."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_model import small_plan, write_model

from flarecps.checkpoint import TrainedModel, read_checkpoint
from flarecps.cli.main import main
from flarecps.errors import CheckpointError
from flarecps.interop.nnunet_architecture import architecture_to_nnunet, network_from_nnunet
from flarecps.interop.nnunet_export import export_to_nnunet
from flarecps.interop.nnunet_import import import_from_nnunet, read_nnunet_model
from flarecps.interop.nnunet_plans import plan_to_nnunet, resolved_configuration
from flarecps.interop.nnunet_weights import load_nnunet_state_dict, nnunet_state_dict
from flarecps.networks import PlainUNet, ResidualEncoderUNet
from flarecps.networks.unet import UNet
from flarecps.planning.plan import Conventions, Intensity, Plan, Topology

SHAPE = {
    "features": [4, 8, 8],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "kernels": [[1, 3, 3], [3, 3, 3], [3] * 3],
}
FINAL = "fold_0/checkpoint_final.pth"


def drawn(network: UNet) -> UNet:
    """The network with numbers in every parameter: none may be lost unnoticed."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model folder of one fold."""
    model = read_checkpoint(write_model(tmp_path / "ours.ckpt"))
    export_to_nnunet(model, tmp_path / "model")
    return tmp_path / "model"


def changed(path: Path, change: Callable[[dict], Any]) -> None:
    """Rewrite a JSON or .pth file."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)


@pytest.mark.parametrize("kind", [PlainUNet, ResidualEncoderUNet])
@pytest.mark.parametrize("more", [{}, {"deep_supervision": False}, {"output_bias": True}])
def test_weights_return_as_they_were(kind: Any, more: dict[str, Any]) -> None:
    if "output_bias" in more and kind is ResidualEncoderUNet:
        pytest.skip("residual networks always have these biases")
    network = drawn(kind(2, 3, **SHAPE, **more)).eval()
    state = nnunet_state_dict(network)
    configuration = {"architecture": architecture_to_nnunet(network), "patch_size": [8, 16, 16]}
    again = network_from_nnunet(configuration, 2, 3, "model").eval()
    load_nnunet_state_dict(again, state, "model")
    image = torch.randn(1, 2, 8, 16, 16)
    assert torch.equal(network(image)[0], again(image)[0])
    for name, value in state.items():
        if name.startswith("encoder."):
            assert torch.equal(state[f"decoder.{name}"], value)


def test_biases_that_only_nnunet_has_are_zero() -> None:
    state = nnunet_state_dict(drawn(PlainUNet(1, 3, **SHAPE)))
    for part in ("transpconvs", "seg_layers"):
        for level in (0, 1):
            assert not state[f"decoder.{part}.{level}.bias"].any()
            assert state[f"decoder.{part}.{level}.weight"].any()


@pytest.mark.parametrize(
    "plan",
    [
        small_plan(),
        small_plan(axis_order=(2, 0, 1), spacing_mm=(4.0, 1.0, 1.5), median_shape_voxels=(10, 20, 30)),
        small_plan(intensity=Intensity("zscore"), channels=("T1", "T2")),
        replace(small_plan(), conventions=Conventions("as_stored", "before_resampling", "nonzero")),
        small_plan(dimensions=2, patch_voxels=(16, 16), topology=Topology((4, 8), ((1, 1), (2, 2)), ((3, 3),) * 2)),
    ],
    ids=["3d", "turned", "zscore", "as_stored", "2d"],
)
def test_a_plan_returns_with_nnunets_conventions(plan: Plan, tmp_path: Path) -> None:
    """What decides labels is the same, whatever way round; the rest is what nnU-Net has no word for."""
    topology = plan.topology
    network = PlainUNet(len(plan.channels), 3, topology.features, topology.strides, topology.kernels)
    model = TrainedModel(plan, (torch.nn.Module(),), 7, tmp_path / "x.ckpt")  # type: ignore[arg-type]  # only a shell
    model.siblings[0].network = network
    export_to_nnunet(model, tmp_path / "model")
    imported = read_nnunet_model(tmp_path / "model")
    back = imported.plan
    for name in ("dimensions", "labels", "channels", "spacing_mm", "axis_order", "patch_voxels", "topology"):
        assert getattr(back, name) == getattr(plan, name), name
    assert replace(back.intensity, source="global") == plan.intensity
    assert back.conventions == Conventions(plan.conventions.orientation, "before_resampling", "nonzero")
    assert (imported.epoch, imported.folds, imported.mirror_axes) == (7, ("0",), ())


@pytest.mark.filterwarnings("error::UserWarning:torch")  # nobody's news
def test_both_siblings_become_folds_and_folds_become_siblings(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = write_model(tmp_path / "ours.ckpt", siblings=2)
    words = ["--to", "nnunet", "--sibling", "both", "--mirror-axes", "[0, 2]"]
    assert main(["export", str(checkpoint), str(tmp_path / "model"), *words]) == 0
    assert "-f 0 1" in capsys.readouterr().out
    out, plan = tmp_path / "again.ckpt", tmp_path / "plans" / "plan.json"
    words = ["--from", "nnunet", "--folds", "0", "1", "--plan", str(plan)]
    assert main(["import", str(tmp_path / "model"), str(out), *words]) == 0
    assert "--mirror-axes '[0, 2]'" in capsys.readouterr().out
    assert json.loads(plan.read_text())["conventions"]["intensity"] == "before_resampling"
    before, after = read_checkpoint(checkpoint), read_checkpoint(out)
    image = torch.randn(1, 1, 16, 16, 16)
    for one, other in zip(before.siblings, after.siblings, strict=True):
        assert torch.equal(one(image), other(image))
    export_to_nnunet(before, tmp_path / "second", "2")
    second = read_nnunet_model(tmp_path / "second")
    assert torch.equal(second.networks[0](image)[0], before.siblings[1](image))


def test_exports_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one = write_model(tmp_path / "one.ckpt", siblings=1)
    ignore = small_plan(labels={"background": 0, "liver": 1, "ignore": 2})
    (tmp_path / "there").mkdir()
    for checkpoint, out, words, message in (
        (one, "a", ["--sibling", "2"], "holds one network"),
        (one, "b", ["--mirror-axes", "[3]"], "each of the patch's axes at most once"),
        (one, "there", [], "exists already"),
        (write_model(tmp_path / "ignore.ckpt", plan=ignore), "c", [], "a structure is called 'ignore'"),
    ):
        assert main(["export", str(checkpoint), str(tmp_path / out), "--to", "nnunet", *words]) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ignore.ckpt", "one.ckpt", "there"]


def test_the_exported_file_holds_plain_types_and_every_name(folder: Path) -> None:
    content = torch.load(folder / FINAL, weights_only=True)
    assert content["trainer_name"] == "nnUNetTrainer"
    assert content["init_args"]["configuration"] == "3d_fullres"
    assert content["inference_allowed_mirroring_axes"] is None
    assert "decoder.encoder.stages.0.0.convs.0.all_modules.0.weight" in content["network_weights"]


class Intruder:
    """Runs a command when it is unpickled by a loader that trusts its file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("the checkpoint's code ran",)


def numbers() -> dict[str, Any]:
    """What nnU-Net's logger leaves in its checkpoints."""
    kinds = (np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_)
    return {"losses": [kind(1) for kind in kinds], "device": torch.device("cpu")}


def test_numpy_scalars_are_let_in(folder: Path) -> None:
    content = torch.load(folder / FINAL, weights_only=True) | {"logging": numbers(), "_best_ema": np.float32(0.5)}
    torch.save(content, folder / FINAL)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(folder / FINAL, weights_only=True)
    assert read_nnunet_model(folder).networks


def test_numpys_older_name_is_let_in_too(folder: Path) -> None:
    """Files written with NumPy 1 say numpy.core for what is numpy._core now."""
    torch.save(
        torch.load(folder / FINAL, weights_only=True) | {"_best_ema": np.float64(0.5)},
        folder / FINAL,
        _use_new_zipfile_serialization=False,
    )
    raw = (folder / FINAL).read_bytes()
    assert raw.count(b"cnumpy._core.multiarray\n") == 1
    (folder / FINAL).write_bytes(raw.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert read_nnunet_model(folder).networks


def test_flipped_bits_and_weights_that_are_no_numbers_are_refused(folder: Path) -> None:
    whole = (folder / FINAL).read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    (folder / FINAL).write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"checkpoint_final\.pth: damaged"):
        read_nnunet_model(folder)
    (folder / FINAL).write_bytes(whole)
    changed(folder / FINAL, lambda content: next(iter(content["network_weights"].values())).view(-1).fill_(np.nan))
    with pytest.raises(CheckpointError, match=r"checkpoint_final\.pth: its weights are not finite numbers"):
        read_nnunet_model(folder)


@pytest.mark.parametrize("where", ["logging", "init_args", "network_weights"])
def test_objects_are_refused_and_never_run(where: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    content = torch.load(folder / FINAL, weights_only=True)
    content[where] = {**(content[where] or {}), "intruder": Intruder()}
    torch.save(content, folder / FINAL)
    assert main(["import", str(folder), str(folder.parent / "out.ckpt"), "--from", "nnunet"]) == 2
    found = capsys.readouterr()
    assert "can't be loaded safely" in found.err
    assert "print" in found.err
    assert "code ran" not in found.out
    assert not (folder.parent / "out.ckpt").exists()


def test_arrays_are_refused(folder: Path) -> None:
    """An array is no scalar: NumPy's reconstruction of arrays is not on the list."""
    torch.save(torch.load(folder / FINAL, weights_only=True) | {"logging": np.arange(3)}, folder / FINAL)
    with pytest.raises(CheckpointError, match=r"numpy\._core\.multiarray\._reconstruct"):
        read_nnunet_model(folder)


def _kind(**entries: Any) -> Callable[[dict], Any]:
    return lambda plans: plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(entries)


def _configured(**entries: Any) -> Callable[[dict], Any]:
    return lambda plans: plans["configurations"]["3d_fullres"].update(entries)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("plans.json", _kind(features_per_stage=[4, 16]), "has the shape"),
        ("plans.json", _kind(n_conv_per_stage=[2, 3]), "differs between stages"),
        ("plans.json", _kind(n_stages=3), "not complete or contradicts itself"),
        ("plans.json", _kind(norm_op="torch.nn.BatchNorm3d"), "norm_op torch.nn.BatchNorm3d"),
        ("plans.json", _kind(dropout_op="torch.nn.Dropout3d"), "dropout_op"),
        ("plans.json", _kind(nonlin="torch.nn.ReLU"), "nonlin torch.nn.ReLU"),
        ("plans.json", _kind(nonlin_first=True), "nonlin_first"),
        ("plans.json", _kind(conv_bias=False), "conv_bias false"),
        ("plans.json", _kind(kernel_sizes=[[3] * 3, [4] * 3]), "has the shape|odd sizes"),
        ("plans.json", lambda plans: plans["configurations"].clear(), "no configuration '3d_fullres'"),
        ("plans.json", _configured(architecture=None), "no 'architecture'"),
        ("plans.json", _configured(inherits_from="3d_fullres"), "no configuration"),
        ("plans.json", _configured(previous_stage="3d_lowres"), "second stage of a cascade"),
        ("plans.json", _configured(preprocessor_name="MyPreprocessor"), "preprocessor_name is 'MyPreprocessor'"),
        ("plans.json", _configured(resampling_fn_data="resample_torch"), "resampling_fn_data is 'resample_torch'"),
        ("plans.json", _configured(normalization_schemes=["NoNormalization"]), "scaled by NoNormalization"),
        ("plans.json", _configured(use_mask_for_norm=[True]), "use_mask_for_norm"),
        ("plans.json", _configured(spacing=[1.0, -1.0, 1.0]), "expected a list of 3 numbers, each above 0"),
        ("plans.json", lambda plans: plans.update(image_reader_writer="NaturalImage2DIO"), "NaturalImage2DIO"),
        ("plans.json", lambda plans: plans.pop("transpose_forward"), "transpose_forward"),
        ("dataset.json", lambda data: data.update(channel_names={"0": "CT", "1": "PET"}), "same for all channels"),
        ("dataset.json", lambda data: data["labels"].update(kidney=3), "seg_layers.0.weight has the shape"),
        ("dataset.json", lambda data: data["labels"].update(both=[1, 2]), "'both' is a region"),
        ("dataset.json", lambda data: data["labels"].update(spleen=5), "without gaps"),
        ("dataset.json", lambda data: data.pop("labels"), "names no 'labels'"),
        (FINAL, lambda content: content.pop("network_weights"), "without 'network_weights'"),
        (FINAL, lambda content: content["network_weights"].update(more=torch.ones(1)), "also holds more"),
        (FINAL, lambda content: content["network_weights"].pop("decoder.transpconvs.0.bias"), "lacks upsamplings.0"),
        (FINAL, lambda content: content["network_weights"].clear(), "lacks "),
        (FINAL, lambda content: content["init_args"].update(configuration="2d"), "no configuration '2d'"),
    ],
)  # fmt: skip
def test_malformed_models_are_refused_with_the_reason(
    file: str, change: Callable[[dict], Any], message: str, folder: Path
) -> None:
    changed(folder / file, change)
    with pytest.raises(CheckpointError, match=message):
        import_from_nnunet(folder, folder.parent / "out.ckpt")
    assert not (folder.parent / "out.ckpt").exists()


def test_other_networks_are_named(folder: Path) -> None:
    def other(plans: dict) -> None:
        plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "somewhere.MedNeXt"

    changed(folder / "plans.json", other)
    with pytest.raises(CheckpointError, match="is a 'MedNeXt'; this program has PlainConvUNet and ResidualEncoderUNet"):
        read_nnunet_model(folder)


def test_missing_and_foreign_files_are_named(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ckpt"
    for give, message in (
        ((tmp_path / "nowhere", out), "no such folder"),
        ((folder, tmp_path / "out.pth"), "name of a .ckpt file"),
        ((folder, tmp_path / "ours.ckpt"), "exists already"),
        ((folder, out, ["4"]), "has no fold 4; it has 0"),
        ((folder, out, ["0", "1", "2"]), "expected one or two"),
        ((folder, out, None, "checkpoint_best.pth"), "holds no fold_N/checkpoint_best.pth"),
        ((folder, out, None, "../x.pth"), "expected the name of a file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            import_from_nnunet(*give)
    (folder / FINAL).write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="damaged, or not a PyTorch file"):
        import_from_nnunet(folder, out)
    (folder / "plans.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"plans\.json: not valid JSON"):
        import_from_nnunet(folder, out)
    (folder / "dataset.json").unlink()
    (folder / "plans.json").unlink()
    with pytest.raises(CheckpointError, match=r"plans\.json: no such file"):
        import_from_nnunet(folder, out)


def test_a_label_to_be_ignored_has_no_channel(folder: Path) -> None:
    changed(folder / "dataset.json", lambda data: data["labels"].update(ignore=3))
    assert read_nnunet_model(folder).plan.labels == {"background": 0, "liver": 1, "spleen": 2}


def test_configurations_inherit() -> None:
    plans = {"configurations": {"base": {"a": 1, "b": 1}, "more": {"inherits_from": "base", "b": 2}}}
    assert resolved_configuration(plans, "more", "x")["a"] == 1
    assert resolved_configuration(plans, "more", "x")["b"] == 2


def test_plans_of_the_first_releases_are_read() -> None:
    """Before nnU-Net 2.4 a configuration said the network's shape in entries of its own."""
    network = PlainUNet(1, 3, **SHAPE)
    old = {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "conv_kernel_sizes": SHAPE["kernels"],
        "pool_op_kernel_sizes": SHAPE["strides"],
        "patch_size": [8, 16, 16],
    }
    assert network_from_nnunet(old, 1, 3, "x").arguments == network.arguments | {"output_bias": True}


def test_left_and_right_are_known_only_where_voxels_are_reoriented(folder: Path) -> None:
    labels = {"background": 0, "right kidney": 1, "left kidney": 2}
    changed(folder / "dataset.json", lambda data: data.update(labels=labels))
    assert read_nnunet_model(folder).plan.left_right_pairs == ((1, 2),)
    changed(folder / "plans.json", lambda plans: plans.update(image_reader_writer="SimpleITKIO"))
    assert read_nnunet_model(folder).plan.left_right_pairs == ()


def test_the_plans_say_what_the_plan_says() -> None:
    plan = small_plan(axis_order=(1, 2, 0), spacing_mm=(4.0, 1.0, 1.5))
    plans = plan_to_nnunet(plan, PlainUNet(1, 3, [4, 8], [[1] * 3, [2] * 3], [[3] * 3] * 2))
    forward, backward = plans["transpose_forward"], plans["transpose_backward"]
    assert [forward[axis] for axis in backward] == [0, 1, 2]
    assert plans["foreground_intensity_properties_per_channel"]["0"] == {
        "mean": 0, "std": 50, "percentile_00_5": -200, "percentile_99_5": 200,
    }  # fmt: skip
    assert plans["image_reader_writer"] == "SimpleITKIOWithReorient"


def test_another_channel_count_is_named(folder: Path) -> None:
    """Two channels in dataset.json and plans, one in the network."""
    changed(folder / "dataset.json", lambda data: data.update(channel_names={"0": "CT", "1": "PET"}))
    changed(folder / "plans.json", _configured(normalization_schemes=["ZScoreNormalization"] * 2))
    with pytest.raises(CheckpointError, match=r"has the shape \(4, 1, 3, 3, 3\); .* should be \(4, 2, 3, 3, 3\)"):
        read_nnunet_model(folder)
