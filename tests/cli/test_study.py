"""``flarecps study`` from raw folder to model: killed anywhere and gone on, equal to an undisturbed one.

The commands of its stages are played by quick ones that leave the same files, so that what is tested is the study.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from full_disk import full_disk

from flarecps.cli.main import main
from flarecps.datasets.splits import fold as fold_names
from flarecps.experiments import runner
from flarecps.experiments.study import forecast
from flarecps.reporting.comparison_files import named_files
from flarecps.training.defaults import DRY_RUN_FILE

EFFECTS = {"cps": 0.1, "control": -0.05}
PROTOCOL: dict[str, Any] = {
    "primary": {"method": "cps", "baseline": "control_long"},
    "judged": {"by": "folds", "folds": 2},
    "seeds": 2,
    "settings": {"trainer.max_epochs": 6, "data.iterations_per_epoch": 4},
    "arms": {
        "control": {"settings": {"model.method": "flarecps.methods.Supervised"}},
        "control_long": {"settings": {"model.method": "flarecps.methods.Supervised"}, "compute_of": "cps"},
        "two": {"title": "two, averaged", "average_of": "control"},
        "cps": {
            "settings": {
                "model.method": "flarecps.methods.CrossPseudoSupervision",
                "model.method.init_args.ramp": {"start": 2, "length": 2},
            },
            "siblings": ["average", "1"],
        },
        "self": {"settings": {"model.method": "flarecps.methods.SelfTraining"}, "teachers": "control"},
    },
}


def play(words: Sequence[str]) -> int:
    """What a command leaves behind, in no time."""
    command, given = words[0], dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    after = {words[place]: words[place + 1] for place in range(len(words) - 1)}
    if command in ("inspect", "plan"):
        Path(after.get("--json") or after["--out"]).write_text("{}")
    elif command == "preprocess":
        Path(after["--out"]).mkdir()
    elif command == "fit":
        run = Path(given["trainer.default_root_dir"])
        resumed = "--ckpt_path" in words
        assert resumed == (run / "checkpoints").exists(), "what was begun goes on"
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        for name in ("best", "last"):
            (run / "checkpoints" / f"{name}.ckpt").write_text(given["data.split"] + given["seed_everything"])
    elif command == "segment":
        places = words[1 : words.index("--sibling")]
        assert all(Path(one).is_file() for one in places[:-2]), "checkpoints are there"
        references = Path(places[-2]).parent / "labels"
        shutil.copytree(references, places[-1], dirs_exist_ok=True)
    elif command == "pseudo-label":
        Path(words[4]).mkdir(parents=True)
    elif command == "postprocess":
        shutil.copytree(words[2], words[3], dirs_exist_ok=True)
    elif command == "score":
        place = Path(after["--out"])
        place.mkdir(parents=True, exist_ok=True)
        labels, arm = place.parts[place.parts.index("scores") + 2 :][:2]
        rows = [["Name", "Liver_DSC", "Liver_NSD"]]
        for name in sorted(path.name for path in Path(words[1]).glob("*.nii.gz")):
            noise = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32 - 0.5
                     for text in (name, str(place.parts[-6:]) + name)]  # fmt: skip
            dsc = 0.7 + EFFECTS.get(arm, 0.0) + 0.1 * noise[0] + 0.01 * noise[1] - 0.05 * (labels != "all")
            rows.append([name, f"{dsc:.6f}", f"{dsc:.6f}"])
        with (place / "scores.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    elif command == "compare":
        Path(after["--out"]).mkdir(exist_ok=True)
        assert all(path.is_file() for files in named_files(words[1:-2], ()).values() for path in files)
    return 0


def dry_run(words: Sequence[str], env: dict[str, str], **_: Any) -> SimpleNamespace:
    Path(env[DRY_RUN_FILE]).write_text('{"training_s": 3600}')
    return SimpleNamespace(returncode=0, stdout="", stderr="")


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that were run."""
    done: list[str] = []

    def run(words: Sequence[str], _: int) -> int:
        code = play(words)
        done.append(words[0])
        return code

    monkeypatch.setattr(runner, "run_flarecps", run)
    monkeypatch.setattr(forecast, "subprocess", SimpleNamespace(run=dry_run))
    return done


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "dataset"
    description = {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    for folder in ("imagesTr", "labelsTr", "imagesUn", "imagesTs", "labelsTs"):
        (root / folder).mkdir(parents=True)
    for number in range(14):
        folder = "Tr" if number < 9 else "Un" if number < 12 else "Ts"
        voxels = np.zeros((4, 4, 4), np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / f"images{folder}" / f"case_{number:02d}_0000.nii.gz")
        if folder != "Un":
            voxels[1:3, 1:3, 1:3] = 1
            labels = nib.Nifti1Image(voxels.astype(np.uint8), np.eye(4))
            nib.save(labels, root / f"labels{folder}" / f"case_{number:02d}.nii.gz")
    (root / "dataset.json").write_text(json.dumps(description | {"numTraining": 9}))
    return root


def protocol(tmp_path: Path, **changes: Any) -> str:
    path = tmp_path / "protocol.yaml"
    path.write_text(yaml.safe_dump(PROTOCOL | changes, sort_keys=False))
    return str(path)


def results(out: Path) -> dict[str, str]:
    """What must be the same of two studies: every table and rule, the verdict but for what it took."""
    kept = [path for folder in ("results", "rules", "model") for path in (out / folder).rglob("*") if path.is_file()]
    texts = {str(path.relative_to(out)): path.read_text() for path in kept if path.name != "standings.csv"}
    content = json.loads((out / "verdict.json").read_text())
    texts["recommended"] = str(content["recommended"]) + str(content["sentences"])
    return texts | {"protocol": (out / "protocol.yaml").read_text()}


def test_from_raw_folder_to_the_model(
    dataset: Path, tmp_path: Path, played: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", str(dataset), "--out", str(tmp_path / "out")]
    judged = {"by": "folds", "folds": 2, "learning_curve": [0.5]}
    assert main([*words, "--protocol", protocol(tmp_path, judged=judged)]) == 0
    out, said = tmp_path / "out", capsys.readouterr().out
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["recommended"] == {"arm": "cps", "sibling": "average", "labels": "all", "way": "determined"}
    by_name = {one["title"]: one for one in verdict["standings"]}
    cps = by_name["cps, siblings averaged"]
    assert cps["verdict"] == "better"
    assert cps["judged"]["difference"]["mean"] == pytest.approx(0.1, abs=0.004)
    assert cps["judged"]["difference"]["scans"] == 9
    assert by_name["control"]["verdict"] == "worse"
    assert by_name["two, averaged"]["verdict"] == "not told apart"
    assert verdict["curve"]["gain"]["mean"] == pytest.approx(0.05 * np.log2(14.5 / 4.5), rel=0.2)
    assert f"next: flarecps segment {out}/runs/all/cps/all_labels/seed_0/checkpoints/last.ckpt SCANS LABELS" in said
    assert "--sibling average --postprocess" in said
    assert "to the end" in said, "the time left is told"
    with (out / "results" / "standings.csv").open(newline="") as file:
        standings = {row["arm"]: row for row in csv.DictReader(file)}
    assert float(standings["cps, siblings averaged"]["low"]) > 0
    page = (out / "report.html").read_text()
    assert "they helped" in page
    assert "More labels" in page
    splits = json.loads((out / "data" / "splits.json").read_text())
    assert not list((out / "data").rglob("case_1[23]*")), "test scans are nowhere"
    for fold in range(2):
        held_out = {path.name[:7] for path in (out / "held_out" / f"all.fold_{fold}_of_2" / "images").iterdir()}
        split = splits[f"all.fold_{fold}_of_2"]
        assert not held_out & {*split["labelled"], *split["unlabelled"]}, "no scan judges what it taught"
        assert set(splits[f"0.5.fold_{fold}_of_2"]["labelled"]) < set(split["labelled"])
    rules = json.loads((out / "rules" / "determined" / "all" / "cps" / "fold_0" / "seed_0" / "1.json").read_text())
    judges = {path.name[:7] for path in (out / "held_out" / "all.fold_0_of_2" / "images").iterdir()}
    assert not judges & set(rules["evidence"]["scans"]), "post-processing is decided on other folds"
    assert len(rules["evidence"]["scans"]) == 9 - len(judges)
    before = len(played)
    assert main(words) == 0  # again: everything stands
    assert len(played) == before


def test_killed_three_times_it_is_equal(
    dataset: Path, tmp_path: Path, played: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    asked = ["--protocol", protocol(tmp_path)]
    assert main(["study", str(dataset), "--out", str(whole), *asked]) == 0
    undisturbed = len(played)
    for last in (2, 12, undisturbed // 2):  # in plan or trainings, in label maps, later
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status)
            continue
        count = 0

        def run(words: Sequence[str], _: int, last: int = last) -> int:
            nonlocal count
            count += 1
            if count == last:
                if words[0] == "fit":
                    play(words)  # a checkpoint is there, and no record of the end
                os.kill(os.getpid(), signal.SIGKILL)
            return play(words)

        monkeypatch.setattr(runner, "run_flarecps", run)
        main(["study", str(dataset), "--out", str(broken), *asked])
        os._exit(0)
    assert main(["study", str(dataset), "--out", str(broken)]) == 0
    assert len(played) < 2 * undisturbed, "what was done is not done again"
    one, other = results(whole), results(broken)
    assert {name: text.replace(str(broken), str(whole)) for name, text in other.items()} == one


def test_a_budget_chooses_what_fits(
    dataset: Path, tmp_path: Path, played: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    few = PROTOCOL["arms"] | {"self": {"settings": {}, "average_of": "control"}}
    given = protocol(tmp_path, arms=few)
    out = tmp_path / "out"
    assert main(["study", str(dataset), "--out", str(out), "--protocol", given, "--budget", "60"]) == 0
    assert "chosen for 60 h: 5 folds × 2 seeds, 100% of the epochs" in capsys.readouterr().out
    kept = yaml.safe_load((out / "protocol.yaml").read_text())
    assert kept["judged"]["folds"] == 5
    assert "chosen for 60 h" in kept["remarks"][0]
    assert played.count("preprocess") == 1, "one store serves all folds"
    for hours in ("60", "70"):
        assert main(["study", str(dataset), "--out", str(out), "--budget", hours]) == 0
        assert ("stays as it is" in capsys.readouterr().out) == (hours == "70")
    assert main(["study", str(dataset), "--out", str(tmp_path / "no"), "--protocol", given, "--budget", "1"]) == 2
    assert "the smallest study takes about" in capsys.readouterr().err
    assert not (tmp_path / "no" / "protocol.yaml").exists()


def test_a_protocol_is_not_changed_afterwards(
    dataset: Path, tmp_path: Path, played: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["study", str(dataset), "--out", str(out)]
    assert main([*words, "--protocol", protocol(tmp_path), "--stages", "data"]) == 0
    assert main([*words, "--seeds", "3"]) == 2
    assert "began with another protocol" in capsys.readouterr().err
    assert main([*words, "--protocol", protocol(tmp_path), "--stages", "data"]) == 0
    for damaged in ("{", '{"recommended": {"arm": "gone"}}', '{"recommended": 3}', ""):
        (out / "verdict.json").write_text(damaged)
        assert main([*words, "--stages", "data"]) == 2
        assert f"{out}/verdict.json: damaged; remove it" in capsys.readouterr().err
    (out / "verdict.json").unlink()
    kept = out / "protocol.yaml"
    kept.write_text(kept.read_text().replace("seeds: 2", "seeds: 3"))
    assert main(words) == 2
    assert "one of them was changed" in capsys.readouterr().err


@pytest.mark.usefixtures("played")
def test_the_folders_own_test_scans_judge(dataset: Path, tmp_path: Path) -> None:
    """``default`` is the folders' roles where there is no splits.json."""
    file = protocol(tmp_path, judged={"by": "test", "splits": ["default"]}, post_processing=["none", "largest"])
    out = tmp_path / "out"
    assert main(["study", str(dataset), "--out", str(out), "--protocol", file]) == 0
    with (out / "results" / "scores.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert {row["case"] for row in rows} == {"case_12", "case_13"}
    assert {(row["labels"], row["fold"], row["post_processing"]) for row in rows} == {
        ("default", "0", "none"), ("default", "0", "largest")}  # fmt: skip
    known = json.loads((out / "data" / "splits.json").read_text())["default"]
    assert (len(known["labelled"]), len(known["unlabelled"]), known["test"]) == (9, 3, [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--protocol", "kpb"], "did you mean kbp?"),
        (["--folds", "1"], "expected 2 or more"),
        (["--folds", "0"], "expected 2 or more"),
        (["--folds", "9", "--seeds", "0"], "expected 1 or more"),
        (["--seeds", "99999999", "--dry-run"], "at most 100"),
        (["--folds", "20"], "can't be cross-validated in 20 folds"),
        (["--arms", "cpss"], "did you mean cps?"),
        (["--budget", "0"], "hours above 0"),
        (["--stages", "trian_*"], "--stages trian_*: no such stage"),
        (["--sbatch=--time=5"], "--submit asks for"),
        (["--submit", "--sbatch=--time='5"], "No closing quotation"),
        (["--without", "case_0"], "no scan 'case_0' to leave out; did you mean case_"),
        (["--without", *(f"case_0{number}" for number in range(7))], "2 labelled scans can't be cross-validated"),
        (["--protocol", "kbp"], "splits.json: no such file"),
    ],
)
def test_mistakes_are_told(
    words: list[str], said: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", str(dataset), "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "options", "said"),
    [
        ("segment", {"miror": True}, "'segment': no option --miror; did you mean --mirror?"),
        ("segment", {"step": "half"}, "'segment': --step half: expected a number"),
        ("plan", {"dimensions": 4}, "'plan': --dimensions 4: expected 2 or 3"),
        ("plans", {"flat": {"dimension": 2}}, "'plans.flat': no option --dimension; did you mean --dimensions?"),
    ],
)
def test_options_are_looked_at_before_hours_of_training(
    part: str, options: dict[str, Any], said: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = {name: dict(PROTOCOL["arms"][name]) for name in ("control_long", "cps")}
    for arm in arms.values() if part == "plans" else ():
        arm["plan"] = "flat"
    given = protocol(tmp_path, arms=arms, **{part: options})
    with pytest.raises(SystemExit) as ended:
        main(["study", str(dataset), "--out", str(tmp_path / "out"), "--protocol", given])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def small(tmp_path: Path, **changes: Any) -> list[str]:
    """The words that ask for a study of two arms."""
    arms = {name: dict(PROTOCOL["arms"][name]) for name in ("control_long", "cps")}
    arms["cps"]["siblings"] = ["1"]
    for name, change in changes.items():
        arms[name] |= change
    return ["--protocol", protocol(tmp_path, arms=arms)]


@pytest.mark.usefixtures("played")
def test_names_are_shown_and_never_obeyed(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = r"<script>alert(1)</script> | [/] [red] =1+1, {{ 7 * 7 }} & $\no$"
    root = dataset.rename(tmp_path / "<script>alert(2)< [x] a, b")
    for folder, suffix in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (root / folder / f"case_03{suffix}").rename(root / folder / f"=cmd [b], ü <i>{suffix}")
    given = small(tmp_path, cps={"title": hostile}, control_long={"title": "--=2*2"})
    out = tmp_path / "o é [/x], y=z"
    assert main(["study", str(root), "--out", str(out), *given]) == 0
    assert hostile in capsys.readouterr().out
    page, words = (out / "report.html").read_text(), (out / "verdict.md").read_text()
    for text in (page, words):
        assert "<script>alert" not in text
    assert "{{ 7 * 7 }}" in page
    assert "&lt;script>alert(1)" in words
    with (out / "results" / "scores.csv").open(newline="") as file:
        assert "'=cmd [b], ü <i>" in {row["case"] for row in csv.DictReader(file)}
    with (out / "results" / "standings.csv").open(newline="") as file:
        assert [row["arm"] for row in csv.DictReader(file)] == ["'--=2*2", hostile]


@pytest.mark.usefixtures("played")
def test_damaged_files_are_named_with_their_cure(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["study", str(dataset), "--out", str(out)]
    assert main([*words, *small(tmp_path)]) == 0
    whole = results(out)
    scores = "scores/determined/all/cps/fold_0/seed_0/1/scores.csv"
    text = (out / scores).read_text()
    for name, damaged in (
        ("verdict.json", "{"),
        ("calibration.json", "[1]"),
        ("calibration.json", '{"cps": {"training_s": -4, "start_s": 1, "cost": 0}}'),
        ("protocol.yaml", ""),
        ("stages/protocol.json", "{"),
        (scores, text[: len(text) // 2]),
        (scores, "".join(text.splitlines(keepends=True)[:-1])),
        (scores, text.replace(",0.", ",8.")),
        (scores, "\xff"),
    ):
        before = (out / name).read_bytes()
        (out / name).write_text(damaged, encoding="latin-1")
        (out / "stages" / "tables.json").unlink(missing_ok=True)
        capsys.readouterr()
        assert main(words) == 2, name
        error = capsys.readouterr().err
        assert f"{out}/{name}" in error
        assert error.count("\n") == 1
        if name not in ("protocol.yaml", "stages/protocol.json"):
            assert "remove it" in error
            (out / name).unlink()
        else:
            (out / name).write_bytes(before)
        assert main(words) == 0
    for record in ("", "{", '{"state": ["done"], "digest": 4, "starts": [3]}', "null"):
        for name in ("tables", "train_all.cps.fold_0.seed_0", "score_determined_all.cps.fold_0.seed_0.1", "data"):
            (out / "stages" / f"{name}.json").write_text(record)
        assert main(words) == 0  # its own notes are written anew
    assert results(out) == whole


@pytest.mark.usefixtures("played")
def test_other_data_is_told_and_moved_data_is_followed(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["study", str(dataset), "--out", str(out), *small(tmp_path)]) == 0
    store = sorted((out / "store_global").parent.iterdir())
    moved = dataset.rename(tmp_path / "moved")
    assert main(["study", str(moved), "--out", str(out)]) == 0
    assert f"they come from {moved} now" in capsys.readouterr().out
    assert all(link.resolve().is_file() for link in (out / "data").rglob("*.nii.gz"))
    (moved / "labelsTr" / "case_01.nii.gz").unlink()
    (moved / "imagesTr" / "case_01_0000.nii.gz").rename(moved / "imagesUn" / "case_01_0000.nii.gz")
    assert main(["study", str(moved), "--out", str(out)]) == 2
    assert "made from other data; it is not overwritten" in capsys.readouterr().err
    assert sorted((out / "store_global").parent.iterdir()) == store


def test_one_process_at_a_time(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with runner.run_lock(out / "stages"):
        assert main(["study", str(dataset), "--out", str(out), "--seeds", "3"]) == 2
        assert main(["study", str(dataset), "--out", str(out), "--submit"]) == 2
    error = capsys.readouterr().err
    assert error.count(f"a run is at work here (process {os.getpid()} on ") == 2
    assert not (out / "protocol.yaml").exists(), "the other one's is not touched"


def test_a_failing_training_is_named_and_the_others_are_kept(
    dataset: Path, tmp_path: Path, played: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["study", str(dataset), "--out", str(tmp_path / "out")]
    codes = [0, -9, 2]

    def run(given: Sequence[str], _: int) -> int:
        if given[0] == "fit" and "/runs/all/cps/" in str(given) and codes:
            return codes.pop()
        played.append(given[0])
        return play(given)

    monkeypatch.setattr(runner, "run_flarecps", run)
    for said in ("ended with exit code 2; its message", "was ended by signal 9", "is not there"):
        assert main([*words, *small(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "stage 'train_all.cps.fold_0.seed_0'" in error
        assert said in error
        assert "the same command again goes on from here" in error
        assert error.count("\n") == 1
    assert played == ["inspect", "plan", "preprocess", "fit", "segment"]
    assert main(words) == 0
    assert played.count("fit") == 9


@pytest.mark.usefixtures("played")
def test_a_damaged_scan_stops_it_before_anything_is_trained_and_can_be_left_out(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "run_flarecps", lambda words, _: 1)
    assert main(["study", str(dataset), "--out", str(tmp_path / "out"), *small(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "stage 'inspect' ended with exit code 1; mend what it calls an error above" in error
    assert f"remove {tmp_path}/out and begin anew --without" in error
    monkeypatch.setattr(runner, "run_flarecps", lambda words, _: play(words))
    out = tmp_path / "other"
    assert main(["study", str(dataset), "--out", str(out), *small(tmp_path), "--without", "case_03", "case_10"]) == 0
    assert not [*out.rglob("*case_03*"), *out.rglob("*case_10*")]
    assert yaml.safe_load((out / "protocol.yaml").read_text())["without"] == ["case_03", "case_10"]
    assert main(["study", str(dataset), "--out", str(out)]) == 0


def test_full_disks_end_in_one_line_and_it_goes_on(
    dataset: Path, tmp_path: Path, played: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, full = tmp_path / "whole", tmp_path / "full"
    asked = small(tmp_path)
    assert main(["study", str(dataset), "--out", str(whole), *asked]) == 0
    for room in (20, 200, 420, 900, 2500):
        capsys.readouterr()
        with full_disk(room):
            assert main(["study", str(dataset), "--out", str(full), *asked]) == 2, room
        error = capsys.readouterr().err
        assert "File too large" in error
        assert error.count("\n") == 1
        assert not list(full.rglob(".partial*"))
    assert main(["study", str(dataset), "--out", str(full), *asked]) == 0
    one, other = results(whole), results(full)
    assert {name: text.replace(str(full), str(whole)) for name, text in other.items()} == one


def test_held_out_scans_decide_checkpoint_and_post_processing_where_no_folds_do(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Sequence[str]] = []
    monkeypatch.setattr(runner, "run_flarecps", lambda words, _: done.append(words) or play(words))
    monkeypatch.setattr(forecast, "subprocess", SimpleNamespace(run=dry_run))
    settings = PROTOCOL["settings"] | {"data.fold": 0}
    judged = {"by": "test", "splits": ["default"]}
    given = protocol(tmp_path, judged=judged, settings=settings, checkpoint="best", scoring="official")
    out = tmp_path / "out"
    assert main(["study", str(dataset), "--out", str(out), "--protocol", given]) == 0
    held_out = fold_names([f"case_{number:02d}" for number in range(9)], 0)[1]
    folder = out / "held_out" / "default.validation"
    assert {path.name for path in (folder / "labels").iterdir()} == {f"{name}.nii.gz" for name in held_out}
    rules = json.loads((out / "rules" / "determined" / "default" / "cps" / "fold_0" / "seed_1" / "1.json").read_text())
    assert rules["evidence"]["scans"] == [*held_out]
    assert (out / "model" / "postprocessing.json").read_text() == rules_of(out, "cps", "average")
    fitted = [words for words in done if words[0] == "fit"]
    assert all("--data.fold=0" in words and "--data.fold=all" not in words for words in fitted)
    used = [word for words in done for word in words if word.endswith(".ckpt")]
    assert {Path(word).name for word in used} == {"best.ckpt"}
    assert {words[0] for words in done if any(word in used for word in words)} == {"segment", "pseudo-label"}
    assert all(words[words.index("--protocol") + 1] == "official" for words in done if words[0] == "score")


def rules_of(out: Path, arm: str, sibling: str) -> str:
    return (out / "rules" / "determined" / "default" / arm / "fold_0" / "seed_0" / f"{sibling}.json").read_text()


def theirs(place: Path, dataset: Path, seeds: int = 2) -> None:
    """Another program's label maps of the test scans, by seed, beside what such a program leaves there."""
    for seed in range(seeds):
        shutil.copytree(dataset / "labelsTs", place / f"seed_{seed}")
        (place / f"seed_{seed}" / "dataset.json").write_text('{"labels": {"background": 0, "hepar": 1}}')
        (place / f"seed_{seed}" / "plans.json").write_text("{}")


def rivals(tmp_path: Path, **arms: dict[str, Any]) -> list[str]:
    judged = {"judged": {"by": "test", "splits": ["default"]}, "post_processing": ["none", "largest"]}
    known = {name: PROTOCOL["arms"][name] for name in ("control_long", "cps")}
    return ["--protocol", protocol(tmp_path, arms=known | arms, **judged)]


def test_another_programs_predictions_are_judged_beside_the_arms(
    dataset: Path, tmp_path: Path, played: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(EFFECTS, "nnunet", 0.2)
    monkeypatch.chdir(tmp_path)
    theirs(tmp_path / "given", dataset)
    given = rivals(tmp_path, nnunet={"title": "nnU-Net", "predictions": "given/seed_{seed}"},
                   once={"predictions": "given/seed_1"})  # fmt: skip
    out, words = tmp_path / "out", ["study", str(dataset), "--out", str(tmp_path / "out")]
    assert main([*words, *given]) == 0
    said = capsys.readouterr().out
    assert "Use “nnU-Net”" in said
    assert "“nnU-Net”, another program's: +0.2" in said
    assert "next:" not in said
    assert "only its predictions were given" in (out / "report.html").read_text()
    assert "trained on all labelled scans" not in (out / "verdict.md").read_text()
    with (out / "results" / "scores.csv").open() as table:
        rows = list(csv.DictReader(table))
    seeds = {name: {row["seed"] for row in rows if row["arm"] == name} for name in ("nnunet", "once")}
    assert seeds == {"nnunet": {"0", "1"}, "once": {"0"}}
    assert {row["case"] for row in rows if row["arm"] == "nnunet"} == {"case_12", "case_13"}
    standings = json.loads((out / "verdict.json").read_text())["standings"]
    assert {one["title"]: one["cost"] for one in standings}["nnU-Net"] is None
    labels = out / "labels" / "none" / "default" / "nnunet" / "fold_0" / "seed_0" / "1"
    assert sorted(path.name for path in labels.iterdir()) == ["case_12.nii.gz", "case_13.nii.gz", "dataset.json"]
    assert json.loads((labels / "dataset.json").read_text())["labels"] == {"background": 0, "liver": 1}
    assert played.count("fit") == 4, "given predictions are not trained for"
    before = len(played)
    monkeypatch.chdir(dataset)
    assert main(words) == 0
    assert len(played) == before
    os.utime(tmp_path / "given" / "seed_0" / "case_12.nii.gz", (1, 1))
    assert main(words) == 0
    assert played[before:] == ["score", "postprocess", "score", "compare"], "other predictions are judged anew"
    shutil.rmtree(tmp_path / "given" / "seed_0")
    assert main(words) == 2
    assert f"{tmp_path}/given/seed_0: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        (("case_13.nii.gz",), "seed_1: no prediction of case_13; expected label maps of the 2 scans in "),
        (("case_13.nii.gz", "case_12.nii.gz"), "seed_1: no label maps in this folder"),
        ((), "no such folder"),
    ],
)
def test_missing_predictions_are_named_before_anything_is_trained(
    lacking: Sequence[str], said: str, dataset: Path, tmp_path: Path, played: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    theirs(tmp_path / "given", dataset, 2 if lacking else 1)
    for name in lacking:
        (tmp_path / "given" / "seed_1" / name).unlink()
    given = rivals(tmp_path, nnunet={"predictions": f"{tmp_path}/given/seed_{{seed}}"})
    out = tmp_path / "out"
    assert main(["study", str(dataset), "--out", str(out), *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert f"{out}/held_out/default/images, by their names" in error
    assert error.count("\n") == 1
    assert played == []


def test_rivals_alone_are_judged_and_nothing_is_trained(dataset: Path, tmp_path: Path, played: list[str]) -> None:
    theirs(tmp_path / "given", dataset)
    arms = {name: {"predictions": f"{tmp_path}/given/seed_{{seed}}"} for name in ("control_long", "cps")}
    assert main(["study", str(dataset), "--out", str(tmp_path / "out"), *rivals(tmp_path, **arms)]) == 0
    assert {*played} == {"inspect", "score", "postprocess", "compare"}
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert verdict["recommended"]["arm"] == "cps"
    assert "“cps”, another program's: +0.1" in verdict["sentences"][1]


def test_a_dry_run_makes_nothing(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(dataset.rglob("*"))
    assert main(["study", str(dataset), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "baseline: control_long" in said
    assert "flarecps fit --data.store" in said
    assert not (tmp_path / "out").exists()
    assert sorted(dataset.rglob("*")) == before
    assert main(["study", str(dataset), "--out", str(dataset / "out")]) == 2
    assert main(["study", str(dataset), "--out", str(tmp_path)]) == 2
    assert "no study's" in capsys.readouterr().err


def test_jobs_wait_for_each_other(
    dataset: Path, tmp_path: Path, submitted: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = ["--protocol", protocol(tmp_path), "--submit", "--sbatch=--partition=gpu"]
    assert main(["study", str(dataset), "--out", str(out), *given]) == 0
    assert (out / "protocol.yaml").is_file()
    names = [next(word for word in words if word.startswith("--job-name=")).rpartition("-")[2] for words in submitted]
    assert names == ["prepare", "trainings_0", "labels_1", "trainings_2", "judge"]
    for number, words in enumerate(submitted):
        assert "--partition=gpu" in words
        assert (f"--dependency=afterok:{100 + number}" in words) == (number > 0)
    script = out / "slurm" / "trainings_0.sbatch"
    assert submitted[1][-1] == str(script)
    tasks = sorted((out / "slurm" / "trainings_0").glob("*.sh"))
    assert f"--array=1-{len(tasks)}" in submitted[1]
    assert all("fit.sbatch" in path.read_text() and "--data.store=" in path.read_text() for path in tasks)
    assert submitted[-1][-5:] == [str(dataset), "--out", str(out), "--workers", "2"]
    assert "judge: job 105" in capsys.readouterr().out
