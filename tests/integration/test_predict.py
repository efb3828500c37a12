"""``flarecps predict`` gives bit for bit what ``flarecps segment`` gives, on one process and on several."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from stores import TinyStores, fit

from flarecps.cli.main import main


@pytest.fixture(scope="module")
def run(tiny_stores: TinyStores, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict") / "run"
    return fit("phantom_3d.yaml", tiny_stores, folder, "--data.fold", "all", epochs=1)


@pytest.fixture(scope="module")
def scans(tiny_stores: TinyStores, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five scans, the third of them broken."""
    folder = tmp_path_factory.mktemp("scans")
    sources = sorted((tiny_stores.dataset / "imagesTr").glob("*.nii.gz"))
    for number, source in enumerate(sources[:5]):
        shutil.copy(source, folder / f"case{number}_0000.nii.gz")
    broken = folder / "case2_0000.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def segmented(run: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("segmented")
    assert main(["segment", str(run / "checkpoints" / "last.ckpt"), str(scans), str(out), "--device", "cpu"]) == 1
    found = results(out)
    assert sorted(found) == [f"case{number}.nii.gz" for number in (0, 1, 3, 4)]
    assert any(np.asarray(nibabel.load(out / name).dataobj).any() for name in found), "labels that could differ"
    return found


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


def predict_words(run: Path, scans: Path, out: Path, *more: object) -> list[str]:
    words = ["predict", "--config", run / "config.yaml", "--ckpt_path", run / "checkpoints" / "last.ckpt"]
    words += ["--trainer.default_root_dir", out, "--data.predict_input", scans, *more]
    return [str(word) for word in words]


def test_predict_is_segment(run: Path, scans: Path, segmented: dict[str, bytes], tmp_path: Path, capsys) -> None:
    assert main(predict_words(run, scans, tmp_path)) == 1
    said = capsys.readouterr()
    assert "1 could not be segmented" in said.out
    assert [line for line in said.err.splitlines() if line.startswith("case2: ")]
    assert results(tmp_path / "segmentations") == segmented
    (tmp_path / "segmentations" / "case1.nii.gz").unlink()
    (tmp_path / "segmentations" / "case3.nii.gz").write_bytes(b"mine")
    assert main(predict_words(run, scans, tmp_path)) == 1
    again = results(tmp_path / "segmentations")
    assert again.pop("case3.nii.gz") == b"mine", "finished scans are skipped"
    assert again == {name: content for name, content in segmented.items() if name != "case3.nii.gz"}


def test_three_processes_share_two_scans(run: Path, scans: Path, segmented: dict[str, bytes], tmp_path: Path) -> None:
    """The broken scan is the second process's, the third has none; the first knows, and nobody waits for ever."""
    few = tmp_path / "few"
    few.mkdir()
    for name in ("case1_0000.nii.gz", "case2_0000.nii.gz"):
        shutil.copy(scans / name, few / name)
    words = predict_words(run, few, tmp_path, "--trainer.devices", 3, "--trainer.strategy", "ddp")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "flarecps", *words], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("1 could not be segmented") == 1
    assert done.stderr.count("case2: ") == 1
    assert results(tmp_path / "segmentations") == {"case1.nii.gz": segmented["case1.nii.gz"]}
