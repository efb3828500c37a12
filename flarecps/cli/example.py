"""A worked example in a minute: a synthetic data set, CPS and its control trained on it, and their segmentations.

The notebooks run on it. It shows how things go together, not how well they can do: see ``flarecps demo`` for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flarecps.errors import FlarecpsError

LABELLED, UNLABELLED, TEST = 6, 6, 3
SPACING_MM = (12.0, 12.0, 12.0)  # coarse: a scan is 24×33×33 voxels
PATCH_VOXELS = (16, 16, 16)
EPOCHS, STEPS = 6, 12
METHODS = {"CPS": ("cps", "phantom_3d.yaml"), "supervised control": ("supervised", "phantom_3d_supervised.yaml")}


@dataclass(frozen=True)
class _Example:
    """Where the example lies."""

    dataset: Path
    plan: Path
    store: Path
    runs: dict[str, Path]  # by method

    @property
    def images(self) -> Path:
        """The scans that no run has seen."""
        return self.dataset / "imagesTs"

    @property
    def references(self) -> Path:
        """The label maps of ``images``."""
        return self.dataset / "labelsTs"

    @property
    def predictions(self) -> dict[str, Path]:
        """The segmentations of ``images``, by method."""
        return {method: run / "segmentations" for method, run in self.runs.items()}


def example_dataset(folder: Path | str) -> Path:
    """The folder of a small synthetic data set, below ``folder``; made if it is not there yet."""
    from flarecps.datasets.phantom import write_phantom

    dataset = Path(folder) / "phantom"
    if not (dataset / "dataset.json").is_file():  # written last
        write_phantom(dataset, LABELLED, UNLABELLED, TEST, "small", workers=1, progress=False)
    return dataset


def example_runs(folder: Path | str) -> _Example:
    """The whole example below ``folder``: what is not there yet is made, by the commands a user would type.

    Takes about half a minute on one core. Raises FlarecpsError when a training fails.
    """
    from flarecps.datasets.catalogue import read_catalogue
    from flarecps.inference.folders import segment_folder
    from flarecps.inference.settings import SegmentationSettings
    from flarecps.planning.fingerprint import fingerprint_dataset
    from flarecps.planning.plan import write_plan
    from flarecps.planning.planner import plan_dataset
    from flarecps.preprocessing.dataset import preprocess_dataset

    folder = Path(folder)
    runs = {method: folder / "runs" / name for method, (name, _) in METHODS.items()}
    example = _Example(example_dataset(folder), folder / "plan.json", folder / "store", runs)
    catalogue = read_catalogue(example.dataset)
    if not example.plan.is_file():
        fingerprint, _ = fingerprint_dataset(catalogue, workers=1, progress=False)
        plan = plan_dataset(fingerprint, catalogue, spacing_mm=SPACING_MM, patch_voxels=PATCH_VOXELS)
        preprocess_dataset(catalogue, plan, example.store, workers=1, progress=False)
        write_plan(example.plan, plan)
    on_cpu = SegmentationSettings(device="cpu")
    for method, run in runs.items():
        if not (run / "done").is_file():
            _fit(METHODS[method][1], example.store, run, crossed=method == "CPS")
            (run / "done").touch()
        checkpoint = run / "checkpoints" / "last.ckpt"
        segment_folder(checkpoint, example.images, example.predictions[method], progress=False, settings=on_cpu)
    return example


def _fit(config: str, store: Path, run: Path, crossed: bool) -> None:
    import os

    from flarecps.cli.configs import config_path
    from flarecps.cli.training import lightning_command

    os.environ.setdefault("WANDB_MODE", "disabled")  # nobody wants an example on a dashboard

    lambda_ = {"model.method.init_args.ramp.start": 2, "model.method.init_args.ramp.length": 3} if crossed else {}
    settings = {
        "config": config_path(config),
        "data.store": store,
        "data.fold": 0,  # validation shows in the curves
        "data.patch_voxels": list(PATCH_VOXELS),
        "data.iterations_per_epoch": STEPS,
        "data.validation_patches": 4,
        "trainer.default_root_dir": run,
        "trainer.max_epochs": EPOCHS,
        "trainer.accelerator": "cpu",
        "trainer.enable_model_summary": "false",
        "trainer.enable_progress_bar": "false",
        "model.topology.features": [8, 16, 32],
        "model.topology.strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "model.topology.kernels": [[3, 3, 3]] * 3,
        **lambda_,
        "model.scheduler.init_args.total_iters": EPOCHS,
        "pictures": 1,
        "overwrite": "true",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    code = lightning_command(["fit", *words])
    if code:
        raise FlarecpsError(f"{run}: the example's training ended with exit code {code}; its message stands above")
