"""``flarecps preprocess`` at the real command line: damage, memory, and runs that are killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from flarecps.cli.main import main
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space


def write_scans(root: Path, labelled: int, unlabelled: int) -> None:
    """Noise of varied size, the first ``labelled`` with a block of one organ."""
    generator = np.random.default_rng(1)
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        (root / folder).mkdir(parents=True)
    for number in range(labelled + unlabelled):
        shape = tuple(int(edge) for edge in generator.integers((10, 30, 30), (16, 40, 40)))
        space = Space.canonical(shape, (4.0, 2.0, 2.0))
        image = generator.integers(-99, 99, shape).astype(np.int16)
        folder = "imagesTr" if number < labelled else "imagesUn"
        write_volume(root / folder / f"c{number:02d}_0000.nii.gz", image, space)
        if number < labelled:
            labels = np.zeros(shape, np.uint8)
            labels[3:7, 5:15, 6:20] = 1
            write_volume(root / "labelsTr" / f"c{number:02d}.nii.gz", labels, space)
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps({**description, "numTraining": labelled}))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_scans(tmp_path / "data", 3, 2)
    return tmp_path / "data"


def test_a_damaged_case_is_listed_and_written_again(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, store = tmp_path / "plan.json", tmp_path / "store"
    assert main(["plan", str(dataset), "--out", str(plan), "--workers", "1", "--no-progress"]) == 0
    command = ["preprocess", str(dataset), str(plan), "--out", str(store), "--workers", "1", "--no-progress"]
    assert main([*command, "--verify"]) == 2  # nothing there yet
    assert "not a case store" in capsys.readouterr().err
    assert main(command) == 0
    assert main([*command, "--verify"]) == 0
    assert "5 of 5 cases as they were written" in capsys.readouterr().out
    content = bytearray((store / "cases" / "c01" / "image.b2nd").read_bytes())
    content[-200] ^= 4
    (store / "cases" / "c01" / "image.b2nd").write_bytes(content)
    assert main([*command, "--verify"]) == 1
    captured = capsys.readouterr()
    assert "4 of 5 cases as they were written" in captured.out
    assert "damaged, missing or changed: c01: image.b2nd is not what was written" in captured.err
    assert main(command) == 0
    assert "1 of 5 cases preprocessed; 4 were there already" in capsys.readouterr().out
    assert main([*command, "--verify"]) == 0


def test_too_many_workers_for_the_memory_are_fewer(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "plan.json"
    assert main(["plan", str(dataset), "--out", str(plan), "--workers", "1", "--no-progress"]) == 0
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10, total=2**36))
    words = ["preprocess", str(dataset), str(plan), "--out", str(tmp_path / "store"), "--workers", "4"]
    assert main([*words, "--no-progress"]) == 0
    assert "4 workers may need 1.3 GB of RAM, more than is free: 1 at work instead" in capsys.readouterr().err


def digests(store: Path) -> dict[str, str]:
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_killed_outright_and_started_again_the_store_is_the_same(tmp_path: Path) -> None:
    """kill -9 of all processes of a run with two workers; then shards; against one undisturbed run."""
    write_scans(tmp_path / "data", 8, 32)
    plan, killed, whole = tmp_path / "plan.json", tmp_path / "killed", tmp_path / "whole"
    words = ["--workers", "1", "--no-progress"]
    assert main(["plan", str(tmp_path / "data"), "--out", str(plan), "--spacing", "[4, 1.5, 1.5]", *words]) == 0
    command = ["preprocess", str(tmp_path / "data"), str(plan)]
    run = [sys.executable, "-m", "flarecps", *command, "--out", str(killed), "--workers", "2", "--no-progress"]
    process = subprocess.Popen(run, start_new_session=True)
    while process.poll() is None and len(list((killed / "cases").glob("c*"))) < 5:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(list((killed / "cases").glob("c*")))
    assert 5 <= done < 40
    (killed / "cases" / ".partial-01234567-c39").mkdir(exist_ok=True)  # so that there is one, whatever the moment
    for share in ("2/3", "1/3", "3/3"):
        assert main([*command, "--out", str(killed), "--shard", share, *words]) == 0
    assert main([*command, "--out", str(whole), *words]) == 0
    assert len(digests(whole)) == 4 * 40 + 2 * 8 + 4
    assert digests(killed) == digests(whole)
    assert main([*command, "--out", str(killed), "--verify", *words]) == 0
