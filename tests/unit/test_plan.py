"""The plan file: exact round trip, and errors that name key, value, expectation and cure."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flarecps.errors import PlanError
from flarecps.planning.plan import Intensity, Plan, Topology, plan_from_json, plan_to_json, read_plan, write_plan


def a_plan() -> Plan:
    return Plan(
        dataset="Abdomen",
        dimensions=3,
        labels={"background": 0, "liver": 1, "right kidney": 2, "left kidney": 3},
        left_right_pairs=((2, 3),),
        channels=("CT",),
        spacing_mm=(2.5, 0.1 + 0.2, 1 / 3),  # numbers that a careless printer would shorten
        axis_order=(0, 1, 2),
        median_shape_voxels=(100, 300, 310),
        patch_voxels=(32, 64, 64),
        topology=Topology(
            features=(32, 64, 128),
            strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
            kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        ),
        global_batch={"labelled": 2, "unlabelled": 2},
        batch_dice=True,
        intensity=Intensity("ct", -973.5, 295.0, 12.3456789012345, 141.0, "foreground"),
        fingerprint={"cases": {"labelled": 5}, "spacing_mm": {"median": [2.5, 0.3, 0.3]}},
        memory_gb=7.25,
    )


def changed(path: str, value: Any) -> dict[str, Any]:
    """A plan's JSON with the entry at a dotted path replaced; removed where ``value`` is Ellipsis."""
    content = copy.deepcopy(plan_to_json(a_plan()))
    *sections, key = path.split(".")
    place = content
    for section in sections:
        place = place[section]
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return content


@pytest.mark.parametrize(
    "plan",
    [
        a_plan(),
        replace(a_plan(), intensity=Intensity("zscore"), channels=("T1", "T2"), left_right_pairs=()),
        replace(
            a_plan(),
            dimensions=2,
            patch_voxels=(64, 64),
            topology=Topology((32, 64), ((1, 1), (2, 2)), ((3, 3), (3, 3))),
        ),
    ],
    ids=["3D", "zscore", "2D"],
)
def test_a_plan_survives_its_file_exactly(plan: Plan, tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


def test_what_json_can_not_hold_is_named() -> None:
    plan = replace(a_plan(), fingerprint={"cases": np.int64(3), "means": np.ones(2)})
    assert plan_to_json(plan)["fingerprint"] == {"cases": 3, "means": [1.0, 1.0]}
    with pytest.raises(PlanError, match=r"holds a .*Path"):
        plan_to_json(replace(plan, fingerprint={"folder": Path("x")}))


def test_the_file_names_format_version_and_units() -> None:
    content = plan_to_json(a_plan())
    assert (content["format"], content["version"]) == ("flarecps-plan", 1)
    assert {"low_hu", "high_hu", "mean_hu", "sd_hu"} < content["intensity"].keys()
    assert {"spacing_mm", "patch_voxels", "memory_gb"} < content.keys()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("format", "nnunet", ["'format' is \"nnunet\"", "flarecps-plan"]),
        ("version", 99, ["'version' is 99", "plan again"]),
        ("dimensions", 4, ["'dimensions' is 4", "2 or 3"]),
        ("dimensions", True, ["'dimensions' is true"]),
        ("spacing_mm", [2.5, 0, 1], ["'spacing_mm'", "3 numbers, each above 0"]),
        ("spacing_mm", [2.5, 1.0], ["'spacing_mm'", "3 numbers"]),
        ("spacing_mm", [2.5, float("nan"), 1.0], ["'spacing_mm'"]),
        ("spacing_mm", ..., ["'spacing_mm' is missing"]),
        ("patch_voxels", [33, 64, 64], ["'patch_voxels'", "axis 0", "multiple of 2", "use 32"]),
        ("patch_voxels", [32, 64], ["'patch_voxels'", "3 whole numbers"]),
        ("patch_voxels", [32.0, 64, 64], ["'patch_voxels'", "whole numbers"]),
        ("axis_order", [0, 1, 1], ["'axis_order'", "once each"]),
        ("labels", {"background": 0, "liver": 2}, ["'labels'", "without gaps", "dataset.json"]),
        ("labels", {"liver": 0, "spleen": 1}, ["'labels'", "'background': 0"]),
        ("left_right_pairs", [[2, 9]], ["'left_right_pairs'", "[1, 2, 3]"]),
        ("channels", [], ["'channels'", "list of texts"]),
        ("topology.features", [32, 64], ["'topology.strides'", "2 entries"]),
        ("topology.strides", [[2, 2, 2], [1, 2, 2], [2, 2, 2]], ["'topology.strides'", "first entry [1, 1, 1]"]),
        ("topology.kernels", [[1, 3, 3], [2, 2, 2], [3, 3, 3]], ["'topology.kernels'", "odd"]),
        ("topology.kernel", [[3, 3, 3]], ["'topology.kernel' is not an entry", "'kernels'"]),
        ("global_batch.labelled", 0, ["'global_batch.labelled' is 0", "at least 1"]),
        ("intensity.scheme", "mri", ["'intensity.scheme'", "'ct' or 'zscore'"]),
        ("intensity.sd_hu", 0, ["'intensity.sd_hu' is 0", "above 0"]),
        ("intensity.low_hu", 500, ["'intensity.low_hu' is 500", "less than high_hu (295"]),
        ("intensity", None, ["'intensity' holds null"]),
        ("patch_voxels", [2, 4, 4], ["'patch_voxels'", "more than one voxel at the deepest stage", "larger patch"]),
        ("patch_voxels", [32, 66, 64], ["'patch_voxels'", "axis 1", "multiple of 4", "use 64"]),
        ("spacing_mm", [2.5, -0.8, 0.8], ["'spacing_mm'", "each above 0"]),
        ("version", "1", ["'version' is \"1\"", "a whole number"]),
        ("labels", {"background": 0, "liver": 1, "spleen": 1}, ["'labels'", "repeats", "renumber"]),
        ("labels", {"background": 0, "liver": "1"}, ["'labels'", "whole-number ids"]),
        ("labels", {"background": 0}, ["'labels'", "at least one structure"]),
        ("labels", {"background": 0} | {f"s{i}": i for i in range(1, 257)}, ["'labels'", "at most 255 structures"]),
        ("left_right_pairs", [[2, 2]], ["'left_right_pairs'", "two different label ids"]),
        ("left_right_pairs", [[2]], ["'left_right_pairs'", "2 whole numbers"]),
        ("topology.features", [], ["'topology.features'", "a list of whole numbers"]),
        ("topology.features", [32, 0, 128], ["'topology.features'", "at least 1"]),
        ("topology.strides", [[1, 1, 1], [1, 2], [2, 2, 2]], ["'topology.strides'", "3 whole numbers"]),
        ("topology.strides", [[1, 1, 1], [0, 2, 2], [2, 2, 2]], ["'topology.strides'", "at least 1"]),
        ("topology.kernels", [[1, 3, 3], [3, 3, 3]], ["'topology.kernels'", "3 entries, one per stage"]),
        ("median_shape_voxels", [100, 300], ["'median_shape_voxels'", "3 whole numbers"]),
        ("global_batch.unlabelled", -1, ["'global_batch.unlabelled' is -1", "at least 0"]),
        ("global_batch.test", 2, ["'global_batch.test' is not an entry"]),
        ("intensity.source", "everything", ["'intensity.source'", "'global' or 'foreground'"]),
        ("intensity.low", -900, ["'intensity.low' is not an entry", "'low_hu'"]),
        ("memory_gb", -1, ["'memory_gb' is -1", "at least 0"]),
        ("batch_dice", 1, ["'batch_dice' is 1", "true or false"]),
        ("spacing", [1, 1, 1], ["'spacing' is not an entry", "did you mean 'spacing_mm'?"]),
    ],
)
def test_a_wrong_entry_is_explained(path: str, value: Any, said: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        plan_from_json(changed(path, value), "my_plan.json")
    message = str(caught.value)
    assert message.startswith("my_plan.json: ")
    for words in said:
        assert words in message


def entries(content: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths of all entries that the format names; labels and the fingerprint are free inside."""
    paths = []
    for key, value in content.items():
        paths.append(prefix + key)
        if isinstance(value, dict) and key not in ("labels", "fingerprint"):
            paths += entries(value, f"{prefix}{key}.")
    return paths


NO_ENTRY_TAKES = [..., None, {"x": []}, "x", [None], float("inf")]
LEGAL = [("dataset", "x"), ("fingerprint", {"x": []})]  # free text, and an object for people


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (path, value)
        for path in entries(plan_to_json(a_plan()))
        for value in NO_ENTRY_TAKES
        if (path, value) not in LEGAL
    ],
    ids=str,
)
def test_no_entry_may_be_missing_or_of_another_kind(path: str, value: Any) -> None:
    with pytest.raises(PlanError) as caught:
        plan_from_json(changed(path, value), "my_plan.json")
    assert str(caught.value).startswith("my_plan.json: ")
    assert f"'{path}" in str(caught.value)


def test_a_repeated_key_is_refused(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", a_plan())
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace('"batch_dice": true', '"batch_dice": true,\n "batch_dice": false'))
    with pytest.raises(PlanError, match=r"plan\.json: 'batch_dice' stands twice"):
        read_plan(tmp_path / "plan.json")


def test_a_misspelt_key_is_pointed_out_where_it_is_missed() -> None:
    content = changed("patch_voxels", ...) | {"patch_voxel": [32, 64, 64]}
    with pytest.raises(PlanError, match="'patch_voxels' is missing; is 'patch_voxel' a misspelling"):
        plan_from_json(content)


@pytest.mark.parametrize("text", [None, "{", "[1, 2]", '"plan"'])
def test_files_that_are_no_plan(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PlanError, match=r"plan\.json: "):
        read_plan(path)


def test_a_plan_that_would_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="multiple of 2"):
        write_plan(tmp_path / "plan.json", replace(a_plan(), patch_voxels=(31, 64, 64)))
    assert not list(tmp_path.iterdir())


def test_only_what_decides_stored_voxels_changes_the_preprocessing_hash() -> None:
    plan = a_plan()
    same = [
        replace(plan, intensity=Intensity("ct", -100, 200, 0, 50)),
        replace(plan, patch_voxels=(16, 32, 32)),
        replace(plan, memory_gb=1.0, dataset="other"),
    ]
    other = [
        replace(plan, spacing_mm=(2.0, 1.0, 1.0)),
        replace(plan, axis_order=(1, 0, 2)),
        replace(plan, channels=("PET",)),
        replace(plan, intensity=Intensity("zscore")),
    ]
    assert {one.preprocessing_hash() for one in same} == {plan.preprocessing_hash()}
    assert plan.preprocessing_hash() not in {one.preprocessing_hash() for one in other}
