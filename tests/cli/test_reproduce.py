"""``flarecps reproduce flare22`` on a stand-in folder: every stage by the real commands, interrupted and continued."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from PIL import Image
from stores import SPACING_MM  # also imports Lightning's part, as Lightning logs to whoever does so first

from flarecps.cli.main import main
from flarecps.datasets.phantom import write_phantom
from flarecps.experiments import runner
from flarecps.experiments.flare22 import PAPER_INFERENCE, TEST_INFERENCE

TINY = {
    "plan": ["--spacing", str(list(SPACING_MM)), "--no-progress"],
    "plan_2d": ["--patch", "[32, 32]"],
    "plan_3d": ["--patch", "[16, 16, 16]"],
    "preprocess": ["--no-progress"],
    "inspect": ["--no-progress"],
    "fit": [
        "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--trainer.check_val_every_n_epoch", "1",
        "--trainer.precision", "32-true", "--trainer.enable_model_summary", "false", "--data.workers", "0",
        "--trainer.enable_progress_bar", "false", "--data.iterations_per_epoch", "2", "--model.ramp.length", "1",
    ],
    "fit_2d": [
        "--data.patch_voxels", "[32, 32]", "--model.topology",
        "{features: [4, 8], strides: [[1, 1], [2, 2]], kernels: [[3, 3], [3, 3]]}",
    ],
    "fit_3d": [
        "--data.patch_voxels", "[16, 16, 16]", "--model.topology",
        "{features: [4, 8], strides: [[1, 1, 1], [2, 2, 2]], kernels: [[3, 3, 3], [3, 3, 3]]}",
    ],
    "segment": ["--device", "cpu", "--no-mirror"],
    "score": ["--workers", "1"],
    "compare": ["--resamples", "100"],
    "figures": ["--workers", "1"],
}  # fmt: skip


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

    monkeypatch.setattr(runner, "run_flarecps", in_this_process)
    return kept


def words(data: Path, out: Path, *more: str) -> list[str]:
    return ["reproduce", "flare22", "--data", str(data), "--out", str(out), *more]


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_every_stage_runs_once_and_the_tables_hold_what_was_scored(
    flare22: Path, ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, more, before = tmp_path / "out", tmp_path / "more.yaml", tree(flare22)
    more.write_text(yaml.safe_dump(TINY))
    again = words(flare22, out, "--other-counts", "--more", str(more), "--workers", "1", "--checkpoint", "last")
    kept = runner.run_flarecps

    def interrupted(words: Sequence[str], descriptor: int) -> int:
        if "flare22_3d.yaml" in " ".join(words):
            raise KeyboardInterrupt
        return kept(words, descriptor)

    monkeypatch.setattr(runner, "run_flarecps", interrupted)
    assert main(again) == 130
    first = [line[0] for line in ran]
    assert first == ["inspect", "plan", "preprocess", "plan", "preprocess", "fit", "fit", "fit"]
    assert main([*again, "--stages", "tables"]) == 0  # what is there so far
    assert "not run" in (out / "tables.md").read_text()

    monkeypatch.setattr(runner, "run_flarecps", kept)
    assert main(again) == 0
    later = [line[0] for line in ran[len(first) :]]
    assert later == [
        "fit", *["segment", "postprocess", "segment", "segment", "score"] * 4, "compare", "compare", "segment", "score",
        "figures",
    ]  # fmt: skip
    assert len({tuple(line) for line in ran}) == len(ran), "no command twice"
    check_settings(ran)
    check_tables(out)
    assert tree(flare22) == before, "the data is not written to"
    with Image.open(out / "figure_5" / "cases.png") as picture:
        assert picture.width > 600

    count = len(ran)
    assert main(again) == 0
    assert len(ran) == count, "all stands"
    other = yaml.safe_dump({**TINY, "fit": [*TINY["fit"], "--data.foreground_share", "0.5"]})
    more.write_text(other)
    assert main(again) == 2, "a training is not overwritten by one with other settings"
    assert len(ran) == count


def check_settings(ran: list[list[str]]) -> None:
    """Section 2.1 for validation scans, section 4.3 for the test set; post-processing only for the former."""
    segmented = [line for line in ran if line[0] == "segment"]
    for line in segmented:
        test = "data/test/" in line[2]
        wanted = TEST_INFERENCE if test else PAPER_INFERENCE
        assert tuple(line[4 : 4 + len(wanted)]) == wanted
        assert ("--postprocess" in line) == (not test and "held_out/" not in line[2])
    assert sum("--enforce-spacing" in line for line in segmented) == 1
    assert all("official" in line for line in ran if line[0] == "score")


def check_tables(out: Path) -> None:
    """Cells against means taken from the score tables by other means; counts and remarks."""

    def mean(method: str, column: str, cases: Sequence[str]) -> float:
        with (out / "scores" / method / "scores.csv").open() as file:
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
    for said in ("5 labelled scans, the paper has 50", "4 validation (3 with labels)", "more words for fit_3d:",
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
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if line.startswith("flarecps ")]
    assert len(commands) == 1 + 2 * 2 + 4 + 4 * 5 + 2 + 2 + 1
    assert sum(line.startswith("flarecps fit --config ") for line in commands) == 4
    assert not (tmp_path / "out").exists()
    assert not ran


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "5 labelled scans, the paper has 50; 3 unlabelled scans, the paper uses the first 1000"),
        (["--other-counts", "--stages", "train_4d"], "no stage 'train_4d'; stages: data, inspect"),
        (["--other-counts", "--validation-20", "NAMES"], "FLARETs_0050 is no validation case with labels"),
        (["--other-counts", "--more", "MORE"], "no group 'fitt'"),
    ],
)
def test_mistakes_are_named(
    flare22: Path, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "NAMES").write_text("FLARETs_0002\nFLARETs_0050\n")
    (tmp_path / "MORE").write_text("fitt: [--x]\n")
    given = [str(tmp_path / word) if word in ("NAMES", "MORE") else word for word in more]
    assert main(words(flare22, tmp_path / "out", *given)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_into_the_data(flare22: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(flare22)
    assert main(words(flare22, flare22 / "out", "--other-counts")) == 2
    assert "lies in the data's folder" in capsys.readouterr().err
    assert tree(flare22) == before


def test_without_labels_and_test_scans_the_cells_say_so(flare22: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(flare22, data)
    shutil.rmtree(data / "Validation" / "labels")
    shutil.rmtree(data / "Testing")
    assert main(words(data, out, "--other-counts", "--stages", "tables")) == 0
    page = (out / "tables.md").read_text()
    assert page.count("no reference labels of validation scans in the data") >= 14 * 12
    assert page.count("no test scans in the data (FLARE22 keeps them hidden)") == 14 * 2


def test_trainings_are_handed_to_slurm(
    flare22: Path, ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """With stand-ins for sbatch and squeue, and preprocessing taken as done."""
    out, log, script = tmp_path / "out", tmp_path / "log", tmp_path / "fit.sbatch"
    script.touch()
    monkeypatch.setattr(runner, "FIT_SCRIPT", script)
    for name, text in (
        (
            "sbatch",
            f'#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done >> {log}\necho >> {log}\necho "7;one"\n',
        ),
        ("squeue", "#!/bin/sh\ncat $QUEUE\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "queue").write_text("RUNNING\n")
    monkeypatch.setenv("QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(runner, "run_flarecps", lambda words, descriptor: ran.append(list(words)) or finish(words))

    def finish(words: Sequence[str]) -> int:
        for word in ("--out", "--json"):
            if word in words:
                result = Path(words[list(words).index(word) + 1])
                result.parent.mkdir(parents=True, exist_ok=True)
                result.touch() if result.suffix == ".json" else result.mkdir(exist_ok=True)
        if words[0] == "segment":
            Path(words[3]).mkdir(parents=True)
        return 0

    more = tmp_path / "more.yaml"
    more.write_text("fit: [--trainer.max_epochs, '3']\n")
    submit = words(
        flare22, out, "--other-counts", "--submit", "--sbatch=--gres=gpu:a100:1 --time=3-0", "--more", str(more)
    )
    assert main([*submit, "--without", "test*"]) == 0
    jobs = [job.splitlines() for job in log.read_text().split("\n\n") if job.strip()]
    assert len(jobs) == 4
    assert jobs[3][:4] == ["--parsable", "--job-name=flarecps-train_3d_cps", "--ntasks-per-node=1", "--gres=gpu:1"]
    assert jobs[3][4:8] == ["--gres=gpu:a100:1", "--time=3-0", str(script), "--config"]
    assert jobs[3][8].endswith("configs/flare22_3d.yaml")
    assert jobs[3][-2:] == ["--trainer.max_epochs", "3"]
    assert not any(line[0] in ("fit", "segment") for line in ran)
    said = capfd.readouterr().err
    assert "train_3d_cps: submitted as job 7; call again when it has ended" in said
    assert "held_out_3d_cps: needs train_3d_cps first" in said

    assert main(submit) == 0
    assert "train_3d_cps: job 7 is running" in capfd.readouterr().err
    assert len(log.read_text().split("\n\n")) == 5, "nothing is submitted twice"

    run = out / "runs" / "3d_cps"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("trainer: {max_epochs: 3}\n")
    record = {"finished": "2026-01-01T00:00:00+00:00", "completed_epochs": 2}  # stopped to be requeued, and not yet
    (run / "environment.json").write_text(json.dumps(record))
    (tmp_path / "queue").write_text("PENDING\n")
    assert main([*submit, "--stages", "train_3d_cps"]) == 0
    assert "job 7 is pending" in capfd.readouterr().err
    (run / "environment.json").write_text(json.dumps({**record, "completed_epochs": 3}))
    assert main([*submit, "--stages", "train_3d_cps", "held_out_3d_cps"]) == 0
    assert ran[-1][0] == "segment"
    assert len(log.read_text().split("\n\n")) == 5, "nothing is submitted twice"
    assert main([*submit, "--stages", "train_2d_cps"]) == 0
    assert len(log.read_text().split("\n\n")) == 5, "its job still waits"
    (tmp_path / "queue").write_text("")
    assert main([*submit, "--stages", "train_2d_cps"]) == 0
    assert len(log.read_text().split("\n\n")) == 6, "a job that is gone before its training was done is submitted again"
