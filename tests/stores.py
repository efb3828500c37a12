"""A tiny phantom as case stores, and trainings on them by the real command line: what the tests of training share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import flarecps.cli.training  # noqa: F401  # Lightning logs to the stderr of whoever imports it first: no test's own
from flarecps.cli.main import main
from flarecps.datasets.catalogue import read_catalogue
from flarecps.datasets.phantom import write_phantom
from flarecps.planning.fingerprint import fingerprint_dataset
from flarecps.planning.planner import plan_dataset
from flarecps.preprocessing.dataset import preprocess_dataset

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "configs"
SPACING_MM = (20.0, 12.0, 12.0)  # slice, row, column: scans of about 15×34×34 voxels
LABELLED, UNLABELLED, TEST = 5, 3, 2  # five labelled cases are the least that have folds
PATCHES = {3: "[16,16,16]", 2: "[32,32]"}  # whole multiples of 8, the total stride of the small configs


@dataclass(frozen=True)
class TinyStores:
    """A phantom data set and its case stores."""

    dataset: Path
    three: Path  # 3D
    two: Path  # 2D

    def of(self, dimensions: int) -> Path:
        return self.three if dimensions == 3 else self.two


def write_stores(folder: Path) -> TinyStores:
    """Phantom, fingerprint, plans and stores under ``folder``, by the functions behind the commands."""
    stores = TinyStores(folder / "phantom", folder / "three", folder / "two")
    write_phantom(stores.dataset, LABELLED, UNLABELLED, TEST, "small", seed=3, workers=1, progress=False)
    catalogue = read_catalogue(stores.dataset)
    fingerprint, failed = fingerprint_dataset(catalogue, workers=1, progress=False)
    assert not failed
    for dimensions, patch in ((3, (16, 16, 16)), (2, (32, 32))):
        plan = plan_dataset(fingerprint, catalogue, dimensions, spacing_mm=SPACING_MM, patch_voxels=patch)  # type: ignore[arg-type]
        outcomes = preprocess_dataset(catalogue, plan, stores.of(dimensions), workers=1, progress=False)
        assert not any(outcome.failed for outcome in outcomes)
    return stores


def fit_words(config: Path | str, stores: TinyStores, run: Path, *more: object, epochs: int = 2) -> list[str]:
    """``flarecps fit`` with a config of ``configs/``, two steps an epoch, on the tiny store; ``more`` comes last."""
    config = CONFIGS / config
    dimensions = 2 if "_2d" in config.stem else 3
    words = ["fit", "--config", config, "--data.store", stores.of(dimensions), "--trainer.default_root_dir", run]
    words += ["--trainer.max_epochs", epochs, "--data.iterations_per_epoch", 2, "--data.workers", 0]
    words += ["--data.patch_voxels", PATCHES[dimensions], "--trainer.precision", "32-true"]
    words += ["--trainer.accelerator", "cpu", "--trainer.devices", 1, "--trainer.enable_model_summary", "false"]
    return [str(word) for word in (*words, *more)]


def fit(config: Path | str, stores: TinyStores, run: Path, *more: object, epochs: int = 2) -> Path:
    """The run folder of a training that succeeded; see ``fit_words``."""
    assert main(fit_words(config, stores, run, *more, epochs=epochs)) == 0
    return run
