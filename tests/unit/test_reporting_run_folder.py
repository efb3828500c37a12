"""Run folders: whatever exists is read, what is damaged is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flarecps.anatomy import FLARE22_LABELS
from flarecps.errors import ConfigError, DatasetError
from flarecps.planning.plan import Intensity, Plan, Topology, write_plan
from flarecps.reporting.run_description import describe_plan
from flarecps.reporting.run_folder import read_run, read_runs, scans_by_name

CSV = (
    "Name,Liver_DSC,RK_DSC,Liver_NSD,RK_NSD\n"
    "a.nii.gz,0.9,0.5,0.8,0.4\n"
    "b.nii.gz,0.7,,0.6,\n"
)  # fmt: skip
SEGMENTATIONS, SCORES = Path("segmentations"), Path("scores")


def a_plan(labels: dict[str, int] | None = None, **changes: object) -> Plan:
    settings: dict = {
        "dataset": "Phantom", "dimensions": 3, "labels": labels or FLARE22_LABELS, "left_right_pairs": (),
        "channels": ("CT",), "spacing_mm": (2.5, 0.8, 0.8), "axis_order": (0, 1, 2),
        "median_shape_voxels": (100, 400, 400), "patch_voxels": (32, 64, 64),
        "topology": Topology((8, 16), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3))),
        "global_batch": {"labelled": 2, "unlabelled": 2}, "batch_dice": True,
        "intensity": Intensity("ct", -958.0, 326.0, 101.25, 141.0, "foreground"), "fingerprint": {}, "memory_gb": 7.5,
    }  # fmt: skip
    return Plan(**settings | changes)


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", a_plan())
    run = read_run(tmp_path, "new", SEGMENTATIONS, SCORES)
    assert run.plan == a_plan()
    assert [organ.name for organ in run.organs][:2] == ["liver", "right kidney"]
    assert run.metrics == {}
    assert run.scores is None
    assert run.notes == ()


def test_a_complete_run(tmp_path: Path) -> None:
    for folder in ("csv", "scores", "segmentations"):
        (tmp_path / folder).mkdir()
    (tmp_path / "csv" / "metrics.csv").write_text("epoch,step,train/loss\n0,1,2\n")
    (tmp_path / "scores" / "scores.csv").write_text(CSV)
    (tmp_path / "segmentations" / "a.nii.gz").write_bytes(b"")
    (tmp_path / "segmentations" / ".partial-1-b.nii.gz").write_bytes(b"")
    (tmp_path / "environment.json").write_text(json.dumps({"command": "flarecps fit"}))
    (tmp_path / "config.yaml").write_text("trainer:\n  max_epochs: 3\n  default_root_dir: ${somewhere}\n")
    run = read_run(tmp_path, "r", SEGMENTATIONS, SCORES)
    assert run.scores is not None
    assert list(run.predictions) == ["a"]
    assert run.config["trainer"]["max_epochs"] == 3
    assert run.environment["command"] == "flarecps fit"
    assert [organ.name for organ in run.organs] == ["liver", "right kidney"]  # without a plan, from the table


def test_damaged_parts_become_notes(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "metrics.csv").write_text("epoch,step,train/loss\n0,1,2\n")
    (tmp_path / "plan.json").write_text("{")
    (tmp_path / "environment.json").write_text("[1]")
    (tmp_path / "config.yaml").write_text("a: [1\n")
    run = read_run(tmp_path, "r", SEGMENTATIONS, SCORES)
    assert set(run.metrics) == {"train/loss"}
    assert [note.split(":")[1].split()[0] for note in run.notes] == ["plan", "environment", "config"]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such run folder"):
        read_run(tmp_path / "missing", "r", SEGMENTATIONS, SCORES)
    with pytest.raises(DatasetError, match="holds nothing of a run"):
        read_run(tmp_path, "r", SEGMENTATIONS, SCORES)


def runs_at(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True)
        write_plan(folder / "plan.json", a_plan())


def test_names_are_the_shortest_that_differ(tmp_path: Path) -> None:
    runs_at(tmp_path / "a" / "cps", tmp_path / "b" / "cps", tmp_path / "b" / "control")
    found = read_runs([tmp_path / "a" / "cps", tmp_path / "b" / "control"], None, SEGMENTATIONS, SCORES)
    assert [run.name for run in found] == ["cps", "control"]
    found = read_runs([tmp_path / "a" / "cps", tmp_path / "b" / "cps"], None, SEGMENTATIONS, SCORES)
    assert [run.name for run in found] == ["a/cps", "b/cps"]
    found = read_runs([tmp_path / "a" / "cps"], ["CPS"], SEGMENTATIONS, SCORES)
    assert [run.name for run in found] == ["CPS"]


def test_contradictions_between_runs(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    runs_at(one, two)
    with pytest.raises(ConfigError, match="twice"):
        read_runs([one, tmp_path / "two" / ".." / "one"], None, SEGMENTATIONS, SCORES)
    for names in (["a"], ["a", "a"], ["a", "b", "c"]):
        with pytest.raises(ConfigError, match="expected 2 different names"):
            read_runs([one, two], names, SEGMENTATIONS, SCORES)
    write_plan(two / "plan.json", a_plan({"background": 0, "left atrium": 1}))
    with pytest.raises(DatasetError, match="another label set"):
        read_runs([one, two], None, SEGMENTATIONS, SCORES)


def test_scans_by_name(tmp_path: Path) -> None:
    for name in ("b_0000.nii.gz", "b_0001.nii.gz", "a.nrrd", "pt_12.nii", "notes.txt", ".partial-x-c.nii.gz"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "series_0001").mkdir()
    found = scans_by_name(tmp_path)
    assert {name: path.name for name, path in found.items()} == {
        "a": "a.nrrd", "b": "b_0000.nii.gz", "pt_12": "pt_12.nii", "series_0001": "series_0001",
    }  # fmt: skip
    assert scans_by_name(None) == {}
    assert scans_by_name(tmp_path / "missing") == {}


def test_a_plan_in_words() -> None:
    words = dict(describe_plan(a_plan(left_right_pairs=((2, 13),))))
    assert "13: liver, right kidney" in words["Structures"]
    assert "right kidney and left kidney" in words["Structures"]
    plain = {subject: sentence.replace("\u00a0", " ") for subject, sentence in words.items()}
    assert "2.5 × 0.8 × 0.8 mm (slice × row × column)" in plain["Spacing"]
    assert "−958 … 326 HU" in plain["Intensities"]
    assert "labelled structures" in plain["Intensities"]
    assert "32 × 64 × 64 voxels (80 × 51 × 51 mm)" in plain["Patches"]
    assert "3D U-Net with 2 stages of 8, 16 features" in plain["Network"]
    assert "2 × 2 × 2" in plain["Network"]
    assert "7.50 GB" in plain["Memory"]


def test_a_two_dimensional_plan_in_words() -> None:
    topology = Topology((8, 16), ((1, 1), (2, 2)), ((3, 3), (3, 3)))
    plan = a_plan(dimensions=2, patch_voxels=(64, 64), topology=topology, intensity=Intensity("zscore"))
    words = {subject: sentence.replace("\u00a0", " ") for subject, sentence in describe_plan(plan)}
    assert "0.8 × 0.8 mm within the plane" in words["Spacing"]
    assert "64 × 64 voxels (51 × 51 mm)" in words["Patches"]
    assert "own mean" in words["Intensities"]


def test_a_case_number_is_not_taken_for_a_channel(tmp_path: Path) -> None:
    for name in ("FLARE22_Tr_0001.nii.gz", "FLARE22_Tr_0002.nii.gz", "brain_0000.nii.gz", "brain_0001.nii.gz"):
        (tmp_path / name).touch()
    assert sorted(scans_by_name(tmp_path)) == ["FLARE22_Tr_0001", "FLARE22_Tr_0002", "brain"]
