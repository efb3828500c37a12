"""``flarecps score`` interrupted, in shares, and with files that change: what is done is kept, what is stale is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flarecps.cli.main import main
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

CASES = 6
SPACE = Space.canonical((10, 16, 18), (2.5, 1.0, 1.0))
TABLES = ("scores.csv", "scores.json", "scores.md")
# The command, killed while the third finished case is being put in its place: two are there, one has a partial file.
KILLED_AT_THE_THIRD = """
import os, signal, sys
from flarecps.cli.main import main

replace, done = os.replace, []

def replace_or_die(source, target):
    if str(target).endswith(".json"):
        done.append(target)
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = replace_or_die
main(sys.argv[1:])
"""


def labels_of(number: int, move: int = 0) -> np.ndarray:
    labels = np.zeros(SPACE.shape, np.uint8)
    labels[2:8, 2:9, 2 + number : 11] = 1
    labels[2:8, 11:13, 6:8] = 5
    return np.roll(labels, move, axis=2)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    for number in range(CASES):
        write_volume(tmp_path / "r" / f"case_{number}.nii.gz", labels_of(number), SPACE)
        write_volume(tmp_path / "p" / f"case_{number}.nii.gz", labels_of(number, move=1 + number % 2), SPACE)
    return str(tmp_path / "p"), str(tmp_path / "r")


@pytest.fixture
def undisturbed(folders: tuple[str, str], tmp_path: Path) -> dict[str, bytes]:
    """The tables of one run from beginning to end."""
    assert main(["score", *folders, "--out", str(tmp_path / "whole"), "--protocol", "strict", "--workers", "1"]) == 0
    return tables(tmp_path / "whole")


def tables(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in TABLES}


def test_killed_and_started_again(
    folders: tuple[str, str], undisturbed: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["score", *folders, "--out", str(out), "--protocol", "strict", "--workers"]
    command = [sys.executable, "-c", KILLED_AT_THE_THIRD, *words, "1"]
    killed = subprocess.run(command, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in (out / "cases").glob("case*")) == ["case_0.json", "case_1.json"]
    assert [path.name[-11:] for path in (out / "cases").glob(".partial-*")] == ["case_2.json"]
    assert not (out / "scores.csv").exists()
    capsys.readouterr()
    assert main([*words, "2"]) == 0
    assert f"Scoring (2 of {CASES} there already): 4 of 4 cases" in capsys.readouterr().err
    assert tables(out) == undisturbed
    assert main([*words, "1"]) == 0
    assert "Scoring" not in capsys.readouterr().err, "nothing was left to do"
    assert tables(out) == undisturbed


def test_shares_of_a_job_array_make_the_same_tables(
    folders: tuple[str, str], undisturbed: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["score", *folders, "--out", str(out), "--protocol", "strict", "--workers", "1"]
    for share, count in (("1/4", 2), ("2/4", 2), ("3/4", 1), ("4/4", 1)):
        assert main([*words, "--shard", share]) == 0
        assert f"share {share}: {count} case" in capsys.readouterr().out
        assert not (out / "scores.csv").exists()
    assert len(list((out / "cases").iterdir())) == CASES
    assert main(words) == 0
    assert "Scoring" not in capsys.readouterr().err
    assert tables(out) == undisturbed
    assert main([*words, "--shard", "5/4"]) == 2
    assert "shard '5/4': expected I/N" in capsys.readouterr().err


def test_only_what_changed_is_scored_again(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["score", *folders, "--out", str(out), "--workers", "1"]

    def scored_again(*more: str) -> int:
        capsys.readouterr()
        assert main([*words, *more]) == 0
        said = capsys.readouterr().err.splitlines()
        return int(said[-1].split(" of ")[-1].split()[0]) if said else 0

    assert scored_again() == CASES
    prediction = tmp_path / "p" / "case_1.nii.gz"
    os.utime(prediction, (1, 1))
    assert scored_again() == 0, "the same contents, another date"
    write_volume(prediction, labels_of(1), SPACE)
    os.utime(prediction, (1, 1))
    assert scored_again() == 1, "other contents, the same date"
    assert json.loads((out / "scores.json").read_text())["cases"]["case_1"]["organs"]["liver"]["dsc"] == 1.0
    shutil.copy(tmp_path / "p" / "case_0.nii.gz", tmp_path / "r" / "case_0.nii.gz")
    assert scored_again() == 1
    (out / "cases" / "case_2.json").write_text('{"format": "flarecps-case-scores", "made_from"')
    (out / "cases" / "case_3.json").write_text("[]")
    assert scored_again() == 2, "damaged"
    assert scored_again("--tolerance", "liver=1") == CASES
    assert scored_again("--tolerance", "liver=1") == 0
    assert scored_again("--protocol", "strict") == CASES
    (tmp_path / "labels.json").write_text(json.dumps({"labels": {"liver": 1, "vessel": 5}}))
    assert scored_again("--protocol", "strict", "--labels", str(tmp_path / "labels.json")) == CASES
    prediction.unlink()
    assert scored_again("--protocol", "strict", "--labels", str(tmp_path / "labels.json")) == 1, "missing now"
    missing = json.loads((out / "scores.json").read_text())["cases"]["case_1"]
    assert missing["missing"] is True
    assert missing["organs"]["liver"]["dsc"] == 0.0
    assert scored_again("--protocol", "strict", "--labels", str(tmp_path / "labels.json")) == 0, "a missing one is kept"


def test_a_failed_case_is_tried_again(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["score", *folders, "--out", str(tmp_path / "out"), "--workers", "1"]
    prediction = tmp_path / "p" / "case_4.nii.gz"
    whole = prediction.read_bytes()
    prediction.write_bytes(whole[:100])
    assert main(words) == 1
    assert "not scored: case_4" in capsys.readouterr().err
    prediction.write_bytes(whole)
    assert main(words) == 0
    assert f"Scoring (5 of {CASES} there already): 1 of 1 case" in capsys.readouterr().err
