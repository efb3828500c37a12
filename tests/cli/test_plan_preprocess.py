"""``flarecps plan`` and ``flarecps preprocess`` at the real command line, on small files and on real CT."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from flarecps.cli.main import main
from flarecps.planning.plan import read_plan
from flarecps.preprocessing.store import CaseStore
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

SPACING_MM = (3.0, 2.0, 2.0)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    generator = np.random.default_rng(0)
    for folder, names in (("Tr", ["a", "b", "c"]), ("Un", ["u"]), ("Ts", ["t"])):
        for name in names:
            shape = (12, 24, 26)
            image = generator.integers(-200, 300, shape).astype(np.int16)
            labels = np.zeros(shape, np.uint8)
            labels[4:8, 5:15, 6:20] = 1
            space = Space.canonical(shape, SPACING_MM)
            (root / f"images{folder}").mkdir(parents=True, exist_ok=True)
            (root / f"labels{folder}").mkdir(parents=True, exist_ok=True)
            write_volume(root / f"images{folder}" / f"{name}_0000.nii.gz", image, space)
            if folder != "Un":
                write_volume(root / f"labels{folder}" / f"{name}.nii.gz", labels, space)
    description = {
        "name": "Small", "channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1},
        "numTraining": 3, "file_ending": ".nii.gz",
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def test_from_folder_to_store(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, store = tmp_path / "new" / "plan.json", tmp_path / "store"
    assert main(["plan", str(dataset), "--out", str(plan), "--workers", "1", "--gpu-memory", "4"]) == 0
    shown = capsys.readouterr().out
    assert "3D plan for Small" in shown
    assert "3 labelled, 1 unlabelled" in shown
    assert "3×2×2 mm" in shown
    assert read_plan(plan).intensity.source == "global"
    assert main(["preprocess", str(dataset), str(plan), "--out", str(store), "--workers", "1"]) == 0
    assert "5 of 5 cases preprocessed" in capsys.readouterr().out
    assert CaseStore(store).names == ("a", "b", "c", "t", "u")
    assert main(["preprocess", str(dataset), str(plan), "--out", str(store)]) == 0
    assert "5 were there already" in capsys.readouterr().out


def test_settings_reach_the_plan(dataset: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    words = ["--dimensions", "2", "--intensity", "foreground", "--spacing", "[3, 1, 1]", "--patch", "[32, 32]"]
    assert main(["plan", str(dataset), "--out", str(plan), "--workers", "1", "--no-progress", *words]) == 0
    found = read_plan(plan)
    assert (found.dimensions, found.spacing_mm, found.patch_voxels) == (2, (3.0, 1.0, 1.0), (32, 32))
    assert found.intensity.source == "foreground"


@pytest.mark.parametrize("dimensions", [3, 2])
def test_a_student_of_a_plan(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dimensions: int
) -> None:
    """A quarter of the parameters, on a grid that its limits ask for; its plan makes a store as any other."""
    plan, teacher, store = tmp_path / "student.json", tmp_path / "teacher.json", tmp_path / "store"
    words = [str(dataset), "--workers", "1", "--no-progress", "--fingerprints", str(tmp_path / "kept")]
    assert main(["plan", *words, "--dimensions", str(dimensions), "--out", str(teacher)]) == 0
    limits = ["--max-seconds", "500", "--max-ram", "60G", "--device", "cpu"]
    assert main(["plan", *words, "--out", str(plan), "--student", "--teacher", str(teacher), *limits]) == 0
    shown = capsys.readouterr().out
    assert "why spacing" in shown
    assert "measured on this machine's cpu" in shown
    student, why = read_plan(plan), read_plan(plan).fingerprint["student"]
    assert (student.dimensions, student.spacing_mm) == (dimensions, read_plan(teacher).spacing_mm)
    assert 0 < 4 * why["parameters"] <= why["teacher_parameters"]
    assert main(["preprocess", str(dataset), str(plan), "--out", str(store), "--workers", "1", "--no-progress"]) == 0
    assert CaseStore(store).plan == student


def test_a_bad_scan_is_named_and_the_others_are_done(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, store = tmp_path / "plan.json", tmp_path / "store"
    scan = dataset / "imagesTr" / "b_0000.nii.gz"
    scan.write_bytes(scan.read_bytes()[:2000])
    assert main(["plan", str(dataset), "--out", str(plan), "--workers", "1", "--no-progress"]) == 1
    assert "not in the plan: b:" in capsys.readouterr().err
    assert read_plan(plan).fingerprint["cases"] == {"labelled": 2, "unlabelled": 1}
    assert main(["preprocess", str(dataset), str(plan), "--out", str(store), "--workers", "1", "--no-progress"]) == 1
    captured = capsys.readouterr()
    assert "4 of 5 cases preprocessed" in captured.out
    assert "not preprocessed: b:" in captured.err
    assert CaseStore(store).names == ("a", "c", "t", "u")


def test_shares_of_a_job_array_make_the_same_plan(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    words = ["--workers", "1", "--no-progress"]
    assert main(["plan", str(dataset), "--out", f"{alone}.json", "--fingerprints", str(alone), *words]) == 0
    for share in ("2/2", "1/2"):
        more = ["--fingerprints", str(shared), "--shard", share]
        assert main(["plan", str(dataset), "--out", f"{shared}.json", *more, *words]) == 0
        assert f"share {share}: 2 of 2 scans fingerprinted" in capsys.readouterr().out
        assert not Path(f"{shared}.json").exists()
    assert main(["plan", str(dataset), "--out", f"{shared}.json", "--fingerprints", str(shared)]) == 0
    assert "Fingerprint" not in capsys.readouterr().err  # all are there: no scan is read, no progress shown
    assert Path(f"{shared}.json").read_bytes() == Path(f"{alone}.json").read_bytes()
    files = sorted(path.relative_to(alone) for path in alone.rglob("*.json"))
    assert [str(path) for path in files] == [*(f"cases/{name}.json" for name in "abcu"), "fingerprint.json"]
    for path in files:
        assert (alone / path).read_bytes() == (shared / path).read_bytes()


def test_a_bad_scan_in_a_share_is_named(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = dataset / "imagesTr" / "a_0000.nii.gz"
    scan.write_bytes(scan.read_bytes()[:2000])
    words = ["--out", str(tmp_path / "plan.json"), "--fingerprints", str(tmp_path / "kept"), "--shard", "1/4"]
    assert main(["plan", str(dataset), *words, "--workers", "1", "--no-progress"]) == 1
    captured = capsys.readouterr()
    assert "share 1/4: 0 of 1 scans fingerprinted" in captured.out
    assert "not fingerprinted: a:" in captured.err


KILLED_AT_THE_THIRD_SCAN = """
import os, signal, sys
from flarecps.cli.main import main
from flarecps.planning import fingerprint
real, seen = fingerprint.fingerprint_case, []
def fingerprint_case(*arguments):
    seen.append(arguments[2])
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
fingerprint.fingerprint_case = fingerprint_case
main(sys.argv[1:])
"""


def test_a_killed_run_continues_to_the_same_plan(dataset: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"

    def words(name: Path) -> list[str]:
        more = ["--fingerprints", str(name), "--workers", "1", "--no-progress"]
        return ["plan", str(dataset), "--out", f"{name}.json", *more]

    assert main(words(undisturbed)) == 0
    ended = subprocess.run([sys.executable, "-c", KILLED_AT_THE_THIRD_SCAN, *words(killed)])
    assert ended.returncode == -signal.SIGKILL
    assert sorted(path.name for path in (killed / "cases").iterdir()) == ["a.json", "b.json"]
    assert main(words(killed)) == 0
    for name in ("cases/a.json", "cases/b.json", "cases/c.json", "cases/u.json", "fingerprint.json"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    assert Path(f"{killed}.json").read_bytes() == Path(f"{undisturbed}.json").read_bytes()


def test_features_of_nnunet_v2_in_2d(dataset: Path, tmp_path: Path) -> None:
    plans = []
    for more in ([], ["--most-features", "512"]):
        words = ["--dimensions", "2", "--spacing", "[3, 0.1, 0.1]", "--gpu-memory", "24", *more]
        assert main(["plan", str(dataset), "--out", str(tmp_path / "p.json"), "--workers", "1", *words]) == 0
        plans.append(read_plan(tmp_path / "p.json"))
    assert [max(plan.topology.features) for plan in plans] == [480, 512]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "plan.txt"], "expected the name of a .json file"),
        (["--out", "plan.json", "--patch", "[30, 30, 30]"], "use 32×32×32"),
        (["--out", "plan.json", "--split", "few"], "splits.json"),
        (["--out", "plan.json", "--shard", "1/4"], "expected --fingerprints FOLDER"),
        (["--out", "plan.json", "--shard", "5/4", "--fingerprints", "kept"], "expected I/N with I from 1 to N"),
        (["--out", "plan.json", "--most-features", "0"], "expected at least 1"),
        (["--out", "plan.json", "--spacing", "[90, 1, 1]"], "plan with --dimensions 2"),
        (["--out", "plan.json", "--max-vram", "2G"], "give --student, too"),
        (["--out", "plan.json", "--max-seconds", "0"], "give --student, too"),
        (["--out", "plan.json", "--student"], "expected its limits at inference"),
        (["--out", "plan.json", "--student", "--max-ram", "much"], "such as 28G"),
        (["--out", "plan.json", "--student", "--max-seconds", "1", "--teacher", "none.json"], "none.json"),
        (["--out", "plan.json", "--student", "--max-seconds", "1", "--method", "a.B"], "leave --method"),
        (
            ["--out", "plan.json", "--student", "--max-ram", "1M", "--device", "cpu", "--patch", "[8, 16, 16]"],
            "no student keeps",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(dataset), "--workers", "1", "--no-progress", *words]) == 2
    captured = capsys.readouterr().err
    assert said in captured
    assert len(captured.strip().splitlines()) == 1
    assert not list(tmp_path.glob("plan*"))


def test_real_ct(shared_data: Path, tmp_path: Path) -> None:
    """A few head-and-neck scans of OpenKBP (stored P-L-I) through both commands."""
    small = tmp_path / "kbp"
    for folder in ("imagesTr", "labelsTr"):
        (small / folder).mkdir(parents=True)
    (small / "dataset.json").write_text((shared_data / "kbp" / "dataset.json").read_text())
    for labels in sorted((shared_data / "kbp" / "labelsTr").iterdir())[:3]:
        name = labels.name.removesuffix(".nii.gz")
        (small / "labelsTr" / labels.name).symlink_to(labels)
        image = f"{name}_0000.nii.gz"
        (small / "imagesTr" / image).symlink_to(shared_data / "kbp" / "imagesTr" / image)
    assert main(["plan", str(small), "--out", str(tmp_path / "plan.json"), "--workers", "1", "--no-progress"]) == 0
    plan = read_plan(tmp_path / "plan.json")
    assert plan.fingerprint["orientations"] == {"PLI": 3}
    assert plan.axis_order == (0, 1, 2)
    store = tmp_path / "store"
    words = ["preprocess", str(small), str(tmp_path / "plan.json"), "--out", str(store), "--workers", "1"]
    assert main([*words, "--no-progress"]) == 0
    for name in CaseStore(store).names:
        record = CaseStore(store).record(name)
        image, labels = CaseStore(store).read_case(name)
        assert labels is not None
        assert record.samples.keys() == set(np.unique(labels)) - {0} == {1, 2, 3, 4}
        right, left = (np.argwhere(labels == label)[:, 2].mean() for label in (3, 4))
        assert right > left  # in RAS order columns grow to the patient's right
        assert image.shape[1:] == labels.shape == record.shape


def test_real_mr(shared_data: Path, tmp_path: Path) -> None:
    """Two left-atrium scans (LGE-MR): no HU anywhere, every scan is scaled by itself; cut to where they are not 0."""
    small = tmp_path / "la"
    for folder in ("imagesTr", "labelsTr"):
        (small / folder).mkdir(parents=True)
        for path in sorted((shared_data / "la" / folder).iterdir())[:2]:
            (small / folder / path.name).symlink_to(path)
    (small / "dataset.json").write_text((shared_data / "la" / "dataset.json").read_text())
    plan, kept = tmp_path / "plan.json", tmp_path / "kept"
    words = ["--out", str(plan), "--fingerprints", str(kept), "--workers", "1", "--no-progress"]
    assert main(["plan", str(small), *words]) == 0
    found = read_plan(plan)
    assert found.intensity.scheme == "zscore"
    assert found.fingerprint["intensity_hu"] == {}
    assert found.spacing_mm == pytest.approx((0.625, 0.625, 0.625))
    content = json.loads((kept / "fingerprint.json").read_text())
    assert content["histogram_hu"] is None
    for case in content["cases"]:
        labels = nibabel.load(small / "labelsTr" / f"{case['name']}.nii.gz").get_fdata()
        assert case["label_voxels"]["1"] == np.count_nonzero(labels == 1)
        assert case["volumes_ml"]["1"] == pytest.approx(np.count_nonzero(labels == 1) * 0.625**3 / 1000, rel=1e-4)
        image = nibabel.load(small / "imagesTr" / f"{case['name']}_0000.nii.gz").get_fdata()
        box = [int(np.ptp(axis)) + 1 for axis in np.nonzero(image)]
        assert case["shape_voxels"] == box[::-1]  # nibabel counts columns first; RAS apart from flips


def test_a_methods_declared_cost_decides_the_plan(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One network with one kind of patches takes a quarter of two with two; a teacher beside it takes its share."""
    (tmp_path / "my_method.py").write_text(
        "from flarecps.methods import Supervised\n\n\nclass Taught(Supervised):\n    extra_networks = 1.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    memory = {}
    for name in ("", "flarecps.methods.CrossPseudoSupervision", "flarecps.methods.Supervised", "my_method.Taught"):
        words = [
            "plan",
            str(dataset),
            "--out",
            str(tmp_path / "plan.json"),
            "--workers",
            "1",
            "--patch",
            "[64, 64, 64]",
        ]
        assert main([*words, *(["--method", name] if name else [])]) == 0
        plan = read_plan(tmp_path / "plan.json")
        memory[name] = plan.memory_gb / plan.global_batch["labelled"]
    capsys.readouterr()
    four = memory["flarecps.methods.CrossPseudoSupervision"]
    assert memory[""] == four
    assert memory["flarecps.methods.Supervised"] == pytest.approx(four / 4, rel=0.3)
    assert memory["my_method.Taught"] == pytest.approx(four / 2, rel=0.3)
    turn = [*words, "--siblings-in-turn"]
    for more in ([], ["--method", "flarecps.methods.CrossPseudoCutMix"]):
        assert main([*turn, *more]) == 0
        assert "fit --model.method.init_args.siblings_in_turn true" in capsys.readouterr().out
        plan = read_plan(tmp_path / "plan.json")
        assert plan.memory_gb / plan.global_batch["labelled"] == pytest.approx(four * 0.65, rel=0.2)
    assert main([*turn, "--method", "my_method.Taught"]) == 2
    assert "my_method.Taught has no setting siblings_in_turn" in capsys.readouterr().err
    assert main(["plan", str(dataset), "--out", str(tmp_path / "x.json"), "--method", "pathlib.Path"]) == 2
    assert "--method pathlib.Path: is no flarecps.methods.Method" in capsys.readouterr().err
    assert main(["plan", str(dataset), "--out", str(tmp_path / "x.json"), "--method", "my_method.Absent"]) == 2
    assert "can't be imported" in capsys.readouterr().err


def test_a_plan_is_not_overwritten_in_silence(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    words = ["plan", str(dataset), "--out", str(out), "--no-progress"]
    assert main(words) == 0
    first = out.read_bytes()
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"next: flarecps preprocess {dataset} {out} --out {tmp_path / 'store'}"
    )
    assert main(words) == 0
    assert "the plan is the one that was there" in capsys.readouterr().out
    assert not (tmp_path / "plan.json.1").exists()
    for number, features in ((1, "8"), (2, "16")):
        before = out.read_bytes()
        assert main([*words, "--most-features", features]) == 0
        said = capsys.readouterr().out
        assert f"another plan was there, and is now {out}.{number}" in said
        assert "topology: another" in said
        assert (tmp_path / f"plan.json.{number}").read_bytes() == before
    assert (tmp_path / "plan.json.1").read_bytes() == first


def test_another_plan_of_the_same_grid_is_told(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = [tmp_path / name for name in ("a.json", "b.json")]
    assert main(["plan", str(dataset), "--out", str(plans[0]), "--no-progress"]) == 0
    assert main(["plan", str(dataset), "--out", str(plans[1]), "--no-progress", "--most-features", "8"]) == 0
    store = tmp_path / "store"
    capsys.readouterr()
    for plan in plans:
        assert main(["preprocess", str(dataset), str(plan), "--out", str(store), "--workers", "1"]) == 0
        said = capsys.readouterr().out
        assert ("the store's plan is now" in said) == (plan == plans[1])
        assert said.splitlines()[-1] == f"next: flarecps fit --data.store {store}"
    assert (store / "plan.json").read_bytes() == plans[1].read_bytes()
