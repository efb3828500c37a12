"""Which checkpoint a run resumes from, and what stays when one is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import module_of

from flarecps.checkpoint import ENTRY, model_entry
from flarecps.errors import CheckpointError
from flarecps.training.checkpoint_files import WholeCheckpoints, candidates, newest_whole, progress_of

MODULE = module_of(3)


def content(epochs: int, steps: int, **more: Any) -> dict[str, Any]:
    """A checkpoint after so many completed epochs and steps."""
    needed: dict[str, Any] = {"optimizer_states": [], "lr_schedulers": [], "loops": {}, "callbacks": {}}
    needed["state_dict"] = MODULE.state_dict()
    return {ENTRY: model_entry(MODULE.plan, MODULE.siblings, epochs), "global_step": steps, **needed, **more}


def written(folder: Path, **progress: tuple[int, int]) -> Path:
    for name, (epochs, steps) in progress.items():
        torch.save(content(epochs, steps), folder / f"{name}.ckpt")
    return folder


def cut(path: Path, share: float = 0.6) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def chosen(folder: Path) -> tuple[str, list[str]]:
    skipped: list[str] = []
    return newest_whole(folder, skipped.append).stem, skipped


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        ({"last": (3, 30), "previous": (2, 20), "best": (2, 20)}, "last"),
        ({"last": (3, 30), "requeue": (3, 34)}, "requeue"),  # within epoch 4
        ({"last": (4, 40), "requeue": (3, 40)}, "last"),  # in the validation of an epoch that was finished since
        ({"last": (4, 40), "requeue": (3, 34)}, "last"),  # stale
        ({"requeue": (0, 4)}, "requeue"),
        ({"best": (4, 40), "last": (4, 40)}, "last"),  # equally far: last knows of best's score
        ({"epoch=6-step=60": (6, 60), "last": (4, 40)}, "epoch=6-step=60"),  # a config's periodic ones
        ({"pretrained": (900, 9), "last": (4, 40)}, "last"),  # not of this run
    ],
)
def test_the_furthest_is_taken_whatever_the_files_times_say(
    progress: dict[str, tuple[int, int]], expected: str, tmp_path: Path
) -> None:
    written(tmp_path, **progress)
    for age, name in enumerate(progress):
        os.utime(tmp_path / f"{name}.ckpt", (10 * age, 10 * age))
    os.utime(tmp_path / f"{expected}.ckpt", (1, 1))
    (tmp_path / ".partial-0123abcd-last.ckpt").write_bytes(b"")
    assert chosen(tmp_path) == (expected, [])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.999])
def test_a_damaged_one_is_passed_over_and_said_so(share: float, tmp_path: Path) -> None:
    written(tmp_path, last=(4, 40), previous=(3, 30), requeue=(4, 44))
    cut(tmp_path / "requeue.ckpt", share)
    cut(tmp_path / "last.ckpt", share)
    name, skipped = chosen(tmp_path)
    assert name == "previous"
    assert [Path(line.split(": ")[0]).stem for line in skipped] == ["last", "requeue"]


def test_bytes_that_changed_among_the_weights_are_noticed(tmp_path: Path) -> None:
    """The table of contents is whole, so only reading all of the file tells."""
    written(tmp_path, last=(4, 40), previous=(3, 30))
    last = tmp_path / "last.ckpt"
    weights = next(MODULE.siblings.parameters()).detach().numpy().tobytes()
    damaged = last.read_bytes().replace(weights, bytes(len(weights)))
    assert damaged != last.read_bytes()
    last.write_bytes(damaged)
    assert progress_of(last) == (4, 40)
    name, skipped = chosen(tmp_path)
    assert name == "previous"
    assert len(skipped) == 1


def test_nothing_whole_is_an_error_that_names_what_is_there(tmp_path: Path) -> None:
    written(tmp_path, last=(4, 40), previous=(3, 30))
    for path in candidates(tmp_path):
        cut(path)
    with pytest.raises(CheckpointError, match=r"none of its checkpoints \(last\.ckpt, previous\.ckpt\) is whole"):
        chosen(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        chosen(tmp_path / "nowhere")


def test_weights_alone_cannot_be_resumed(tmp_path: Path) -> None:
    torch.save({ENTRY: content(1, 1)[ENTRY], "global_step": 1, "state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="holds no optimizer_states"):
        progress_of(tmp_path / "last.ckpt")


@pytest.mark.parametrize("links", [True, False])
def test_the_last_before_stays_as_previous(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def refuse(*names: Any) -> None:
            raise PermissionError("this file system has no hard links")

        monkeypatch.setattr(os, "link", refuse)
    files = WholeCheckpoints()
    for epoch in (1, 2, 3):
        files.save_checkpoint({"epoch": epoch}, tmp_path / "last.ckpt")
        files.save_checkpoint({"epoch": epoch}, tmp_path / "best.ckpt")
    found = {path.stem: torch.load(path, weights_only=True)["epoch"] for path in tmp_path.iterdir()}
    assert found == {"last": 3, "previous": 2, "best": 3}
