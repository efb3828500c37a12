"""The experiments in ``benchmarks/``: protocols that are fair, splits that hold, tables that say what was measured."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from flarecps.cli.configs import config_path
from flarecps.experiments.study.cost import Costs
from flarecps.experiments.study.protocol_file import read_protocol
from flarecps.volumes.io import read_volume

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def experiment(name: str, part: str = "run") -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"experiment_{name}_{part}", BENCHMARKS / name / f"{part}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_phantom13_kept_no_patient_in_training_and_test() -> None:
    sources = json.loads((BENCHMARKS / "results" / "phantom13" / "phantom.json").read_text())["sources"]
    tested = {source for name, source in sources.items() if name.startswith("test_")}
    assert len(tested) == 16
    assert not tested & {source for name, source in sources.items() if not name.startswith("test_")}


def test_phantom13_names_the_organs_that_a_method_loses(tmp_path: Path) -> None:
    """Two organs, two seeds: CPS has half of the control's DSC of the one and a ninth of the other's; the control
    itself does not find what it scores under 0.1."""
    organs = experiment("phantom13", "organs")
    runs = tmp_path / "runs" / "default"
    for arm, rows in (
        ("control", ((0.5, 0.9), (0.3, 0.9))),
        ("cps", ((0.25, 0.1), (0.15, 0.1))),
        ("control_long", ((0.09, 0.5),)),
        ("control_long_two", ((0.0, 0.6),)),
    ):
        for seed, (a, b) in enumerate(rows):
            write_scores(runs / arm / f"seed_{seed}", [(a, b)] * 2)
    text, lost = organs.report(tmp_path)
    assert lost
    assert "- CPS, beside control: q\n" in text
    assert "averaged, beside longer control: none\n" in text
    assert [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]] == ["p", "0.400", "0.090", "0.200", "0.000"]


@pytest.mark.parametrize(("study", "epochs"), [("phantom13_2d", 78), ("phantom13_3d_full", 398), ("la", 94)])
def test_a_control_is_given_the_compute_of_cps(study: str, epochs: int) -> None:
    """λ is 0 in 9 of 24 epochs, in 1 of 100, in 1 of 24: 2 networks then, afterwards with twice the patches."""
    protocol = read_protocol(BENCHMARKS.parent / "configs" / "studies" / f"{study}.yaml")
    assert Costs(protocol, config_path).recipe(protocol.primary.baseline).epochs == epochs


def test_la_sets_its_numbers_beside_the_published_ones(tmp_path: Path) -> None:
    shutil.copyfile(BENCHMARKS.parent / "configs" / "studies" / "la.yaml", tmp_path / "protocol.yaml")
    for seed, dice in ((0, "0.8"), (1, "0.9")):
        for way, more in (("none", "0.5"), ("largest", "0.7")):
            scores = tmp_path / "scores" / way / "8_labelled" / "cps_small_3000" / "fold_0" / f"seed_{seed}" / "1"
            scores.mkdir(parents=True)
            lines = [f"{name},{dice},{more}" for name in "ab"]
            (scores / "scores.csv").write_text("\n".join(["Name,left_atrium_DSC,left_atrium_NSD", *lines]) + "\n")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in experiment("la", "table").table(tmp_path).splitlines()
    ]
    assert ["8", "UA-MT", "published", "", "87.79", "–", "20"] in rows
    for pieces in ("no", "largest piece"):
        assert ["8", "CPS, small network, 3000 steps", "here", pieces, "85.00 ± 7.07", "2", "2"] in rows


def test_a_student_is_planned_taught_and_set_beside_its_teachers(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "teachers": [tmp_path / "a.ckpt", tmp_path / "b.ckpt"],
        "teacher_store": tmp_path / "store",
        "epochs": 3,
    }
    given |= {"split": "10_labelled", "max_seconds": "12", "max_ram": "1G"}
    given |= {"out": tmp_path, "dataset": tmp_path / "set", "spacing": None, "fit_words": "", "confirm": None}
    found = experiment("student").stages(argparse.Namespace(**given))
    names = [stage.name for stage in found]
    assert all(name in names[:place] for place, stage in enumerate(found) for name in stage.after), "in order"
    by_name = {stage.name: stage for stage in found}
    assert by_name["label"].words[1:3] == (str(tmp_path / "a.ckpt"), str(tmp_path / "b.ckpt"))
    assert {name for name in names if name.startswith("segment_")} == {
        f"segment_{model}" for model in ("teacher_1", "teacher_2", "teachers_averaged", "student")
    }
    assert by_name["segment_student"].after == ("train",)
    (tmp_path / "plan.json").write_text(json.dumps({"topology": {"features": [8, 16]}}))
    action = by_name["config"].action
    assert action is not None
    action()
    assert json.loads((tmp_path / "config.yaml").read_text()) == {"model": {"topology": {"features": [8, 16]}}}


def test_nnunet_sees_what_ours_see_and_its_label_maps_are_the_studys(tmp_path: Path) -> None:
    peer, config = experiment("nnunet_kbp", "peer"), yaml.safe_load(config_path("kbp_3d").read_text(encoding="utf-8"))
    data, optimiser = config["data"], config["model"]["optimizer"]["init_args"]
    batch, steps = data["global_batch"]["labelled"], data["iterations_per_epoch"]
    assert (data["patch_voxels"], batch, steps) == (peer.PATCH, peer.BATCH, peer.STEPS_PER_EPOCH)
    assert config["trainer"]["max_epochs"] * steps * batch == peer.PATCHES
    assert (
        data["foreground_share"], optimiser["lr"], optimiser["momentum"]
    ) == (peer.FOREGROUND, peer.LR, peer.MOMENTUM)  # fmt: skip
    assert config["model"]["topology"]["features"] == peer.FEATURES
    studies = BENCHMARKS.parent / "configs" / "studies"
    ours, kbp = (read_protocol(studies / f"{name}.yaml") for name in ("nnunet_kbp", "kbp"))
    for name in ("control", "cps"):
        assert (ours.arm(name).config, ours.arm(name).settings) == (kbp.arm(name).config, kbp.arm(name).settings)
    places = {f"{name}{mirrors}" for name in peer.CONFIGURATIONS for mirrors in ("", "_mirrored")}
    places.discard("equal-recipe_mirrored")  # trained without
    given = {arm.predictions for arm in ours.arms if arm.predictions}
    assert given == {f"nnunet_kbp/{place}/seed_{{seed}}" for place in places}
    for folder, name in (("imagesTr", "a_0000"), ("labelsTr", "a")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.nii.gz").touch()
    (tmp_path / "splits.json").write_text('{"10_labelled": {"labelled": ["a"]}}')
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(described | {"name": "kbp"}))
    peer.link_labelled(tmp_path, tmp_path / "raw")
    assert (tmp_path / "raw" / "imagesTr" / "a_0000.nii.gz").resolve() == tmp_path / "imagesTr" / "a_0000.nii.gz"
    assert json.loads((tmp_path / "raw" / "dataset.json").read_text()) == {**described, "numTraining": 1}


def test_nnunets_table_is_made_again_to_the_byte_and_takes_new_rows(tmp_path: Path) -> None:
    results, table = tmp_path / "results", experiment("nnunet_kbp", "table")
    shutil.copytree(BENCHMARKS / "results" / "nnunet_kbp", results)
    kept = {name: (results / name).read_bytes() for name in ("results.csv", "results.md")}
    table.write_table(results)
    assert {name: (results / name).read_bytes() for name in kept} == kept
    scores = results / "runs" / "10_labelled" / "equal_network_mirrored" / "seed_1"
    scores.mkdir(parents=True)
    shutil.copyfile(results / "scores_cps.csv", scores / "scores_1.csv")
    trained = tmp_path / "peer" / "equal-network"
    facts = {"parameters": 350_000, "patch": [32, 32, 32], "patches_seen": 4000, "voxels_seen": 131_072_000}
    figures = {"tree_cpu_s": 60, "duration_s": 90, "tree_ram_mb_max": 1000.4}
    for folder, name in ((trained, "training_seed_1"), (trained.with_name("equal-network_mirrored"), "seed_1")):
        (folder / "efficiency" / "cases").mkdir(parents=True)
        (folder / "efficiency" / "cases" / f"{name}.json").write_text(json.dumps({"figures": figures}))
    (trained / "seed_1.json").write_text(json.dumps(facts))
    for _ in range(2):
        table.add_rows(tmp_path / "peer", results)
    table.write_table(results)
    *before, last = (results / "results.csv").read_text(encoding="utf-8").splitlines()
    assert before == kept["results.csv"].decode().splitlines()
    assert last.endswith("8 mirrors,0.35 M,32×32×32,4000,131,0.6123 ± 0.1231,0.4952 ± 0.1033,1.0,1.5,1000,2.40,1000")


@pytest.fixture
def kbp_table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "kbp"))  # its scripts import each other
    return experiment("kbp", "table")


def test_kbp_numbers_in_the_readme_files_are_those_of_the_runs(kbp_table: ModuleType) -> None:
    tables = kbp_table.all_tables()
    shown = ("in short", "by labels", "peers", "peers in short", "screen")
    for readme, block in zip(kbp_table.READMES, shown, strict=True):
        content = readme.read_text(encoding="utf-8")
        assert block in tables
        assert f"<!-- kbp: {block} -->" in content
        for name, lines in tables.items():
            content = kbp_table.fill(content, name, lines)
        assert content == readme.read_text(encoding="utf-8"), "run benchmarks/kbp/table.py"


def write_scores(folder: Path, rows: Sequence[tuple[float, float]]) -> Path:
    """The folder, made, with a training's scores of scans w, x, … and two organs; NSD is DSC."""
    folder.mkdir(parents=True)
    lines = [f"{case},{a},{b},{a},{b}" for case, (a, b) in zip("wxyz", rows, strict=False)]
    (folder / "scores_1.csv").write_text("\n".join(["Name,p_DSC,q_DSC,p_NSD,q_NSD", *lines]) + "\n")
    return folder


def test_kbp_level_is_the_mean_of_all_scores_and_a_difference_is_paired(kbp_table: ModuleType, tmp_path: Path) -> None:
    """Two scans, two organs, two trainings: by hand."""
    runs = tmp_path / "runs" / "10_labelled"
    for arm, seed, rows in (
        ("control", 0, ((0.5, 0.7), (0.6, 0.8))),
        ("control", 1, ((0.7, 0.9), (0.6, 0.8))),
        ("cps", 0, ((0.8, 0.8), (0.8, 0.8))),
    ):
        folder = write_scores(runs / arm / f"seed_{seed}", rows)
        (folder / "run.json").write_text(json.dumps({"training_cpu_minutes": None if seed else 4.0}))
    control, cps = (kbp_table.entry(arm.title, arm, 10, results=tmp_path) for arm in (kbp_table.CONTROL, kbp_table.CPS))
    heading, _, first, second = kbp_table.table([control, cps])
    assert heading.split(" | ")[1:3] == ["trainings", "DSC"]
    assert first.split(" | ")[1:] == ["2", "0.7000 ± 0.0707", "0.7000 ± 0.0707", "4.0", "", " |"]  # 0.65 and 0.75
    assert second.split(" | ")[1:4] == ["1", "0.8000", "0.8000"]
    assert second.split(" | ")[5].startswith("+0.1000 (+0.1000 to +0.1000)")
    pairs = kbp_table.seed_differences(control, cps)
    assert pairs == pytest.approx([0.15])  # 0.8 and, of the same seed, 0.65
    assert kbp_table.mean_difference(pairs) == "+0.1500 (1 of 1 above 0)"
    assert kbp_table.mean_difference([-0.1, 0.3]) == "+0.1000 ± 0.2828 (1 of 2 above 0)"
    assert "(95 % interval by Student's t -2.4412 to +2.6412)" in kbp_table.over_pairs([-0.1, 0.3])  # 12.706 · 0.2


def test_kbp_effect_of_a_change_is_taken_from_the_seeds_that_both_have(kbp_table: ModuleType, tmp_path: Path) -> None:
    """CPS without augmentation beside CPS (seed 0 alone is common) and beside the control without it (seeds 0, 1)."""
    for arm, scores in (("cps", (0.7,)), ("cps_plain", (0.5, 0.6)), ("control_plain", (0.4, 0.5)), ("control", ())):
        for seed, score in enumerate(scores):
            write_scores(tmp_path / "runs" / "10_labelled" / arm / f"seed_{seed}", [(score, score)] * 3)
    rows = kbp_table.effects_table(tmp_path)[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[1:3] for row in cells] == [["CPS", "1"], ["control, patches not augmented", "2"]]
    assert cells[0][3].startswith("-0.2000 (-0.2000 to -0.2000), p ")
    assert cells[1][3].startswith("+0.1000 (+0.1000 to +0.1000), p ")
    assert [row[4] for row in cells] == ["0 of 3", "3 of 3"]
    assert kbp_table.effects_table(tmp_path / "nothing") == []


def test_kbp_scores_are_split_by_what_a_scan_shows(kbp_table: ModuleType, tmp_path: Path) -> None:
    """CPS gains 0.1 of the first organ in two scans and loses 0.2 of the second in two others; seed 1 stands alone."""
    (tmp_path / "views.csv").write_text("case,view\nw,trunk\nx,tube\ny,tube\nz,trunk\n")
    runs = tmp_path / "runs" / "5_labelled"
    write_scores(runs / "control" / "seed_0", [(0.5, 0.5)] * 4)
    write_scores(runs / "cps" / "seed_0", [(0.5, 0.3), (0.6, 0.5), (0.6, 0.5), (0.5, 0.3)])
    write_scores(runs / "cps" / "seed_1", [(0.0, 0.0)] * 4)
    heading, _, *rows = kbp_table.views_table(tmp_path)
    assert [cell.strip() for cell in heading.split("|")[5:-1]] == ["p", "q", "mean"]
    assert [[cell.strip().split(" ")[0] for cell in row.split("|")[3:-1]] for row in rows] == [
        ["1", "trunk", "+0.000", "-0.200", "-0.100"],
        ["1", "tube", "+0.100", "+0.000", "+0.050"],
    ]
    assert kbp_table.views_table(tmp_path / "nothing") == []


@pytest.mark.parametrize(("upwards", "view"), [(1, "trunk"), (-1, "tube")])
def test_kbp_view_is_told_by_the_lowest_slices(
    upwards: int, view: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the file's first slice is body, and the patient's lowest slice is the file's first or its last."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "kbp"))
    scan = np.full((4, 4, 10), -1024, np.int16)
    scan[:2, :, 0] = 40
    nib.save(nib.Nifti1Image(scan, np.diag([4.0, 4.0, 3.0 * upwards, 1.0])), tmp_path / "scan.nii.gz")
    script = experiment("kbp", "views")
    share = script.body_share(read_volume(tmp_path / "scan.nii.gz"))
    assert share == (0.5 if view == "trunk" else 0.0)
    assert script.view_of(share) == view


def test_a_study_is_kept_training_by_training(tmp_path: Path) -> None:
    """Scores as soon as they are there, a record once the training is done; what is kept is not written again."""
    keep, out, results = experiment("study", "keep").keep, tmp_path / "out", tmp_path / "results"
    cell = Path("10_labelled", "cps", "fold_0", "seed_1")
    run, scores = out / "runs" / cell, out / "scores" / "none" / cell / "average"
    for folder in (run / "csv", scores, out / "stages"):
        folder.mkdir(parents=True)
    (scores / "scores.csv").write_text("Name,p_DSC\nx,0.5\n")
    largest = out / "scores" / "largest" / cell / "average"
    largest.mkdir(parents=True)
    (largest / "scores.csv").write_text("Name,p_DSC\nx,0.6\n")
    (run / "csv" / "metrics.csv").write_text("epoch\n1\n")
    (run / "config.yaml").write_text("trainer: {max_epochs: 4}\n")
    environment = {"finished": "2026-11-28", "completed_epochs": 2, "sessions": [{"finished": "x"}], "git": {},
                   "versions": {}, "machine": {"gpus": [], "threads": 1}, "command": "other"}  # fmt: skip
    stage = {"command": f"flarecps fit --data.store {out}/store", "starts": ["x"], "cpu_s": 90.0}
    (out / "stages" / "train_10_labelled.cps.fold_0.seed_1.json").write_text(json.dumps(stage))
    kept = results / "runs" / "10_labelled" / "cps" / "seed_1"
    for epochs, new in ((2, 0), (4, 1), (4, 0)):
        (run / "environment.json").write_text(json.dumps(environment | {"completed_epochs": epochs}))
        assert keep(out, results) == new
        assert (kept / "scores_average.csv").read_text() == "Name,p_DSC\nx,0.5\n"
        assert (kept / "scores_average_largest.csv").read_text() == "Name,p_DSC\nx,0.6\n"
    record = json.loads((kept / "run.json").read_text())
    assert (record["command"], record["training_cpu_minutes"]) == ("flarecps fit --data.store OUT/store", 1.5)
    assert (kept / "metrics.csv").is_file()


def test_the_screens_largest_pieces_are_those_of_the_scored_trainings() -> None:
    """mistakes.csv and scores of an arm and seed are of one training: their mean DSC is the same."""
    screen = BENCHMARKS / "results" / "kbp" / "screen"
    with (screen / "mistakes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        folder = screen / "runs" / f"{row['labels']}_labelled" / row["arm"] / f"seed_{row['seed']}"
        with (folder / "scores_1.csv").open(encoding="utf-8") as file:
            scores = [
                float(value) for one in csv.DictReader(file) for name, value in one.items() if name.endswith("DSC")
            ]
        assert float(row["dsc"]) == pytest.approx(np.mean(scores), abs=1e-4), folder


def test_largest_pieces_of_another_training_are_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A study that is made again with another outcome adds no post-processed scores to those of the first."""
    keep, results = experiment("study", "keep").keep, tmp_path / "results"
    kept = results / "runs" / "all" / "cps" / "seed_0"
    for name, ways in (
        ("first", {"none": 0.5}),
        ("other", {"largest": 0.7, "none": 0.4}),
        ("same", {"largest": 0.6, "none": 0.5}),
    ):
        for way, score in ways.items():
            cell = tmp_path / name / "scores" / way / "all" / "cps" / "fold_0" / "seed_0" / "1"
            cell.mkdir(parents=True)
            (cell / "scores.csv").write_text(f"Name,p_DSC\nx,{score}\n")
    keep(tmp_path / "first", results)
    keep(tmp_path / "other", results)
    assert [one.name for one in kept.iterdir()] == ["scores_1.csv"]
    assert "seed_0 of cps was scored otherwise by another training" in capsys.readouterr().out
    keep(tmp_path / "same", results)
    assert (kept / "scores_1.csv").read_text() == "Name,p_DSC\nx,0.5\n"
    assert (kept / "scores_1_largest.csv").read_text() == "Name,p_DSC\nx,0.6\n"
    assert not capsys.readouterr().out


def test_a_training_that_a_job_ran_is_kept_by_its_own_record(tmp_path: Path) -> None:
    """A study that is submitted has no record of it: what it took is not known."""
    run = tmp_path / "out" / "runs" / "all" / "cps" / "fold_0" / "seed_0"
    environment = {"finished": "x", "sessions": [{"finished": "x"}], "git": {}, "versions": {}}
    environment |= {"machine": {"gpus": ["A"], "threads": 1}, "command": f"flarecps fit {tmp_path}/out/store"}
    run.mkdir(parents=True)
    (run / "environment.json").write_text(json.dumps(environment))
    found = experiment("study", "keep").record(run, tmp_path / "out")
    assert (found["command"], found["training_cpu_minutes"]) == ("flarecps fit OUT/store", None)


def test_kbp_confirmation_pairs_seeds_and_scans(kbp_table: ModuleType, tmp_path: Path) -> None:
    """Three scans, the students' and controls' common seeds 0 and 1: by hand."""
    del kbp_table  # only puts the experiment's folder on the path
    confirm = experiment("kbp", "confirm")
    runs = tmp_path / "runs" / "10_labelled"
    for arm, scores in (("control_of_self_longer", (0.5, 0.7, 0.9)), ("self_longer", (0.6, 0.9))):
        for seed, score in enumerate(scores):
            write_scores(runs / arm / f"seed_{seed}", [(score, score)] * 3)
    found = confirm.answer(*confirm.PRIMARIES[0], (10,), "1", tmp_path)
    assert found.by_seed == pytest.approx((0.1, 0.2))
    assert found.mean == pytest.approx(0.15)
    reach = 12.7062 * 0.05  # Student's t of one degree of freedom; the standard error
    assert (found.over_seeds.low, found.over_seeds.high) == pytest.approx((0.15 - reach, 0.15 + reach), abs=1e-5)
    assert (found.over_scans.low, found.over_scans.high) == pytest.approx((0.15, 0.15))  # the scans are alike
    assert confirm.answer(*confirm.PRIMARIES[0], (5,), "1", tmp_path) is None
    (row,) = confirm.answer_rows(confirm.ASKED, tmp_path)
    assert row[:2] == ["**equal total compute**", "10"]
    assert row[4:] == ["2 of 2", "+0.1500 (scans +0.1500 to +0.1500; seeds -0.4853 to +0.7853)", ""]
    assert [row[2:5] for row in confirm.level_rows(tmp_path)] == [
        ["13.0", "2", "0.7500 ± 0.2121"], ["13.0", "3", "0.7000 ± 0.2000"]
    ]  # fmt: skip
    for arm, score in (("control_of_self_longer", 0.2), ("self_longer", 0.5)):  # and a pair with five labels
        write_scores(tmp_path / "runs" / "5_labelled" / arm / "seed_1", [(score, score)] * 3)
    assert confirm.answer(*confirm.PRIMARIES[0], (10, 5), "1", tmp_path).by_seed == pytest.approx((0.1, 0.2, 0.3))
    *_, row = confirm.answer_rows(confirm.ASKED, tmp_path)
    reach = 4.30265 * 0.1 / 3**0.5  # two degrees of freedom
    assert (row[1], row[4]) == ("10 and 5", "3 of 3")
    assert row[5] == f"+0.2000 (scans +0.2000 to +0.2000; seeds {0.2 - reach:+.4f} to {0.2 + reach:+.4f})"
