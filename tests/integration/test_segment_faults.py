"""``segment`` when things break: full disks, folders that can't be written, kills, broken files.

Nothing that was finished is lost, and nothing half-written is ever taken for a result.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from small_model import write_model, write_scan

from flarecps.atomic import PARTIAL_PREFIX
from flarecps.cli.main import main
from flarecps.volumes import nifti

PATIENCE_S = 120.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "last.ckpt")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for seed, name in enumerate("abcd"):
        write_scan(tmp_path / "in" / f"{name}_0000.nii.gz", seed)
    return tmp_path / "in"


def words(model: Path, scans: Path, out: Path, *more: object) -> list[str]:
    return [str(word) for word in ("segment", model, scans, out, "--device", "cpu", *more)]


def results(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}


def assert_whole(out: Path, names: str) -> None:
    """Exactly these results, each readable to its last voxel; no partial file anywhere."""
    assert sorted(path.name for path in out.glob("[!.]*.nii.gz")) == [f"{name}.nii.gz" for name in names]
    for name in names:
        assert np.asarray(nibabel.load(out / f"{name}.nii.gz").dataobj).shape == (24, 24, 24)
    assert not list(out.rglob(f"{PARTIAL_PREFIX}*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system of a few megabytes can't be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_fills_up(tmp_path: Path, model: Path, small_disk: Path, capsys) -> None:
    """Probabilities of 64³ voxels take about a megabyte a scan: some fit, then none; with room, all is as it should."""
    for seed, name in enumerate("abcd"):
        write_scan(tmp_path / "in" / f"{name}_0000.nii.gz", seed, edge=64)
    out = small_disk / "out"
    assert main(words(model, tmp_path / "in", out, "--probabilities")) == 1
    said = capsys.readouterr()
    failed = [line for line in said.err.splitlines() if "disk is full" in line]
    done = results(out)
    assert 1 <= len(done) <= 3
    assert len(done) + len(failed) == 4
    assert all("run the same command again" in line for line in failed)
    assert not list(out.rglob(f"{PARTIAL_PREFIX}*"))
    for name in done:
        with np.load(out / "probabilities" / name.replace(".nii.gz", ".npz")) as archive:
            assert archive["probabilities"].shape == (64, 3, 64, 64)
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert main(words(model, tmp_path / "in", out, "--probabilities")) == 0
    again = results(out)
    assert len(again) == 4
    assert {name: again[name] for name in done} == done


def test_a_full_disk_in_the_middle_of_a_file(
    tmp_path: Path, model: Path, scans: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second result is cut off by the disk after its header; the others are whole."""
    out, write = tmp_path / "out", nifti._write_parts
    count = 0

    def failing(file, header, voxels) -> None:
        nonlocal count
        count += 1
        if count == 2:
            write(file, header, voxels[:5])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, header, voxels)

    with monkeypatch.context() as patch:
        patch.setattr(nifti, "_write_parts", failing)
        assert main(words(model, scans, out)) == 1
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("b: ")]
    assert "b.nii.gz: the disk is full (No space left on device); free some and run the same command again" in line
    assert "3 of 4 scans segmented" in said.out
    assert_whole(out, "acd")
    assert main(words(model, scans, out)) == 0
    assert_whole(out, "abcd")


def test_a_full_disk_under_the_tables(
    tmp_path: Path, model: Path, scans: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scans' own files are there and counted; the next run makes the tables of them."""

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("flarecps.inference.outputs.write_tables", full)
        assert main(words(model, scans, tmp_path / "out", "--statistics")) == 1
    said = capsys.readouterr()
    assert "4 of 4 scans segmented" in said.out
    assert "statistics.csv: the disk is full" in said.err
    assert_whole(tmp_path / "out", "abcd")
    assert main(words(model, scans, tmp_path / "out", "--statistics")) == 0
    assert len((tmp_path / "out" / "statistics.csv").read_text().splitlines()) == 5


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder in which even the administrator can't write."""
    place = tmp_path / "fixed"
    place.mkdir()
    if os.geteuid():
        place.chmod(0o555)
        yield place
        place.chmod(0o755)
    else:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], capture_output=True)
        if mounted.returncode:
            pytest.skip("the administrator can write anywhere, and mount nothing here")
        yield place
        subprocess.run(["umount", place], check=True)


def test_an_output_folder_that_is_read_only(tmp_path: Path, model: Path, scans: Path, read_only: Path, capsys) -> None:
    assert main(words(model, scans, read_only / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "can't write there" in line
    assert "name another output folder" in line
    (tmp_path / "file").write_text("a file, no folder")
    assert main(words(model, scans, tmp_path / "file" / "out")) == 2
    assert "can't write there" in capsys.readouterr().err


def test_a_folder_that_becomes_read_only_fails_every_scan_at_once(
    tmp_path: Path, model: Path, scans: Path, read_only: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions that change after the start: no network runs for a result that could not be written."""
    monkeypatch.setattr("flarecps.inference.folders.describe_results", lambda *given: None)
    monkeypatch.setattr("flarecps.inference.segmenter.Segmenter.__call__", lambda *given: pytest.fail("a network ran"))
    assert main(words(model, scans, read_only)) == 1
    said = capsys.readouterr()
    assert said.err.count("can't write there; check its permissions") == 4
    assert "0 of 4" in said.out


def test_a_broken_file_in_the_middle(tmp_path: Path, model: Path, scans: Path, capsys) -> None:
    whole = (scans / "b_0000.nii.gz").read_bytes()
    (scans / "b_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    assert main(words(model, scans, tmp_path / "out", "--statistics")) == 1
    said = capsys.readouterr()
    assert [line[:3] for line in said.err.splitlines() if "b_0000.nii.gz" in line] == ["b: "]
    assert_whole(tmp_path / "out", "acd")
    table = (tmp_path / "out" / "statistics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in table] == ["case", "a", "c", "d"]


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path: Path, model: Path) -> None:
    """kill -9 in the middle of a folder; in the end the files are those of a run that nothing befell."""
    names = [f"case{number}" for number in range(6)]
    for seed, name in enumerate(names):
        write_scan(tmp_path / "in" / f"{name}_0000.nii.gz", seed, edge=40)
    extras = ("--statistics", "--probabilities")
    expected, out = tmp_path / "expected", tmp_path / "out"
    assert main(words(model, tmp_path / "in", expected, *extras)) == 0
    command = [sys.executable, "-m", "flarecps", *words(model, tmp_path / "in", out, *extras)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    while len(list(out.glob("case*.nii.gz"))) < 2 and running.poll() is None:
        assert time.monotonic() - began < PATIENCE_S
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    done = results(out)
    assert len(done) >= 2
    assert {name: content for name, content in results(expected).items() if name in done} == done
    # what a kill in the middle of writing leaves behind
    for path in (out / "case5.nii.gz", out / "probabilities" / "case5.npz"):
        path.unlink(missing_ok=True)
        (path.parent / f"{PARTIAL_PREFIX}0123abcd-{path.name}").write_bytes(b"half")
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "were there already" in finished.stdout
    assert results(out) == results(expected)
    assert (out / "statistics.csv").read_bytes() == (expected / "statistics.csv").read_bytes()
    for name in names:
        with (
            np.load(out / "probabilities" / f"{name}.npz") as ours,
            np.load(expected / "probabilities" / f"{name}.npz") as theirs,
        ):
            np.testing.assert_array_equal(ours["probabilities"], theirs["probabilities"])
    assert not list(out.rglob(f"{PARTIAL_PREFIX}*case*"))
