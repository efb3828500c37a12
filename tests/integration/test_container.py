"""``docker/predict.sh`` as FLARE's organisers start it, but without Docker; without a network where that can be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from small_model import LABELS, small_plan, write_model
from stores import TinyStores

from flarecps.cli.main import main
from flarecps.inference.postprocessing import Rules, write_rules

SPACING_MM = (16.0, 12.0, 12.0)  # about the phantom's own
DOCKER = Path(__file__).resolve().parents[2] / "docker"


def without_network() -> list[str]:
    """Words before a command that cut it off from every network, if this system lets us."""
    words = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    allowed = shutil.which("unshare") and not subprocess.run([*words, "true"], capture_output=True).returncode
    return words if allowed else []


def predict(tmp_path: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run the script in folders whose names hold blanks."""
    defaults = {
        "FLARECPS_INPUTS": tmp_path / "the inputs",
        "FLARECPS_OUTPUTS": tmp_path / "the outputs",
        "FLARECPS_MODEL": tmp_path / "the model",
        "FLARECPS_PYTHON": sys.executable,
        "FLARECPS_OPTIONS": "--device cpu --budget flare22",
    }
    environment = os.environ | {name: str(value) for name, value in (defaults | settings).items()}
    words = [*without_network(), "sh", str(DOCKER / "predict.sh")]
    return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)


@pytest.fixture
def folders(tmp_path: Path, tiny_stores: TinyStores) -> Path:
    """Two phantom scans named as FLARE names them, an empty folder for results, a model."""
    for name in ("the inputs", "the outputs", "the model"):
        (tmp_path / name).mkdir()
    for number, source in enumerate(sorted((tiny_stores.dataset / "imagesTs").glob("*.nii.gz"))):
        shutil.copy(source, tmp_path / "the inputs" / f"FLARETs_000{number}_0000.nii.gz")
    write_model(tmp_path / "the model" / "fold0.ckpt", plan=small_plan(SPACING_MM))
    return tmp_path


def test_every_scan_becomes_a_label_map_and_nothing_else_is_written(folders: Path) -> None:
    inputs = sorted((folders / "the inputs").iterdir())
    done = predict(folders)
    assert done.returncode == 0, done.stderr
    assert "of 216 s" in done.stderr, "FLARE22's budget"
    written = sorted(path.name for path in (folders / "the outputs").iterdir())
    assert written == ["FLARETs_0000.nii.gz", "FLARETs_0001.nii.gz"]
    assert sorted((folders / "the inputs").iterdir()) == inputs
    model = folders / "the model" / "fold0.ckpt"
    assert main(["segment", str(model), str(folders / "the inputs"), str(folders / "plain"), "--device", "cpu"]) == 0
    for scan, name in zip(inputs, written, strict=True):
        labels = nibabel.load(folders / "the outputs" / name)
        assert labels.shape == nibabel.load(scan).shape
        np.testing.assert_allclose(labels.affine, nibabel.load(scan).affine, atol=1e-3)
        assert (folders / "the outputs" / name).read_bytes() == (folders / "plain" / name).read_bytes()


def test_folds_are_averaged_and_rules_applied(folders: Path) -> None:
    model = folders / "the model"
    write_model(model / "fold1.ckpt", plan=small_plan(SPACING_MM), seed=6)
    write_rules(model / "postprocessing.json", Rules({k: v for k, v in LABELS.items() if v}, True, (1,), (1, 2)))
    done = predict(folders, FLARECPS_OPTIONS="--device cpu --mode fastest")
    assert done.returncode == 0, done.stderr
    words = [*sorted(map(str, model.glob("*.ckpt"))), str(folders / "the inputs"), str(folders / "plain")]
    assert main(["segment", *words, "--device", "cpu", "--mode", "fastest", "--postprocess", "auto"]) == 0
    results = sorted((folders / "the outputs").iterdir())
    assert len(results) == 2
    for path in results:
        assert path.read_bytes() == (folders / "plain" / path.name).read_bytes()


def test_a_bad_scan_costs_no_other(folders: Path) -> None:
    (folders / "the inputs" / "FLARETs_0000_0000.nii.gz").write_bytes(b"no scan")
    done = predict(folders)
    assert done.returncode == 1
    assert "FLARETs_0000" in done.stderr
    assert [path.name for path in (folders / "the outputs").iterdir()] == ["FLARETs_0001.nii.gz"]


def test_a_missing_model_is_said_so(folders: Path) -> None:
    done = predict(folders, FLARECPS_MODEL=folders / "nowhere")
    assert done.returncode == 2
    assert "no checkpoint (*.ckpt)" in done.stderr


def test_the_image_is_made_of_what_the_repository_holds() -> None:
    """Every COPY names something that is there and that the ignore file lets through."""
    root = DOCKER.parent
    let_through = {
        line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    sources = []
    for line in (DOCKER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            sources += line.replace("${MODEL}", "docker/model").split()[1:-1]
    assert "docker/predict.sh" in sources
    assert "docker/model/" in sources
    for source in sources:
        assert (root / source).exists(), source
        assert source.split("/")[0] in let_through, source
