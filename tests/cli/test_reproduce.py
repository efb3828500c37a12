"""``flarecps reproduce flare22`` on a stand-in folder: every stage by the real commands, interrupted and continued."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image
from stores import SPACING_MM  # also imports Lightning's part, as Lightning logs to whoever does so first

from flarecps.cli.main import main
from flarecps.datasets.phantom import write_phantom
from flarecps.datasets.splits import fold
from flarecps.experiments import runner
from flarecps.experiments.study import forecast
from flarecps.training.defaults import DRY_RUN_FILE

FLARE22 = Path(__file__).resolve().parents[2] / "configs" / "studies" / "flare22.yaml"
FIT = {
    "trainer.max_epochs": 2, "trainer.accelerator": "cpu", "trainer.check_val_every_n_epoch": 1,
    "trainer.precision": "32-true", "trainer.enable_model_summary": False, "data.workers": 0,
    "trainer.enable_progress_bar": False, "data.iterations_per_epoch": 2,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "2d": {
        "data.patch_voxels": [32, 32],
        "model.topology": {"features": [4, 8], "strides": [[1, 1], [2, 2]], "kernels": [[3, 3], [3, 3]]},
    },
    "3d": {
        "data.patch_voxels": [16, 16, 16],
        "model.topology": {"features": [4, 8], "strides": [[1] * 3, [2] * 3], "kernels": [[3] * 3, [3] * 3]},
    },
}
RUNS = [f"{kind}_{method}" for kind in ("2d", "3d") for method in ("supervised", "cps")]


def tiny(path: Path, **changes: Any) -> Path:
    """The protocol flare22, sized for this test."""
    content = yaml.safe_load(FLARE22.read_text())
    content["settings"] |= FIT
    content["checkpoint"] = "last"  # the best may be of the first epoch, in which CPS still is its control
    content["plan"] = {"spacing": str(list(SPACING_MM)), "progress": False}
    for kind, patch in (("2d", "[32, 32]"), ("3d", "[16, 16, 16]")):
        content["plans"][kind]["patch"] = patch
    content["segment"] |= {"device": "cpu", "mirror": False}
    for name, arm in content["arms"].items():
        arm["settings"] = OWN[name[:2]] | ({"model.method.init_args.ramp.length": 1} if "cps" in name else {})
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def flare22(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom in FLARE22's folders: 5 labelled, 3 unlabelled, 4 validation (3 with labels), 1 test scan."""
    root = tmp_path_factory.mktemp("flare22")
    phantom, data = root / "phantom", root / "FLARE22"
    write_phantom(phantom, 5, 3, 5, "small", seed=3, workers=1, progress=False)

    def move(source: str, target: str) -> None:
        (data / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(phantom / source, data / target)

    for number in range(1, 6):
        move(f"imagesTr/labelled_{number:03}_0000.nii.gz",
             f"Training/FLARE22_LabeledCase50/images/FLARE22_Tr_{number:04}_0000.nii.gz")  # fmt: skip
        move(f"labelsTr/labelled_{number:03}.nii.gz",
             f"Training/FLARE22_LabeledCase50/labels/FLARE22_Tr_{number:04}.nii.gz")  # fmt: skip
    for number in range(1, 4):
        move(f"imagesUn/unlabelled_{number:03}_0000.nii.gz",
             f"Training/FLARE22_UnlabeledCase1-500/Case_{number:05}_0000.nii.gz")  # fmt: skip
    for number, name in enumerate(("0002", "0021", "0042", "0050"), start=1):
        move(f"imagesTs/test_{number:03}_0000.nii.gz", f"Validation/images/FLARETs_{name}_0000.nii.gz")
        if name != "0050":
            move(f"labelsTs/test_{number:03}.nii.gz", f"Validation/labels/FLARETs_{name}.nii.gz")
    move("imagesTs/test_005_0000.nii.gz", "Testing/images/FLARE22_Ts_0001_0000.nii.gz")
    move("labelsTs/test_005.nii.gz", "Testing/labels/FLARE22_Ts_0001.nii.gz")
    return data


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands run in this process (each process would import everything anew), and are kept here."""
    kept: list[list[str]] = []

    def in_this_process(words: Sequence[str], descriptor: int) -> int:
        assert os.fstat(descriptor)  # the lock, to be inherited
        kept.append(list(words))
        return main(list(words))

    def dry_run(words: Sequence[str], env: dict[str, str], **_: Any) -> SimpleNamespace:
        Path(env[DRY_RUN_FILE]).write_text('{"training_s": 3600}')
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(runner, "run_flarecps", in_this_process)
    monkeypatch.setattr(forecast, "subprocess", SimpleNamespace(run=dry_run))
    return kept


def words(data: Path, out: Path, *more: str) -> list[str]:
    return ["reproduce", "flare22", "--data", str(data), "--out", str(out), *more]


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_every_stage_runs_once_and_the_tables_hold_what_was_scored(
    flare22: Path, ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, given, before = tmp_path / "out", tiny(tmp_path / "tiny.yaml"), tree(flare22)
    again = words(flare22, out, "--other-counts", "--protocol", str(given), "--workers", "1")
    kept = runner.run_flarecps

    def interrupted(words: Sequence[str], descriptor: int) -> int:
        if "flare22_3d.yaml" in " ".join(words):
            raise KeyboardInterrupt
        return kept(words, descriptor)

    monkeypatch.setattr(runner, "run_flarecps", interrupted)
    assert main(again) == 130
    first = [line[0] for line in ran]
    assert first == ["inspect", "plan", "preprocess", "plan", "preprocess", *["fit", "segment", "segment"] * 3]
    assert main([*again, "--stages", "paper_tables"]) == 0  # what is there so far
    assert "not run" in (out / "tables.md").read_text()

    monkeypatch.setattr(runner, "run_flarecps", kept)
    capsys.readouterr()
    assert main(words(flare22, out, "--other-counts", "--workers", "1")) == 0, "the protocol is kept"
    said = capsys.readouterr().out
    assert "one training of each method says nothing of other trainings" in said
    assert f"next: flarecps segment {out}/runs/default/" in said
    assert " to the end" in said
    later = [line[0] for line in ran[len(first) :]]
    assert later == [
        "fit", "segment", "segment", *["postprocess", "score"] * 4, "compare", *["segment"] * 4, "compare", "compare",
        "segment", "score", "figures",
    ]  # fmt: skip
    assert len({tuple(line) for line in ran}) == len(ran), "no command twice"
    check_settings(ran, out)
    check_tables(out)
    assert tree(flare22) == before, "the data is not written to"
    with Image.open(out / "figure_5" / "cases.png") as picture:
        assert picture.width > 600

    count = len(ran)
    assert main(again) == 0
    assert len(ran) == count, "all stands"
    tiny(given, seeds=2)
    assert main(again) == 2
    assert "began with another protocol" in capsys.readouterr().err
    assert len(ran) == count


def check_settings(ran: list[list[str]], out: Path) -> None:
    """Section 2.1 for validation scans, section 4.3 for the test set; post-processing only for the former, by the
    held-out scans of the trainings' own fold."""
    segmented = [line for line in ran if line[0] == "segment"]
    for line in segmented:
        test, inference = "/held_out/test/" in line[2], ["--sibling", "1", "--mode", "normal", "--step", "0.7"]
        wanted = ["--sibling", "1", "--mode", "fastest", "--step", "0.7"] if test else inference
        assert line[4 : 4 + len(wanted)] == wanted
        assert line[1].endswith("/checkpoints/last.ckpt")
        assert ("--postprocess" in line) == ("/held_out/without_labels/" in line[2])
    assert sum("--enforce-spacing" in line for line in segmented) == 1
    assert all("official" in line for line in ran if line[0] == "score")
    scans = {path.name[:-12] for path in (out / "held_out" / "default.validation" / "images").iterdir()}
    held_out = fold([f"FLARE22_Tr_{number:04}" for number in range(1, 6)], 0)[1]
    assert scans == {*held_out}
    for name in RUNS:
        rules = json.loads((out / "rules" / "determined" / "default" / name / "fold_0/seed_0/1.json").read_text())
        assert rules["evidence"]["scans"] == [*held_out]
        config = yaml.safe_load((out / "runs/default" / name / "fold_0/seed_0/config.yaml").read_text())
        assert (config["data"]["fold"], Path(config["data"]["store"]).name) == (0, f"store_{name[:2]}_global")


def check_tables(out: Path) -> None:
    """Cells against means taken from the score tables by other means; counts and remarks."""

    def mean(method: str, column: str, cases: Sequence[str]) -> float:
        of_test = method == "3d_cps_test"
        folder = "test/scores" if of_test else f"scores/determined/default/{method}/fold_0/seed_0/1"
        with (out / folder / "scores.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["Name"].split(".")[0] in cases]
        assert len(rows) == len(cases)
        return sum(float(row[column]) for row in rows) / len(rows)

    titles = {"2D Baseline": "2d_supervised", "2D Baseline+CPS": "2d_cps", "3D Baseline": "3d_supervised",
              "3D Baseline+CPS": "3d_cps", "3D-CPS": "3d_cps_test"}  # fmt: skip
    judged = ["FLARETs_0002", "FLARETs_0021", "FLARETs_0042"]
    seen = set()
    for number in (3, 4, 5, 6):
        with (out / f"table_{number}.csv").open() as file:
            rows = list(csv.DictReader(file))
        cases = ["FLARE22_Ts_0001"] if number == 6 else judged
        for row in rows:
            assert row["cases"] == str(len(cases))
            if row["organ"] != "mean":
                seen.add((number, row["method"], row["organ"], row["here"]))
                column = f"{row['organ']}_{row['measure']}"
                assert float(row["here"]) == pytest.approx(mean(titles[row["method"]], column, cases), abs=6e-5)
    for method in ("2D Baseline", "3D Baseline"):  # or two columns exchanged would not be noticed
        assert {one[2:] for one in seen if one[1] == method} != {one[2:] for one in seen if one[1] == f"{method}+CPS"}
    page = (out / "tables.md").read_text()
    for said in ("5 labelled scans, the paper has 50", "4 validation (3 with labels)", "checkpoint: last",
                 "scoring: official",
                 "the paper does not name its 20", "Here: mean over 3 cases; the paper's are over 50."):  # fmt: skip
        assert said in page
    protocol = next(line for line in page.splitlines() if line.startswith("| Patch size"))
    assert [cell.strip() for cell in protocol.split("|")[2:-1]] == ["512×512", "32×32", "112×160×128", "16×16×16"]
    hours = next(line for line in page.splitlines() if line.startswith("| Training time"))
    assert hours.count("hours (CPU") == 2
    assert "it was continued" in hours


def test_a_dry_run_prints_every_command_and_makes_nothing(
    flare22: Path, ran: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(flare22, tmp_path / "out", "--other-counts", "--dry-run")) == 0
    said = capsys.readouterr().out
    commands = [line for line in said.splitlines() if line.startswith("flarecps ")]
    assert len(commands) == 1 + 2 * 2 + 4 * (1 + 2 + 2) + 1 + 4 + 2 + 2 + 1
    assert sum(line.startswith("flarecps fit --config ") for line in commands) == 4
    assert said.count("--mode normal --step 0.7 --mirror") == 3 * 4
    assert said.count("/checkpoints/best.ckpt") == 4 * 3 + 1
    assert said.count("--mode fastest --step 0.7 --no-mirror --enforce-spacing") == 1
    assert not (tmp_path / "out").exists()
    assert not ran


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "5 labelled scans, the paper has 50; 3 unlabelled scans, the paper uses the first 1000"),
        (["--other-counts", "--stages", "train_4d"], "--stages train_4d: no such stage"),
        (["--other-counts", "--validation-20", "NAMES"], "FLARETs_0050 is no validation case with labels"),
        (
            ["--other-counts", "--protocol", "kbp"],
            "does not fill the paper's tables: expected arms trained: 2d_supervised",
        ),
        (["--other-counts", "--protocol", "flare23"], "did you mean flare22?"),
        (["--other-counts", "--without", "FLARE22_Tr_001"], "did you mean FLARE22_Tr_0001?"),
        (["--other-counts", "--seeds", "0"], "expected 1 or more"),
    ],
)
def test_mistakes_are_named(
    flare22: Path, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "NAMES").write_text("FLARETs_0002\nFLARETs_0050\n")
    given = [str(tmp_path / word) if word == "NAMES" else word for word in more]
    assert main(words(flare22, tmp_path / "out", *given)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_the_former_version_is_left_alone(
    flare22: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "stages").mkdir(parents=True)
    (tmp_path / "out" / "stages" / "data.json").write_text("{}")
    before = tree(tmp_path / "out")
    assert main(words(flare22, tmp_path / "out", "--other-counts")) == 2
    assert "was begun by a former version, whose stages were others; choose another --out" in capsys.readouterr().err
    assert tree(tmp_path / "out") == before


def test_nothing_is_written_into_the_data(flare22: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(flare22)
    assert main(words(flare22, flare22 / "out", "--other-counts")) == 2
    assert "lies in the data's folder" in capsys.readouterr().err
    assert tree(flare22) == before


def test_without_labels_and_test_scans_the_cells_say_so(
    flare22: Path, ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Everything but what is lacking is done: trainings, and label maps for the challenge's server."""
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(flare22, data)
    shutil.rmtree(data / "Validation" / "labels")
    shutil.rmtree(data / "Testing")

    def left_behind(words: Sequence[str], _: int) -> int:
        ran.append(list(words))
        given = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
        after = dict(itertools.pairwise(words))
        if words[0] in ("inspect", "plan"):
            Path(after.get("--json") or after["--out"]).write_text("{}")
        elif words[0] == "preprocess":
            Path(after["--out"]).mkdir()
        elif words[0] == "fit":
            run = Path(given["trainer.default_root_dir"])
            (run / "checkpoints").mkdir(parents=True)
            (run / "checkpoints" / "last.ckpt").touch()
            (run / "plan.json").write_text("{}")
        else:
            shutil.copytree(Path(words[2]).with_name("labels"), words[3], dirs_exist_ok=True)
        return 0

    monkeypatch.setattr(runner, "run_flarecps", left_behind)
    assert main(words(data, out, "--other-counts", "--without", "FLARE22_Tr_0001")) == 2  # 4 scans make no five folds
    capsys.readouterr()
    assert main(words(data, out, "--other-counts")) == 0
    assert "not done: score_determined_default.2d_cps.fold_0.seed_0.1: no reference labels" in capsys.readouterr().err
    assert [line[0] for line in ran].count("fit") == 4
    unlabelled = [line for line in ran if "/held_out/without_labels/" in line[2]]
    assert [Path(line[3]).name for line in unlabelled] == RUNS
    page = (out / "tables.md").read_text()
    assert page.count("no reference labels of validation scans in the data") >= 14 * 12
    assert page.count("no test scans in the data (FLARE22 keeps them hidden)") == 14 * 2


def test_trainings_are_handed_to_slurm(
    flare22: Path, tmp_path: Path, submitted: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(words(flare22, out, "--other-counts", "--submit", "--sbatch=--time=3-0")) == 0
    assert "judge: job 103" in capsys.readouterr().out
    assert all("--time=3-0" in words for words in submitted)
    tasks = [path.read_text() for path in sorted((out / "slurm" / "trainings_0").glob("*.sh"))]
    assert [next(name for name in RUNS if f"train_default.{name}." in text) for text in tasks] == RUNS
    assert submitted[2][-8:] == [
        "reproduce", "flare22", "--data", str(flare22), "--out", str(out), "--workers", "2", "--other-counts"
    ][-8:]  # fmt: skip
