"""Batches on their way to a GPU: order, waiting and memory, on pretended streams, and on a card where there is one."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from flarecps.data.patch_loader import copied_ahead

GPU = torch.device("cuda", 0)


def batches(count: int, log: list[str]):
    for number in range(count):
        log.append(f"made {number}")
        yield {"image": torch.full((2,), float(number)), "case": [str(number)]}


def test_on_a_cpu_nothing_is_done() -> None:
    log: list[str] = []
    given = list(batches(3, log))
    passed = list(copied_ahead(iter(given), torch.device("cpu")))
    assert all(one is other for one, other in zip(passed, given, strict=True))


def test_the_next_batch_is_copied_before_a_step_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            assert device == GPU

        def record_event(self) -> str:
            log.append("copied")
            return f"event {log.count('copied') - 1}"

    @contextmanager
    def on(stream: Stream):
        log.append("on the side")
        yield
        log.append("back")

    current = SimpleNamespace(wait_event=lambda event: log.append(f"wait for {event}"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    kept = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: kept.append((tensor, stream)))
    copy = torch.Tensor.to

    def to(tensor: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        assert device == GPU
        assert non_blocking
        assert log[-1] == "on the side"
        return copy(tensor, torch.float64)

    monkeypatch.setattr(torch.Tensor, "to", to)
    for number, batch in enumerate(copied_ahead(batches(3, log), GPU)):
        assert batch["case"] == [str(number)]
        assert batch["image"].tolist() == [number, number]
        assert kept[-1][0] is batch["image"], "its memory is not given away while the step uses it"
        assert kept[-1][1] is current
        log.append(f"step {number}")
    steps = [line for line in log if line.startswith(("made", "wait", "step"))]
    assert steps == [
        "made 0", "made 1", "wait for event 0", "step 0", "made 2", "wait for event 1", "step 1",
        "wait for event 2", "step 2",
    ]  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_card_the_batches_are_the_same() -> None:
    pinned = ({"image": torch.full((1000,), float(number)).pin_memory()} for number in range(5))
    for number, batch in enumerate(copied_ahead(pinned, GPU)):
        assert batch["image"].device == GPU
        assert batch["image"].eq(number).all()
