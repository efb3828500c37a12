"""``flarecps summary``: the numbers of a config, and of the checkpoint it trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from small_model import small_plan
from stores import CONFIGS, TinyStores, fit
from torch import Tensor

from flarecps.checkpoint import read_checkpoint
from flarecps.cli.main import main
from flarecps.cli.summary import _show
from flarecps.networks import PlainUNet


def test_summary_of_a_config_and_of_its_checkpoint(
    tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = fit("phantom_3d.yaml", tiny_stores, tmp_path / "run", epochs=1)
    capsys.readouterr()
    assert main(["summary", str(run / "checkpoints" / "last.ckpt")]) == 0
    of_checkpoint = capsys.readouterr().out
    assert "2 × PlainUNet (3D)" in of_checkpoint
    assert "after 1 epoch" in of_checkpoint

    settings = yaml.safe_load((CONFIGS / "phantom_3d.yaml").read_text())
    settings["data"] |= {"store": str(tiny_stores.three), "patch_voxels": [16, 16, 16]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["summary", "--config", str(tmp_path / "config.yaml")]) == 0
    of_config = capsys.readouterr().out
    for quantity in ("parameters, each", "MACs, one forward pass", "patch (slice", "memory of a step"):
        (ours,) = (line for line in of_checkpoint.splitlines() if quantity in line)
        assert ours in of_config


def test_the_residual_encoder_is_a_choice_of_the_config(
    tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained with a filter of pseudo-labels, read back from its checkpoint, and counted."""
    monkeypatch.setenv("COLUMNS", "200")
    network = {"class_path": "flarecps.networks.ResidualEncoderUNet", "init_args": {"blocks_per_stage": [1, 2, 1, 1]}}
    believed = {"class_path": "flarecps.losses.VoxelConfidence", "init_args": {"threshold": 0.6}}
    settings = ["--model.network", json.dumps(network), "--model.method.init_args.pseudo_labels", json.dumps(believed)]
    settings += ["--model.method.init_args.ramp", "{final: 0.5, length: 0, start: 0}", "--model.channels_last", "true"]
    run = fit("phantom_3d.yaml", tiny_stores, tmp_path / "run", *settings, epochs=1)
    capsys.readouterr()
    assert main(["summary", str(run / "checkpoints" / "last.ckpt")]) == 0
    shown = capsys.readouterr().out
    assert "2 × ResidualEncoderUNet (3D)" in shown
    model = read_checkpoint(run / "checkpoints" / "last.ckpt")
    sibling = model.siblings[0].network
    assert [len(stage) for stage in sibling.encoder] == [1, 2, 1, 1]
    assert f"{sum(parameter.numel() for parameter in sibling.parameters()):,}" in shown


@pytest.mark.parametrize(
    ("network", "parameters", "macs", "table_2", "feature_maps"),
    [
        ("PlainUNet", "30.79 M", "523.58 G", "585.43 G", 520_522_240),  # the paper's Table 2
        ("ResidualEncoderUNet", "101.95 M", "788.20 G", "850.69 G", 635_156_480),
    ],
)
def test_the_papers_numbers_come_from_its_config(
    network: str,
    parameters: str,
    macs: str,
    table_2: str,
    feature_maps: int,
    tiny_stores: TinyStores,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory of plain siblings is 18.1 GB, as counted (test_step_memory); others' goes with their feature maps."""
    monkeypatch.setenv("COLUMNS", "200")
    settings = yaml.safe_load((CONFIGS / "flare22_3d.yaml").read_text())
    settings["data"] |= {"store": str(tiny_stores.three), "fold": "all"}
    settings["model"]["network"] = {"class_path": f"flarecps.networks.{network}"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["summary", "--config", str(tmp_path / "config.yaml")]) == 0
    shown = capsys.readouterr().out
    for number in (parameters, macs, table_2):
        assert number in shown
    (line,) = (line for line in shown.splitlines() if "memory of a step" in line)
    found = float(line.replace("│", " ").replace("GB", "").split()[-1])
    assert found == pytest.approx(18.1 * feature_maps / 520_522_240, rel=0.02)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("flare22_3d.yaml", ["2 × PlainUNet (3D)", "30.79 M", "585.43 G", "2 labelled + 2 unlabelled", "18.2 GB"]),
        ("flare22_2d.yaml", ["2 × PlainUNet (2D)", "41.29 M", "65.55 G", "12 labelled + 12 unlabelled"]),
        ("flare22_3d_supervised.yaml", ["1 × PlainUNet (3D)", "30.79 M", "2 labelled + 0 unlabelled"]),
    ],
)
def test_the_papers_table_2_needs_no_store(
    name: str, numbers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As README says; what only a store can tell says that it needs one."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    assert main(["summary", "--config", str(CONFIGS / name)]) == 0
    rows = capsys.readouterr().out.splitlines()
    for number in numbers:
        assert any(number in row for row in rows), number
    (spacing,) = (row for row in rows if "target spacing" in row)
    assert "needs the case store (stores/flare22" in spacing
    (labels,) = (row for row in rows if row.startswith("│ labels"))
    assert "FLARE22's 14 classes are assumed" in labels


def test_the_number_of_classes_may_be_given_where_no_store_says_it(
    tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heads, one a scale, are all that follows it: 1×1×1 convolutions without bias, from 32 features up."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    config = CONFIGS / "flare22_3d.yaml"
    parameters = []
    for words in ([], ["--classes", "14"], ["--classes", "2"]):
        assert main(["summary", "--config", str(config), *words]) == 0
        rows = capsys.readouterr().out.splitlines()
        (row,) = (row for row in rows if "parameters, each" in row)
        parameters.append(int(row.split("│")[2].split()[0].replace(",", "")))
        (row,) = (row for row in rows if row.startswith("│ labels"))
        assert (f"{words[-1]} classes;" if words else "FLARE22's 14 classes") in row
    features = yaml.safe_load(config.read_text())["model"]["topology"]["features"]
    assert parameters[0] == parameters[1] == parameters[2] + 12 * sum(features[:-1])

    assert main(["summary", "--config", str(config), "--classes", "1"]) == 2
    assert "2 or more" in capsys.readouterr().err.splitlines()[-1]
    settings = yaml.safe_load(config.read_text())
    settings["data"] |= {"store": str(tiny_stores.three), "fold": "all"}
    (tmp_path / "with_store.yaml").write_text(yaml.safe_dump(settings))
    assert main(["summary", "--config", str(tmp_path / "with_store.yaml"), "--classes", "14"]) == 2
    assert "leave out --classes" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "last.ckpt").touch()
    assert main(["summary", "last.ckpt", "--classes", "14"]) == 2
    assert "leave out --classes" in capsys.readouterr().err.splitlines()[-1]


def test_without_store_a_config_must_say_patch_and_topology(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["summary", "--config", str(CONFIGS / "phantom13_3d.yaml")]) == 2
    assert "stores/phantom13 is not there" in capsys.readouterr().err.splitlines()[-1]


def test_summary_wants_one_of_both() -> None:
    assert main(["summary"]) == 2


class _LooksAtVoxels(PlainUNet):
    """A network of a user's whose forward pass asks what the voxels are."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return super().forward(image - image.mean().item())


class _AsksNumPy(PlainUNet):
    def forward(self, image: Tensor) -> list[Tensor]:
        return super().forward(image - float(image.numpy().mean()))


@pytest.mark.parametrize("kind", [_LooksAtVoxels, _AsksNumPy])
def test_a_network_that_needs_voxels_has_a_summary_all_the_same(
    kind: type[PlainUNet], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    plan = small_plan()
    network = kind(1, 3, plan.topology.features, plan.topology.strides, plan.topology.kernels)
    _show(plan, [network], "mine")
    said = capsys.readouterr().out
    assert f"{sum(weight.numel() for weight in network.parameters()):,}" in said
    assert said.count("not known: the network needs real voxels") == 3
