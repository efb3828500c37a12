"""Bad input at the real command line: one clear line, an exit code that says so, and nothing written astray."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flarecps.checkpoint import model_entry
from flarecps.cli.main import main
from flarecps.networks import PlainUNet
from flarecps.planning.plan import Intensity, Plan, Topology, write_plan
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

SHAPE = (12, 20, 24)
SPACING_MM = (5.0, 4.0, 4.0)
LABELS = {"background": 0, "liver": 1, "spleen": 2}
MISTAKE, FAILED = 2, 1
Plant = Callable[[Path], None]


def scan(seed: int) -> np.ndarray:
    hu = np.full(SHAPE, -1000, np.int16)
    hu[:, 3:-3, 3:-3] = np.random.default_rng(seed).normal(40, 20, (SHAPE[0], SHAPE[1] - 6, SHAPE[2] - 6))
    return hu


def labels() -> np.ndarray:
    map_ = np.zeros(SHAPE, np.uint8)
    map_[4:9, 6:12, 12:18] = 1
    map_[4:9, 6:10, 4:8] = 2
    return map_


def write(path: Path, array: np.ndarray, spacing_mm: tuple[float, float, float] = SPACING_MM) -> None:
    write_volume(path, array, Space.canonical(array.shape, spacing_mm))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A sound data set; `bad` is the labelled case that tests spoil."""
    root = tmp_path / "dataset"
    for index, name in enumerate(["bad", "good_1", "good_2"]):
        write(root / f"imagesTr/{name}_0000.nii.gz", scan(index))
        write(root / f"labelsTr/{name}.nii.gz", labels())
    write(root / "imagesUn/pool_0000.nii.gz", scan(7))
    (root / "dataset.json").write_text(json.dumps({"labels": LABELS, "channel_names": {"0": "CT"}}))
    return root


def plan() -> Plan:
    return Plan(
        dataset="made up",
        dimensions=3,
        labels=LABELS,
        left_right_pairs=(),
        channels=("CT",),
        spacing_mm=SPACING_MM,
        axis_order=(0, 1, 2),
        median_shape_voxels=SHAPE,
        patch_voxels=(8, 16, 16),
        topology=Topology((4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3))),
        global_batch={"labelled": 1, "unlabelled": 1},
        batch_dice=False,
        intensity=Intensity("ct", -200, 300, 40, 60, "global"),
        fingerprint={},
        memory_gb=0.1,
    )


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    write_plan(path, plan())
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained but whole checkpoint."""
    topology = plan().topology
    network = PlainUNet(1, len(LABELS), topology.features, topology.strides, topology.kernels)
    siblings = torch.nn.ModuleList([network])
    state = {f"siblings.{name}": value for name, value in siblings.state_dict().items()}
    path = tmp_path / "model.ckpt"
    torch.save({"flarecps": model_entry(plan(), siblings, 1), "state_dict": state}, path)
    return path


class Terminal:
    """Runs commands in a working directory of their own and watches what they say and write."""

    def __init__(self, root: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.root, self.out, self.capture = root, root / "out", capture
        self.said = ""

    def __call__(self, *words: object) -> int:
        """The exit code; fails when anything outside ``out`` was made, changed or removed."""
        before = self._files()
        self.capture.readouterr()
        code = main([str(word) for word in words])
        self.said = self.capture.readouterr().err
        assert self._files() == before, "something outside the output folder was touched"
        assert "Traceback" not in self.said
        return code

    def _files(self) -> dict[Path, tuple[int, int]]:
        found = (path for path in self.root.rglob("*") if path != self.out and self.out not in path.parents)
        return {path: (path.stat().st_mtime_ns if path.is_file() else 0, path.stat().st_size) for path in found}

    def line(self, case: str) -> str:
        """The one line about a case."""
        lines = [line for line in self.said.splitlines() if re.search(rf"(^| ){case}: ", line)]
        assert len(lines) == 1, self.said
        return lines[0]


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    elsewhere = tmp_path / "working_directory"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return Terminal(tmp_path, capsys)


def assert_one_line(said: str, command: str, *words: str) -> None:
    assert said.startswith(f"flarecps {command}: ")
    assert said.count("\n") == 1, said
    for word in words:
        assert word in said


# --- folders and files that are not there


@pytest.mark.parametrize("command", ["inspect", "plan", "preprocess", "segment", "score"])
def test_missing_folder(command: str, terminal: Terminal, plan_file: Path, checkpoint: Path) -> None:
    absent = terminal.root / "absent"
    words = {
        "inspect": ["inspect", absent],
        "plan": ["plan", absent, "--out", terminal.out / "plan.json"],
        "preprocess": ["preprocess", absent, plan_file, "--out", terminal.out],
        "segment": ["segment", checkpoint, absent, terminal.out],
        "score": ["score", absent, absent, "--out", terminal.out],
    }[command]
    assert terminal(*words) == MISTAKE
    assert_one_line(terminal.said, command, "absent", "no such")
    assert not terminal.out.exists()


def test_missing_plan(terminal: Terminal, dataset: Path) -> None:
    assert terminal("preprocess", dataset, terminal.root / "absent.json", "--out", terminal.out) == MISTAKE
    assert_one_line(terminal.said, "preprocess", "absent.json")
    assert not terminal.out.exists()


def test_missing_store(terminal: Terminal) -> None:
    config = terminal.root / "config.yaml"
    config.write_text(
        f"trainer: {{default_root_dir: {terminal.out}, max_epochs: 1, accelerator: cpu}}\n"
        f"data: {{store: {terminal.root / 'absent'}}}\n"
    )
    # a process of its own: Lightning's log handler keeps the standard error it first saw, here another test's
    done = subprocess.run(
        [sys.executable, "-m", "flarecps", "fit", "--config", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == MISTAKE
    last = done.stderr.splitlines()[-1]
    assert last.startswith("flarecps fit: ")
    assert "absent" in last
    assert "flarecps preprocess" in last
    assert "Traceback" not in done.stderr
    assert not terminal.out.exists()
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("command", ["inspect", "plan", "preprocess"])
def test_no_labelled_case(command: str, terminal: Terminal, dataset: Path, plan_file: Path) -> None:
    for path in (dataset / "labelsTr").iterdir():
        path.unlink()
    words = {
        "inspect": ["inspect", dataset],
        "plan": ["plan", dataset, "--out", terminal.out / "plan.json"],
        "preprocess": ["preprocess", dataset, plan_file, "--out", terminal.out],
    }[command]
    assert terminal(*words) == MISTAKE
    assert_one_line(terminal.said, command, "no labelled case", str(dataset))
    assert not terminal.out.exists()


# --- one bad case among good ones


def truncated_image(root: Path) -> None:
    path = root / "imagesTr/bad_0000.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_labels(root: Path) -> None:
    path = root / "labelsTr/bad.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_grid(root: Path) -> None:
    write(root / "labelsTr/bad.nii.gz", labels(), (5.0, 4.0, 4.5))


def unknown_label(root: Path) -> None:
    map_ = labels()
    map_[0, 0, 0] = 9
    write(root / "labelsTr/bad.nii.gz", map_)


def one_slice(root: Path) -> None:
    write(root / "imagesTr/bad_0000.nii.gz", scan(1)[:1])
    write(root / "labelsTr/bad.nii.gz", labels()[:1])


def nan_voxels(root: Path) -> None:
    hu = scan(1).astype(np.float32)
    hu[5, 6, 7] = np.nan
    write(root / "imagesTr/bad_0000.nii.gz", hu)


BAD_CASES = [
    (truncated_image, "bad_0000.nii.gz"),
    (truncated_labels, "labelsTr/bad.nii.gz"),
    (other_grid, "spacing"),
    (unknown_label, "9"),
    (one_slice, "one-slice"),
    (nan_voxels, "NaN"),
]


@pytest.mark.parametrize(("plant", "words"), BAD_CASES)
def test_inspect_says_no(plant: Plant, words: str, terminal: Terminal, dataset: Path) -> None:
    plant(dataset)
    report = terminal.out / "report.json"
    assert terminal("inspect", dataset, "--json", report, "--workers", 1, "--no-progress") == FAILED
    errors = [one for one in json.loads(report.read_text())["findings"] if one["severity"] == "error"]
    assert [one["case"] for one in errors] == ["bad"]
    assert words in errors[0]["message"]


@pytest.mark.parametrize(("plant", "words"), BAD_CASES)
def test_plan_is_made_from_the_others(plant: Plant, words: str, terminal: Terminal, dataset: Path) -> None:
    plant(dataset)
    path = terminal.out / "plan.json"
    assert terminal("plan", dataset, "--out", path, "--workers", 1, "--no-progress") == FAILED
    assert words in terminal.line("bad")
    assert json.loads(path.read_text())["fingerprint"]["cases"]["labelled"] == 2


@pytest.mark.parametrize(("plant", "words"), BAD_CASES)
def test_preprocess_does_the_others(
    plant: Plant, words: str, terminal: Terminal, dataset: Path, plan_file: Path
) -> None:
    plant(dataset)
    command = ["preprocess", dataset, plan_file, "--out", terminal.out, "--workers", 1, "--no-progress"]
    assert terminal(*command) == FAILED
    assert words in terminal.line("bad")
    stored = {path.name for path in (terminal.out / "cases").iterdir()}
    assert stored == {"good_1", "good_2", "pool"}
    write(dataset / "imagesTr/bad_0000.nii.gz", scan(0))
    write(dataset / "labelsTr/bad.nii.gz", labels())
    assert terminal(*command) == 0, "mended, the missing case is added"
    assert {path.name for path in (terminal.out / "cases").iterdir()} == stored | {"bad"}


def test_preprocess_in_several_processes(terminal: Terminal, dataset: Path, plan_file: Path) -> None:
    truncated_image(dataset)
    assert terminal("preprocess", dataset, plan_file, "--out", terminal.out, "--workers", 2, "--no-progress") == FAILED
    assert "bad_0000.nii.gz" in terminal.line("bad")
    assert {path.name for path in (terminal.out / "cases").iterdir()} == {"good_1", "good_2", "pool"}


# --- segment and score


def text_file(path: Path) -> None:
    path.write_text("not a checkpoint")


def foreign_weights(path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, path)


def pickled_code(path: Path) -> None:
    torch.save({"flarecps": Path("an object, not a plain type")}, path)


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [text_file, foreign_weights, pickled_code, folder])
@pytest.mark.parametrize("command", ["segment", "summary"])
def test_a_checkpoint_that_is_not_one(
    make: Plant, command: str, terminal: Terminal, dataset: Path, tmp_path: Path
) -> None:
    path = tmp_path / "strange.ckpt"
    make(path)
    words = [path, dataset / "imagesTr", terminal.out] if command == "segment" else [path]
    assert terminal(command, *words) == MISTAKE
    assert_one_line(terminal.said, command, "strange.ckpt", "checkpoint")
    assert not terminal.out.exists()


def test_a_truncated_checkpoint(terminal: Terminal, dataset: Path, checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    assert terminal("segment", checkpoint, dataset / "imagesTr", terminal.out) == MISTAKE
    assert_one_line(terminal.said, "segment", "model.ckpt", "copied completely")
    assert not terminal.out.exists()


@pytest.mark.parametrize(("plant", "words"), [case for case in BAD_CASES if case[0] in
                                             (truncated_image, one_slice, nan_voxels)])  # fmt: skip
def test_segment_does_the_others(plant: Plant, words: str, terminal: Terminal, dataset: Path, checkpoint: Path) -> None:
    plant(dataset)
    assert terminal("segment", checkpoint, dataset / "imagesTr", terminal.out, "--device", "cpu") == FAILED
    assert words in terminal.line("bad")
    assert {path.name for path in terminal.out.glob("*.nii.gz")} == {"good_1.nii.gz", "good_2.nii.gz"}


def test_score_names_the_prediction_on_another_grid(terminal: Terminal, dataset: Path) -> None:
    predictions = terminal.root / "predictions"
    for name in ("good_1", "good_2"):
        write(predictions / f"{name}.nii.gz", labels())
    write(predictions / "bad.nii.gz", labels()[:-1])
    code = terminal("score", predictions, dataset / "labelsTr", "--out", terminal.out, "--protocol", "strict",
                    "--workers", 1)  # fmt: skip
    assert code == FAILED
    assert "11×20×24" in terminal.line("bad")
    rows = (terminal.out / "scores.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["good_1.nii.gz", "good_2.nii.gz"]
