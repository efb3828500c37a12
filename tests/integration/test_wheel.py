"""What a wheel holds suffices: built, installed into a new environment, and used where no source tree is in sight."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
from stores import REPOSITORY

SOURCES = ("flarecps", "configs", "slurm", "pyproject.toml", "README.md", "LICENSE")
OLDEST_SETUPTOOLS = 77  # pyproject's
SMALL = ["--trainer.max_epochs", 2, "--data.iterations_per_epoch", 3, "--trainer.accelerator", "cpu"]


def outside() -> dict[str, str]:
    """An environment in which nothing leads back to the source tree."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_", "FLARECPS"))}
    return {**kept, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the sources, for a build writes into their folder; nothing is fetched."""
    try:
        found = int(importlib.metadata.version("setuptools").partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        found = 0
    if found < OLDEST_SETUPTOOLS:
        pytest.skip(f"setuptools {found or 'is missing'}; a wheel is built by {OLDEST_SETUPTOOLS} or newer")
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist", "."]
    subprocess.run([sys.executable, *build], cwd=folder, env=outside(), check=True)
    (built,) = (folder / "dist").glob("flarecps-*.whl")
    return built


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """``flarecps`` of a new environment, called in a folder of its own; what it prints. It must succeed."""
    place = tmp_path_factory.mktemp("elsewhere")
    venv.create(place / "venv", symlinks=True)
    python = place / "venv" / "bin" / "python"
    install = ["-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, *install], cwd=place, env=outside(), check=True)
    # The libraries are those of this environment; its own flarecps, an editable one as a rule, comes after the wheel's.
    (own,) = (place / "venv" / "lib").glob("python*/site-packages")
    paths = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (own / "libraries.pth").write_text("\n".join(paths) + "\n")

    def call(*words: object, name: str = "flarecps") -> str:
        given = [str(python.parent / name), *map(str, words)]
        done = subprocess.run(given, cwd=place, env=outside(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{given}: {done.stdout}\n{done.stderr}"
        return done.stdout

    home = call("-c", "import flarecps; print(flarecps.__file__)", name="python").strip()
    assert Path(home).is_relative_to(own), "the source tree is in sight"
    return call


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    tracked = [
        path for path in (REPOSITORY / "flarecps").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert {str(path.relative_to(REPOSITORY)) for path in tracked} <= set(names)
    data = {name.partition(".data/data/share/")[2] for name in names}
    for folder in ("configs", "configs/studies", "slurm"):
        kept = [path for path in (REPOSITORY / folder).iterdir() if path.is_file()]
        assert kept
        assert {f"flarecps/{folder}/{path.name}" for path in kept} <= data
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]


def test_from_convert_to_report_without_a_repository(program: Callable[..., str]) -> None:
    """The road of README on a small phantom, with a config by its name; then as a folder to hand on."""
    assert "phantom_3d" in program("configs")
    program("phantom", "phantom", "--labelled", 5, "--unlabelled", 3, "--test", 2, "--seed", 3)
    place = Path(program("-c", "import os; print(os.getcwd())", name="python").strip())
    plain = place / "plain"
    for role, images in (("imagesTr", "images"), ("labelsTr", "labels"), ("imagesUn", "unlabelled")):
        shutil.copytree(place / "phantom" / role, plain / images)
    shutil.copy(place / "phantom" / "dataset.json", plain)
    program("convert", "plain", "Dataset001_Phantom")
    program("inspect", "Dataset001_Phantom")
    program("plan", "Dataset001_Phantom", "--out", "plan.json", "--spacing", "[20,12,12]")
    program("preprocess", "Dataset001_Phantom", "plan.json", "--out", "store")
    fitted = program("fit", "--config", "phantom_3d", "--data.store", "store", "--trainer.default_root_dir", "run",
                     "--data.patch_voxels", "[16,16,16]", *SMALL)  # fmt: skip
    assert "next: flarecps segment run/checkpoints/last.ckpt" in fitted
    program("segment", "run/checkpoints/last.ckpt", "phantom/imagesTs", "run/segmentations")
    program("score", "run/segmentations", "phantom/labelsTs", "--out", "run/scores")
    program("report", "run", "--images", "phantom/imagesTs", "--references", "phantom/labelsTs", "--out", "report.html")
    assert "<html" in (place / "report.html").read_text(encoding="utf-8")
    program("package", "run/checkpoints/last.ckpt", "model", "--scores", "run/scores")
    assert "Mean ± SD over 2 cases" in (place / "model" / "README.md").read_text(encoding="utf-8")
    script = "from flarecps.experiments.runner import FIT_SCRIPT; print(FIT_SCRIPT.is_file(), FIT_SCRIPT)"
    assert program("-c", script, name="python").strip() == f"True {place}/venv/share/flarecps/slurm/fit.sbatch"
