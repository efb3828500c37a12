"""``flarecps relabel``: other ids in a new folder, mistakes in one line, one bad map among good ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flarecps.cli.main import main
from flarecps.volumes.io import read_labels, write_volume
from flarecps.volumes.space import Space


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    folder = tmp_path / "labelsTr"
    for number, name in enumerate(("a.nii.gz", "b.mha")):
        array = np.zeros((4, 5, 6), np.int16)
        array[1, 1:3], array[2, 2, 2] = 63, 126 + number
        write_volume(folder / name, array, Space.canonical((4, 5, 6), (2.0, 1.0, 1.0)))
    return folder


def test_ids_change_and_originals_stay(maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    assert main(["relabel", str(maps), str(out), "--ids", "63=1,126=2,127=0", "--workers", "1", "--no-progress"]) == 0
    assert "2 label maps, 26 voxels renumbered" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["a.nii.gz", "b.nii.gz"]
    assert np.unique(read_labels(out / "a.nii.gz").array).tolist() == [0, 1, 2]
    assert np.unique(read_labels(out / "b.nii.gz").array).tolist() == [0, 1]
    assert np.unique(read_labels(maps / "a.nii.gz").array).tolist() == [0, 63, 126]


def test_one_bad_map_among_good_ones(maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (maps / "c.nii.gz").write_bytes(b"no scan")
    out = tmp_path / "new"
    assert main(["relabel", str(maps), str(out), "--ids", "63=1", "--workers", "1", "--no-progress"]) == 1
    assert "c.nii.gz" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent", "new", "--ids", "1=2"], "no such file or folder"),
        (["labelsTr", "labelsTr", "--ids", "1=2"], "choose another folder"),
        (["labelsTr", "new", "--ids", "1:2"], "OLD=NEW"),
        (["empty", "new", "--ids", "1=2"], "no label maps"),
    ],
)
def test_mistakes(
    maps: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(maps.parent)
    Path("empty").mkdir()
    assert main(["relabel", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path("new").exists()
