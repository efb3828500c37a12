"""Checkpoints of which a bit has flipped, and those whose weights are no numbers: no command uses them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_model import small_plan, write_model, write_scan

from flarecps.checkpoint import load_plain, read_checkpoint
from flarecps.cli.main import main
from flarecps.errors import CheckpointError, FlarecpsError
from flarecps.inference.segmenter import Segmenter
from flarecps.torch_files import check_finite, check_whole
from flarecps.training.checkpoint_files import load_start_weights
from flarecps.volumes.io import read_volume

IS_FOLDER = 0x10  # a bit of an entry's attributes that lets PyTorch read nothing, without a word
ATTRIBUTES = 38  # where they are in the directory's entry


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def outcome_of_a_flip(path: Path, whole: bytes, position: int, bit: int, right: Any) -> str:
    damaged = bytearray(whole)
    damaged[position] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        found = load_plain(path)
    except CheckpointError:
        return "refused"
    return "harmless" if equal(found, right) else "wrong"


def test_a_flipped_bit_is_refused_or_harmless(tmp_path: Path) -> None:
    """In the data every bit is found; in headers and directory, which have no checksum, those that matter."""
    path = write_model(tmp_path / "model.ckpt")
    whole, right = path.read_bytes(), load_plain(path)
    inside = np.zeros(len(whole), bool)
    with zipfile.ZipFile(path) as parts:
        for part in parts.infolist():
            at = part.header_offset
            begin = at + 30 + int.from_bytes(whole[at + 26 : at + 28], "little")
            begin += int.from_bytes(whole[at + 28 : at + 30], "little")
            inside[begin : begin + part.file_size] = True
    generator = np.random.default_rng(4)
    data = {
        outcome_of_a_flip(path, whole, int(at), int(generator.integers(8)), right)
        for at in generator.choice(np.flatnonzero(inside), 60)
    }
    assert data == {"refused"}
    headers = [
        outcome_of_a_flip(path, whole, int(at), int(generator.integers(8)), right)
        for at in generator.choice(np.flatnonzero(~inside), 250)
    ]
    assert set(headers) == {"refused", "harmless"}
    entry = whole.rfind(b"PK\x01\x02")
    assert outcome_of_a_flip(path, whole, entry + ATTRIBUTES, IS_FOLDER.bit_length() - 1, right) == "refused"


@pytest.mark.parametrize("size", [0, 3, 4, 100, -1, -30])
def test_a_file_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    path = write_model(tmp_path / "model.ckpt")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model\.ckpt: "):
        load_plain(path)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("bomb/data.pkl", bytes(1 << 24))
    with pytest.raises(CheckpointError, match=r"bomb/data\.pkl is not stored as PyTorch does it"):
        check_whole(path)


def spoilt(path: Path, spoil: Callable[[dict[str, Any]], None]) -> Path:
    content = torch.load(path, weights_only=True)
    spoil(content)
    torch.save(content, path)
    return path


def with_one_value(number: float) -> Callable[[dict[str, Any]], None]:
    def spoil(content: dict[str, Any]) -> None:
        list(content["state_dict"].values())[-1].view(-1)[0] = number

    return spoil


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_everywhere(
    tmp_path: Path, number: float, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spoilt(write_model(tmp_path / "model.ckpt"), with_one_value(number))
    scan = write_scan(tmp_path / "scan.nii.gz")
    for words in (
        ["segment", path, scan, tmp_path / "labels.nii.gz"],
        ["export", path, tmp_path / "exported", "--to", "nnunet"],
        ["summary", path],
    ):
        assert main([str(word) for word in words]) == 2, words[0]
        message = capsys.readouterr().err
        assert "model.ckpt: its weights are not finite numbers (the first is siblings.1." in message, words[0]
    siblings = torch.nn.ModuleList(one.network for one in read_checkpoint(write_model(tmp_path / "good.ckpt")).siblings)
    with pytest.raises(CheckpointError, match="not finite numbers"):
        load_start_weights(path, small_plan(), siblings)
    assert not (tmp_path / "labels.nii.gz").exists()
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.to_sparse(),
        lambda weight: weight.to("meta"),
        lambda weight: weight.to(torch.complex64),  # its imaginary part was dropped with a warning
        lambda weight: weight.to(torch.float8_e4m3fn),
        lambda weight: torch.zeros(1).expand(10**10),  # 40 GB, in a file of a few kB
    ],
    ids=["sparse", "meta", "complex", "float8", "expanded"],
)
def test_weights_that_no_training_writes_are_refused(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    def spoil(content: dict[str, Any]) -> None:
        held = content["state_dict"]
        name = next(iter(held))
        held[name] = change(held[name])

    path = spoilt(write_model(tmp_path / "model.ckpt"), spoil)
    with pytest.raises(CheckpointError, match=r"its weights are not plain numbers \(siblings\.0\..* is torch\."):
        read_checkpoint(path)


def test_weights_without_names_are_refused(tmp_path: Path) -> None:
    path = spoilt(write_model(tmp_path / "model.ckpt"), lambda content: content["state_dict"].update({None: 1}))
    with pytest.raises(CheckpointError, match="its weights have no names"):
        read_checkpoint(path)


def test_an_optimisers_states_are_looked_at(tmp_path: Path) -> None:
    """Momentum that is no number would reach the weights in the first step of a resumed training."""

    def spoil(content: dict[str, Any]) -> None:
        momentum = torch.tensor([0.0, float("nan")])
        content["optimizer_states"] = [{"state": {0: {"momentum_buffer": momentum}}, "param_groups": []}]

    path = spoilt(write_model(tmp_path / "model.ckpt"), spoil)
    with pytest.raises(CheckpointError, match=r"optimisers' states are not finite .*optimizer_states\.0\.state\.0"):
        load_plain(path)


def test_what_is_no_tensor_is_passed_over() -> None:
    nested: list[Any] = []
    nested.append(nested)
    check_finite("x", {"a": torch.ones(2), "b": None, "c": nested, "d": torch.tensor([1, 2])})


@pytest.mark.parametrize("call", ["labels", "probabilities"])
def test_outputs_that_are_no_numbers_are_an_error_of_that_scan(tmp_path: Path, call: str) -> None:
    """Finite weights whose products overflow."""

    def spoil(content: dict[str, Any]) -> None:
        for value in content["state_dict"].values():
            value.mul_(1e30)

    path = spoilt(write_model(tmp_path / "model.ckpt"), spoil)
    segmenter = Segmenter.load(path, device="cpu")
    volume = read_volume(write_scan(tmp_path / "scan.nii.gz"))
    with pytest.raises(FlarecpsError, match=r"scan\.nii\.gz: the network's outputs are not finite numbers"):
        segmenter(volume) if call == "labels" else segmenter.probabilities(volume)
