"""The house keeps its shape: imports only go down, and each library stays in its room.

The rules are DESIGN's table, held here as data. ``violations`` reads imports with ``ast``, so those inside functions
and under ``TYPE_CHECKING`` count too.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import flarecps

PACKAGE = Path(flarecps.__file__).parent

LAYERS: dict[str, int] = {
    "typing": 0, "errors": 0, "atomic": 0, "metric_names": 0, "anatomy": 0, "processes": 0, "method_config": 0,
    "dice": 0, "durations": 0, "locks": 0, "named_paths": 0, "verbosity": 0, "text_files": 0, "json_fields": 0,
    "case_names": 0, "installed_files": 0, "_root": 0,
    "volumes": 1, "datasets": 1, "batch_processing": 1, "kernels": 1,
    "planning": 2, "networks": 2, "losses": 2, "torch_files": 2,
    "preprocessing": 3, "checkpoint": 3, "evaluation": 3, "methods": 3,
    "data": 4, "inference": 4, "interop": 4, "reporting": 4,
    "training": 5,
    "experiments": 6,
    "cli": 7, "__main__": 8,
}  # fmt: skip

# Room -> rooms of its own layer that it may import besides itself. Everything of layer 0 is one room.
SAME_LAYER: dict[str, set[str]] = {
    "datasets": {"volumes", "batch_processing"},
    "volumes": {"batch_processing"},
    "__main__": {"cli"},
}

# Library -> the only places (room, or room/file) that may import it.
LIBRARIES: dict[str, set[str]] = {
    "SimpleITK": {"volumes"},
    "nibabel": {"volumes"},
    "pydicom": {"volumes"},
    "PIL": {"volumes"},
    "highdicom": {"volumes"},
    "torchio": {"data"},
    "lightning": {"training", "data/datamodule", "cli/training"},
    "pytorch_lightning": set(),  # one name for one library
    "wandb": {"training/dashboards", "reporting/wandb_view"},
    "wandb_workspaces": {"reporting/wandb_view"},
    "blosc2": {"preprocessing"},
    "triton": {"kernels"},
    "jsonargparse": {"cli"},
    "onnx": {"interop"},
    "onnxruntime": {"interop"},
    "matplotlib": {"reporting", "training/callbacks", "training/dashboards"},
}

# Room -> libraries and rooms it must never see.
FORBIDDEN: dict[str, set[str]] = {
    "networks": {"pathlib", "lightning", "flarecps.volumes", "flarecps.datasets"},
    "losses": {"pathlib", "lightning", "flarecps.volumes", "flarecps.datasets"},
    "methods": {"pathlib", "lightning", "flarecps.volumes", "flarecps.datasets"},
    "planning": {"torch", "torchio", "lightning", "flarecps.networks", "flarecps.losses"},
    "evaluation": {"flarecps.networks", "flarecps.checkpoint"},
}


def imports_of(source: str, package: str) -> list[tuple[int, str]]:
    """(line, dotted name) of every import; relative ones resolved against ``package``, names behind ``from`` kept."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - node.level + 1] + ([base] if base else []))
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            found += [(node.lineno, one.value) for one in node.args
                      if isinstance(one, ast.Constant) and isinstance(one.value, str)]  # fmt: skip
    return found


def room_of(dotted: str) -> str:
    """The room of ``flarecps.room.module``; "_root" for ``flarecps.__version__`` and its kind."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "_root"


def is_offer(name: str) -> bool:
    """Whether a name of the package itself is one that it offers to others from some room: ``flarecps.Segmenter``."""
    return name.startswith("flarecps.") and room_of(name) == "_root" and name != "flarecps.__version__"


def _is_or_is_in(name: str, place: str) -> bool:
    return name == place or name.startswith(place + ".")


def violations(source: str, path: str) -> list[str]:
    """What one file (its path relative to the package, such as ``losses/dice.py``) does against the rules."""
    place = path.removesuffix(".py").removesuffix("/__init__")
    if place == "__init__":
        place = "_root"
    room = place.split("/")[0]
    if room not in LAYERS:
        return [f"{path}: no such room in DESIGN's table"]
    package = ".".join(["flarecps", *Path(path).parent.parts])
    problems = []
    for line, name in imports_of(source, package):
        where = f"{path}:{line}: imports {name}"
        if is_offer(name):
            problems.append(f"{where}: inside the house it comes from its own room")
        elif place != "_root" and _is_or_is_in(name, "flarecps"):  # the root offers things of every room
            other = room_of(name)
            same = LAYERS[other] == LAYERS[room]
            allowed = other == room or LAYERS[room] == 0 or other in SAME_LAYER.get(room, set())
            if LAYERS[other] > LAYERS[room]:
                problems.append(f"{where}: upwards from layer {LAYERS[room]} to {LAYERS[other]}")
            elif same and not allowed:
                problems.append(f"{where}: sideways from {room} to {other}")
        library = name.split(".")[0]
        homes = LIBRARIES.get(library)
        if homes is not None and not any(place == home or place.startswith(home + "/") for home in homes):
            problems.append(f"{where}: {library} lives in {', '.join(sorted(homes)) or 'no room'}")
        for forbidden in FORBIDDEN.get(room, set()):
            if _is_or_is_in(name, forbidden):
                problems.append(f"{where}: {room} must not see {forbidden}")
    return problems


def test_every_module_keeps_the_rules() -> None:
    problems = []
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    for file in files:
        problems += violations(file.read_text(encoding="utf-8"), file.relative_to(PACKAGE).as_posix())
    assert not problems, "\n".join(problems)


def test_the_ground_floor_imports_no_heavy_library() -> None:
    for file in sorted(PACKAGE.glob("*.py")):
        if LAYERS.get(file.stem, 0) == 0:
            names = {name.split(".")[0] for _, name in imports_of(file.read_text(encoding="utf-8"), "flarecps")}
            assert not names & {"torch", "lightning", "torchio", "SimpleITK", "scipy"}, file


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("volumes/io.py", "from flarecps.planning.plan import Plan", "upwards from layer 1 to 2"),
        ("volumes/io.py", "def f():\n    import flarecps.cli.main", "io.py:2: imports flarecps.cli.main: upwards"),
        ("volumes/io.py", "from ..preprocessing import case", "upwards from layer 1 to 3"),
        ("volumes/io.py", "from flarecps.datasets import splits", "sideways from volumes to datasets"),
        ("losses/dice.py", "from flarecps.networks.unet import UNet", "sideways from losses to networks"),
        ("reporting/html.py", "from flarecps.inference import segmenter", "sideways from reporting to inference"),
        ("errors.py", "from flarecps.volumes.space import Space", "upwards from layer 0 to 1"),
        ("methods/supervised.py", "from flarecps.training import module", "upwards from layer 3 to 5"),
        ("experiments/stages.py", "from flarecps.cli.main import main", "upwards from layer 6 to 7"),
        ("preprocessing/case.py", "import SimpleITK as sitk", "SimpleITK lives in volumes"),
        ("evaluation/scores.py", "import nibabel", "nibabel lives in volumes"),
        ("training/module.py", "from torchio import Queue", "torchio lives in data"),
        ("data/patch_stream.py", "import lightning.pytorch as pl", "lightning lives in"),
        ("cli/main.py", "from lightning import Trainer", "lightning lives in"),
        ("training/module.py", "import pytorch_lightning", "lives in no room"),
        ("training/module.py", "import wandb", "wandb lives in reporting/wandb_view, training/dashboards"),
        ("networks/unet.py", "from pathlib import Path", "networks must not see pathlib"),
        ("losses/dice.py", "def f():\n    from pathlib import Path", "losses must not see pathlib"),
        ("cli/segment.py", "from flarecps import Segmenter", "inside the house it comes from its own room"),
        ("planning/plan.py", "if TYPE_CHECKING:\n    import torch.nn", "planning must not see torch"),
        ("planning/plan.py", 'importlib.import_module("torch")', "planning must not see torch"),
        ("evaluation/overlap.py", "from flarecps.networks import unet", "evaluation must not see flarecps.networks"),
        ("interop/onnx_export.py", "from flarecps.inference import segmenter", "sideways from interop to inference"),
        ("inference/segmenter.py", "import onnxruntime", "onnxruntime lives in interop"),
        ("cellar/wine.py", "", "no such room"),
    ],
)
def test_the_checker_finds_what_is_wrong(path: str, source: str, message: str) -> None:
    assert any(message in problem for problem in violations(source, path)), violations(source, path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("datasets/phantom.py", "from flarecps.volumes.io import write_labels"),
        ("volumes/io.py", "import SimpleITK\nimport nibabel"),
        ("training/dashboards/wandb_run.py", "import wandb"),
        ("cli/training.py", "from lightning.pytorch.cli import LightningCLI"),
        ("data/datamodule.py", "import lightning\nimport torchio"),
        ("__init__.py", "from flarecps.inference.segmenter import Segmenter"),
        ("cli/main.py", "from flarecps import __version__\nfrom flarecps.errors import FlarecpsError"),
        ("networks/unet.py", "import torch\nimport torchmetrics\nfrom . import blocks"),
        ("__main__.py", "from flarecps.cli.main import main"),
        ("metric_names.py", "from flarecps.anatomy import organs_of"),
    ],
)
def test_the_checker_lets_the_right_things_pass(path: str, source: str) -> None:
    assert violations(source, path) == []
