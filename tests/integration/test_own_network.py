"""A network of somebody's own: trained by its class path, kept in checkpoints, and run only by those who trust it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_model import small_plan, write_model, write_scan
from stores import REPOSITORY, TinyStores, fit, fit_words
from torch import nn

from flarecps.checkpoint import ENTRY, read_checkpoint
from flarecps.cli.main import main
from flarecps.errors import CheckpointError, ConfigError
from flarecps.inference.segmenter import Segmenter
from flarecps.networks import PlainUNet, check_contract, network_name, rebuilt
from flarecps.training.checkpoint_files import load_start_weights
from flarecps.volumes.io import read_volume

MODULE = "lab_of_somebody"
SOURCE = """
from torch import nn

class TwoScales(nn.Module):
    '''Logits at full size and, in training, at half of it; nothing in it is called as in this program's networks.'''

    def __init__(self, in_channels, classes, features, strides, kernels, width=3, dropout=0.0):
        super().__init__()
        self.arguments = {"in_channels": in_channels, "classes": classes, "features": list(features)}
        self.arguments |= {"strides": [list(row) for row in strides], "kernels": [list(row) for row in kernels]}
        self.arguments |= {"width": width, "dropout": dropout}
        self.body = nn.Sequential(nn.Conv3d(in_channels, width, 3, padding=1), nn.ReLU(), nn.Dropout3d(dropout))
        self.fine = nn.Conv3d(width, classes, 1)
        self.coarse = nn.Conv3d(width, classes, 2, stride=2)

    def forward(self, x):
        x = self.body(x)
        return [self.fine(x), self.coarse(x)] if self.training else [self.fine(x)]

class Forgetful(TwoScales):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        del self.arguments
"""
OWN = f"{MODULE}.TwoScales"


def network(name: str = OWN, **arguments: Any) -> list[str]:
    return ["--model.network", json.dumps({"class_path": name, "init_args": arguments})]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python imports from, with the module of a network."""
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return folder


def test_it_is_trained_refused_and_trusted_at_the_command_line(
    lab: Path,
    tiny_stores: TinyStores,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = fit("phantom_3d.yaml", tiny_stores, tmp_path / "run", *network(width=5), epochs=1)
    last = run / "checkpoints" / "last.ckpt"
    scan = next((tiny_stores.dataset / "imagesTs").iterdir())
    segment = ["segment", str(last), str(scan), str(tmp_path / "labels.nii.gz"), "--device", "cpu"]

    del sys.modules[MODULE]
    capsys.readouterr()
    onnx = str(tmp_path / "network.onnx")
    for words in (segment, ["summary", str(last)], ["export", str(last), onnx, "--to", "onnx"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert f"--trust {OWN}" in said
        assert str(last) in said
        assert MODULE not in sys.modules, "its code must not run unasked"
    assert not (tmp_path / "labels.nii.gz").exists()

    assert main([*segment, "--trust", OWN]) == 0
    written = read_volume(tmp_path / "labels.nii.gz")
    labels = Segmenter.load(last, trusted=[OWN], device="cpu")(read_volume(scan))
    assert np.array_equal(written.array[0], labels)
    assert main(["summary", str(last), "--trust", OWN]) == 0
    assert "2 × TwoScales" in capsys.readouterr().out
    assert main(["export", str(last), onnx, "--to", "onnx", "--trust", OWN]) == 0
    assert main(["export", str(last), str(tmp_path / "folder"), "--to", "nnunet", "--trust", OWN]) == 2
    assert "nnU-Net v2 has no network like" in capsys.readouterr().err

    # the class itself is as good as its path, and what was trained goes on
    module = sys.modules[MODULE]
    assert type(read_checkpoint(last, [module.TwoScales]).siblings[1].network) is module.TwoScales
    fit("phantom_3d.yaml", tiny_stores, run, *network(width=5), "--ckpt_path", "last")
    fit("phantom_3d.yaml", tiny_stores, tmp_path / "next", *network(width=5), "--init", last, epochs=1)
    assert main(fit_words("phantom_3d.yaml", tiny_stores, run, *network(width=4), "--ckpt_path", "last", epochs=3)) == 2


def test_the_example_of_the_docs_is_kept_and_read_back(lab: Path, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    (source,) = (block.partition("```")[0] for block in page.split("```python\n")[1:] if "class MyUNet" in block)
    (lab / "my_lab_nets.py").write_text(source)
    kind, plan = importlib.import_module("my_lab_nets").MyUNet, small_plan()
    shape = plan.topology.features, plan.topology.strides, plan.topology.kernels
    check_contract(kind(1, 3, *shape, width=4))
    path = write_model(tmp_path / "own.ckpt", plan=plan, build=lambda c, k: kind(c, k, *shape, width=4))
    logits = read_checkpoint(path, ["my_lab_nets.MyUNet"]).siblings[0](torch.zeros(1, 1, 16, 16, 16))
    assert logits.shape == (1, 3, 16, 16, 16)


def test_workers_of_their_own_processes_are_told_whom_to_trust(lab: Path, tmp_path: Path) -> None:
    """As a user runs it: another Python, the module found by PYTHONPATH, two processes."""
    module = __import__(MODULE)
    plan = small_plan()
    shape = plan.topology.features, plan.topology.strides, plan.topology.kernels
    checkpoint = write_model(tmp_path / "own.ckpt", plan=plan, build=lambda c, k: module.TwoScales(c, k, *shape))
    for seed in (0, 1):
        write_scan(tmp_path / "scans" / f"{seed}.nii.gz", seed)
    words = ["segment", str(checkpoint), str(tmp_path / "scans"), str(tmp_path / "out"), "--workers", "2"]
    done = subprocess.run([sys.executable, "-m", "flarecps", *words, "--device", "cpu", "--trust", OWN], check=False)
    assert done.returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["0.nii.gz", "1.nii.gz"]


# -- files that ask for more than they may


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "torch.nn.Linear",
        "antigravity.fly",  # a module that opens a browser when it is imported
        "flarecps.networks.blocks.ConvolutionBlock",
        "../evil.Net",
        "x" * 10_000,
        f"{'x.' * 10_000}Net",
        "a.b\nc.d",
        "",
        None,
        7,
        ["os", "system"],
    ],
)
def test_a_checkpoint_gets_no_class_that_it_asks_for(name: Any, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.ckpt")
    content = torch.load(path, weights_only=True)
    content[ENTRY]["network"] = {"name": name, "arguments": {"in_channels": 1, "classes": 3, "command": "exit"}}
    torch.save(content, path)
    before = set(sys.modules)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path, trusted=[PlainUNet])
    assert set(sys.modules) == before
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000 + len(str(path))


@pytest.mark.parametrize(
    ("trusted", "complaint"),
    [
        ("os.system", "expected the path of a torch.nn.Module class"),
        ("torch.relu", "expected the path of a torch.nn.Module class"),
        ("no_such_lab.nets.Net", "can't be imported"),
        ("torch.nn.NoSuchLayer", "can't be imported"),
        ("Net", "expected the path"),
    ],
)
def test_what_is_trusted_must_be_a_network(trusted: str, complaint: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.ckpt")
    content = torch.load(path, weights_only=True)
    content[ENTRY]["network"]["name"] = "somebody.Net"
    torch.save(content, path)
    with pytest.raises(ConfigError, match=complaint):
        read_checkpoint(path, trusted=[trusted])


# -- networks that could not be read back


def test_a_network_without_arguments_is_refused_before_anything_is_written(
    lab: Path, tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(fit_words("phantom_3d.yaml", tiny_stores, run, *network(f"{MODULE}.Forgetful"))) == 2
    said = capsys.readouterr().err
    assert f"{MODULE}.Forgetful has no dict 'arguments'" in said
    assert "self.arguments = {" in said
    assert not run.exists()


class Own(nn.Module):
    """One convolution; ``arguments`` are what the test says."""

    def __init__(self, in_channels: int, classes: int, width: int = 2) -> None:
        super().__init__()
        self.layer = nn.Conv3d(in_channels, width, 1)
        self.head = nn.Conv3d(width, classes, 1)
        self.arguments: Any = {"in_channels": in_channels, "classes": classes, "width": width}


class Drawing(nn.Module):
    """Draws and reads numbers in its constructor, as transformers do for their drop rates."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
        self.layer = nn.Conv3d(in_channels, classes, 1, bias=rates[2] > 0)
        self.arguments = {"in_channels": in_channels, "classes": classes}


def told(network: Any, without: str = "", **arguments: Any) -> Any:
    """The network with other ``arguments`` than it was built by."""
    network.arguments = {name: value for name, value in network.arguments.items() if name != without} | arguments
    return network


def local() -> nn.Module:
    class Local(Own):
        pass

    return Local(1, 2)


@pytest.mark.parametrize(
    ("built", "complaint"),
    [
        (local, "defined in a script, a notebook or a function"),
        (lambda: nn.Conv3d(1, 2, 1), "torch.nn.modules.conv.Conv3d has no dict 'arguments'"),
        (lambda: told(Own(1, 2), "classes"), "'arguments' lack classes"),
        (lambda: told(Own(1, 2), size=np.float64(1)), "hold size"),
        (lambda: told(Own(1, 2), norm=nn.InstanceNorm3d), "hold norm = <class"),
        (lambda: told(Own(1, 2, 5), "width"), r"other weights: head.weight is \(2, 2, 1, 1, 1\) instead of"),
        (lambda: told(Own(1, 2), in_channels=3), "other weights: layer.weight"),
        (lambda: told(Own(1, 2), classes="many"), "can't be built again"),
    ],
)
def test_a_network_that_could_not_be_read_back_is_refused(built: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check_contract(built())


@pytest.mark.parametrize(
    "built", [Own(1, 2), Drawing(1, 2), PlainUNet(1, 2, [2, 3], [[1] * 3, [2] * 3], [[3] * 3] * 2)]
)
def test_one_that_can_be_read_back_passes_and_nothing_is_drawn(built: Any) -> None:
    before = torch.get_rng_state()
    check_contract(built)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.is_meta for parameter in rebuilt(built).parameters())


def test_this_programs_networks_keep_their_short_names() -> None:
    assert network_name(PlainUNet(1, 2, [2, 3], [[1] * 3, [2] * 3], [[3] * 3] * 2)) == "PlainUNet"
    impostor = type("PlainUNet", (Own,), {"__module__": "somebody.nets"})
    assert network_name(impostor(1, 2)) == "somebody.nets.PlainUNet"


def test_start_weights_leave_out_what_follows_the_classes_whatever_it_is_called(lab: Path, tmp_path: Path) -> None:
    """The labels differ: ``fine`` and ``coarse`` stay random, the rest is taken over."""
    module = __import__(MODULE)
    theirs, ours = small_plan(), small_plan(labels={"background": 0, "kidney": 1})
    shape = theirs.topology.features, theirs.topology.strides, theirs.topology.kernels
    path = write_model(tmp_path / "own.ckpt", 1, theirs, build=lambda c, k: module.TwoScales(c, k, *shape))
    siblings = nn.ModuleList([module.TwoScales(1, 2, *shape)])
    before = {name: value.clone() for name, value in siblings[0].state_dict().items()}
    given = read_checkpoint(path, [OWN]).siblings[0].network.state_dict()
    assert "heads start from random weights" in load_start_weights(path, ours, siblings)
    for name, value in siblings[0].state_dict().items():
        assert torch.equal(value, given[name] if name.startswith("body") else before[name]), name
