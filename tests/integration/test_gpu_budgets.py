"""Limits of GPU memory, on a pretended card that is as strict as a real one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from pretended_card import PretendedCard
from test_segmenter import plan_of, scan, threshold, turned, write_checkpoint
from torch import nn

from flarecps.cli.main import main
from flarecps.errors import ConfigError
from flarecps.inference.resources.budget import Budget, format_bytes
from flarecps.inference.resources.devices import torch_device
from flarecps.inference.resources.planner import MARGIN
from flarecps.inference.resources.usage import CUDA_CONTEXT_BYTES, limited_gpu_memory
from flarecps.inference.segmenter import Segmenter
from flarecps.volumes.io import Volume

GB, MB = 2**30, 2**20
WINDOW_BYTES = 100 * MB  # that the feature maps of one window take


class OnTheCard(nn.Module):
    """Thresholds; on the card it takes memory for every window, and more than there is fails as it does there."""

    def __init__(self, card: PretendedCard, first_error: Exception | None = None) -> None:
        super().__init__()
        self.card, self.error = card, first_error
        self.where = torch.device("cpu")
        self.batches: list[tuple[str, int]] = []

    def to(self, device: torch.device) -> OnTheCard:  # type: ignore[override]  # all that is asked of it here
        self.where = torch.device(device)
        return self

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        if self.error is not None and self.batches:
            raise self.error
        if self.where.type == "cuda":
            self.card.take(len(tiles) * WINDOW_BYTES)
        self.batches.append((self.where.type, len(tiles)))
        return threshold(tiles)


class Deep(OnTheCard):
    """Its feature maps come one after the other, so that a window that does not fit fills the card before it fails."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        for megabytes in range(1, WINDOW_BYTES // MB if self.where.type == "cuda" else 0):
            self.card.take(megabytes * MB)
        return super().forward(tiles)


class Convolving(OnTheCard):
    """As cuDNN: tries its algorithms, and where none gets its memory gives an error of its own."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        try:
            return super().forward(tiles)
        except torch.OutOfMemoryError:
            pass
        raise RuntimeError("GET was unable to find an engine to execute this computation")


def segmented(card: PretendedCard, segmenter: Segmenter, volume: Volume) -> np.ndarray:
    with card:
        return segmenter(volume)


@pytest.mark.parametrize(("name", "index"), [("auto", 1), ("cuda", 1), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_limit_holds_on_every_card_and_is_lifted_after_each_scan(
    card: PretendedCard, volume: Volume, name: str, index: int
) -> None:
    expected = Segmenter(plan_of(), [threshold], device="cpu")(volume)
    with card:
        assert torch_device(name) == torch.device("cuda", index)
        segmenter = Segmenter(plan_of(), [OnTheCard(card)], device=name, batch=4, budget=Budget(vram_bytes=2 * GB))
    for _ in range(2):
        card.history.clear()
        found = segmented(card, segmenter, volume)
        assert np.count_nonzero(found != expected) <= 1e-3 * expected.size  # the sums are in half precision
        assert min(card.history) == pytest.approx((2 * GB - CUDA_CONTEXT_BYTES) / card.total_bytes)
        assert set(card.shares.values()) == {1.0}
    assert not card.refused


def test_a_limit_needs_no_index_and_is_lifted_after_an_error(card: PretendedCard) -> None:
    def broken_off() -> None:
        with limited_gpu_memory(2 * GB, torch.device("cuda")):
            assert card.shares[card.current] == pytest.approx((2 * GB - CUDA_CONTEXT_BYTES) / card.total_bytes)
            raise KeyError("within the limit")

    with pytest.raises(KeyError, match="within the limit"):
        broken_off()
    assert set(card.shares.values()) == {1.0}


def test_a_card_that_others_have_filled_is_said_to_be_full(card: PretendedCard, monkeypatch) -> None:
    def refused(*size: int, device: torch.device) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "empty", refused)
    with pytest.raises(ConfigError, match="device 'cuda': it is there, but its memory is full"):
        torch_device("cuda")


@pytest.mark.parametrize(
    ("beside", "counted"),
    [(300 * MB, CUDA_CONTEXT_BYTES), (600 * MB, 600 * MB), (9 * GB, 2 * CUDA_CONTEXT_BYTES)],
    ids=["small", "large", "others"],
)
def test_what_the_driver_counts_beside_tensors_is_asked(
    card: PretendedCard, volume: Volume, beside: int, counted: int
) -> None:
    """A larger context leaves less of the limit to tensors; other programs' memory is not all taken for it."""
    card.beside, said = beside, []
    with card:
        segmenter = Segmenter(
            plan_of(), [OnTheCard(card)], say=said.append, device="cuda", batch=2, budget=Budget(vram_bytes=2 * GB)
        )
    segmented(card, segmenter, volume)
    assert {round(share * card.total_bytes) for share in card.history if share < 1} == {2 * GB - counted}
    with card:
        _, estimate = segmenter.estimate(volume)
    taken = estimate.vram_bytes - counted
    assert WINDOW_BYTES * segmenter.resources.batch <= taken < (WINDOW_BYTES + 20 * MB) * segmenter.resources.batch
    assert f"GPU memory {format_bytes(card.peak + counted)}" in said[-1]


def test_a_limit_below_the_batch_takes_fewer_windows_at_a_time(card: PretendedCard, volume: Volume) -> None:
    network, said = OnTheCard(card), []
    limit = CUDA_CONTEXT_BYTES + 3 * WINDOW_BYTES
    with card:
        segmenter = Segmenter(
            plan_of(), [network], say=said.append, device="cuda", batch=8, budget=Budget(vram_bytes=limit)
        )
    segmented(card, segmenter, volume)
    assert "2 windows at a time on cuda:1" in said[0]
    assert max(count for place, count in network.batches if place == "cuda") == 2


def test_a_limit_below_one_window_goes_down_in_steps_to_the_cpu(card: PretendedCard, volume: Volume) -> None:
    network, said = OnTheCard(card), []
    with card:
        segmenter = Segmenter(plan_of(), [network], say=said.append, device="cuda", budget=Budget(vram_bytes=500 * MB))
    found = segmented(card, segmenter, volume)
    np.testing.assert_array_equal(found, Segmenter(plan_of(), [threshold], device="cpu")(volume))
    assert card.refused == 2  # with the sums on the card, and in RAM
    assert {place for place, _ in network.batches} == {"cpu"}
    assert "one window does not fit: 1 window at a time on cpu" in said[0]
    assert card.shares[1] == 1.0
    segmented(card, segmenter, volume)  # the next scan begins there
    assert card.refused == 2


def test_a_window_without_room_for_its_sums_stays_on_the_card(card: PretendedCard, volume: Volume) -> None:
    """With its sums it does not fit; what it filled before that was found out does not count as its own."""
    plan = plan_of(patch=(80, 512, 512))
    voxels = math.prod(plan.patch_voxels)
    window, sums = WINDOW_BYTES + voxels * 4, voxels * (plan.class_count * 2 + 4)
    network, said = Deep(card), []
    image = voxels * 2  # of the scan's slices, stored as int16
    limit = int((CUDA_CONTEXT_BYTES + window + image) * MARGIN) + 10 * MB
    assert window < limit - CUDA_CONTEXT_BYTES < window + sums
    with card:
        segmenter = Segmenter(plan, [network], say=said.append, device="cuda", budget=Budget(vram_bytes=limit))
    segmented(card, segmenter, volume)
    assert card.refused == 1
    assert {place for place, _ in network.batches} == {"cuda"}
    assert "1 window at a time on cuda:1, sums in single precision on cpu" in said[0]


def test_memory_that_cudnn_was_refused_is_memory_that_ran_out(card: PretendedCard, volume: Volume) -> None:
    network, said = Convolving(card), []
    with card:
        segmenter = Segmenter(plan_of(), [network], say=said.append, device="cuda", budget=Budget(vram_bytes=500 * MB))
    found = segmented(card, segmenter, volume)
    np.testing.assert_array_equal(found, Segmenter(plan_of(), [threshold], device="cpu")(volume))
    assert card.refused == 2
    assert "one window does not fit: 1 window at a time on cpu" in said[0]


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
@pytest.mark.parametrize("limit", [Budget(), Budget(vram_bytes=2 * GB)], ids=["no limit", "limit"])
def test_memory_that_the_driver_refuses_is_memory_that_ran_out(
    card: PretendedCard, volume: Volume, words: str, limit: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs fill the card: PyTorch counts no refusal of its own."""

    class Refused(OnTheCard):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            if self.where.type == "cuda":
                raise RuntimeError(words)
            return super().forward(tiles)

    on_the_card: list[None] = []
    monkeypatch.setattr("flarecps.inference.segmenter.device_labels", lambda *_: on_the_card.append(None))
    said: list[str] = []
    with card:
        segmenter = Segmenter(plan_of(), [Refused(card)], say=said.append, device="cuda", batch=2, budget=limit)
    found = segmented(card, segmenter, volume)
    np.testing.assert_array_equal(found, Segmenter(plan_of(), [threshold], device="cpu")(volume))
    assert any("1 window at a time on cpu" in one for one in said)
    assert not on_the_card  # nor is the way back tried there
    assert set(card.shares.values()) == {1.0}


def test_a_card_without_room_for_the_program_is_said_in_one_line(
    card: PretendedCard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse() -> int:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "current_device", refuse)
    with card, pytest.raises(ConfigError, match="its memory is full"):
        torch_device("cuda")
    checkpoint = write_checkpoint(tmp_path / "last.ckpt")
    sitk.WriteImage(scan((20, 20, 20), (3.0, 3.0, 3.0), turned(1, 2, 3)), str(tmp_path / "scan.nii.gz"))
    with card:
        assert main(["segment", str(checkpoint), str(tmp_path / "scan.nii.gz"), str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.strip()
    assert "its memory is full" in line
    assert "\n" not in line


def test_an_error_that_is_not_of_memory_is_not_taken_for_it(card: PretendedCard, volume: Volume) -> None:
    card.refused = 3  # some time before
    error = RuntimeError("GET was unable to find an engine to execute this computation")  # of a card too old for it
    with card:
        segmenter = Segmenter(plan_of(), [OnTheCard(card, error)], device="cuda", budget=Budget(vram_bytes=2 * GB))
        with pytest.raises(RuntimeError, match="unable to find an engine"):
            segmenter(volume)
    assert card.refused == 3
    assert set(card.shares.values()) == {1.0}


def test_the_limit_is_lifted_when_a_scan_fails(card: PretendedCard, volume: Volume) -> None:
    with card:
        segmenter = Segmenter(
            plan_of(), [OnTheCard(card, ValueError("no"))], device="cuda", budget=Budget(vram_bytes=2 * GB)
        )
        with pytest.raises(ValueError, match="no"):
            segmenter(volume)
    assert card.history
    assert set(card.shares.values()) == {1.0}
    with card:
        strict = Segmenter(plan_of(), [OnTheCard(card)], device="cuda", budget=Budget(MB, 2 * GB))
        with pytest.raises(ConfigError, match="does not fit its budget"):
            strict(volume)
    assert set(card.shares.values()) == {1.0}


def test_a_process_that_limited_itself_keeps_its_own_limit(card: PretendedCard, volume: Volume) -> None:
    card.shares[1] = 0.05
    with card:
        segmenter = Segmenter(plan_of(), [OnTheCard(card)], device="cuda", budget=Budget(vram_bytes=12 * GB))
    segmented(card, segmenter, volume)
    assert max(card.history) == card.shares[1] == 0.05


@pytest.mark.parametrize("words", [["--budget", "flare22"], ["--max-vram", "2G"], ["--max-vram", "100M"]])
def test_the_command_with_every_budget(
    card: PretendedCard, tmp_path: Path, volume: Volume, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "last.ckpt")
    with card:
        code = main(["segment", str(checkpoint), str(tmp_path / "scan.nii.gz"), str(tmp_path / "out"), *words])
    assert code == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "scan.nii.gz").is_file()
    assert set(card.shares.values()) == {1.0}
