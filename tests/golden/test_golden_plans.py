"""Our plans beside those that nnU-Net 2.8.1's default planner made of the same geometries (``nnunet_plans.json``).

``benchmarks/planner_parity/compare.py`` wrote the file; run it to ask nnU-Net again. We plan with four times
nnU-Net's memory, because a step here holds four of its steps, and with its 2D features of 512.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flarecps.datasets.catalogue import Catalogue
from flarecps.errors import PlanError
from flarecps.planning.fingerprint import CaseShape, Fingerprint
from flarecps.planning.histogram import Histogram
from flarecps.planning.plan import Plan
from flarecps.planning.planner import plan_dataset

PAIRS = json.loads(Path(__file__).with_name("nnunet_plans.json").read_text(encoding="utf-8"))["pairs"]
NAMES = [pair["geometry"]["name"] for pair in PAIRS]
CONFIGURATIONS = {2: "2d", 3: "3d_fullres"}


def our_plan(geometry: dict[str, Any], dimensions: Any, order: Any = None) -> Plan:
    cases = tuple(
        CaseShape(f"case_{i:04}", "labelled", tuple(shape), tuple(spacing), "RAS", {})
        for i, (shape, spacing) in enumerate(zip(geometry["shapes_voxels"], geometry["spacings_mm"], strict=True))
    )
    labels = {"background": 0} | {f"structure {label}": label for label in range(1, geometry["classes"])}
    catalogue = Catalogue(Path("data"), "Data", labels, ("CT",) * geometry["channels"], (), ())
    return plan_dataset(
        Fingerprint(cases, Histogram.of(np.arange(-1000, 1000))),
        catalogue,
        dimensions,
        gpu_memory_gb=4 * geometry["gpu_memory_gb"],
        most_features={2: 512, 3: 320}[dimensions],
        order=order,
    )


def test_there_are_many_and_the_real_ones_are_among_them() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 70
    assert sum(name.startswith("real: ") for name in NAMES) == 6
    assert not any("error" in pair["answer"] for pair in PAIRS)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
def test_nnunet_decides_the_same(pair: dict[str, Any], dimensions: int) -> None:
    geometry, answer = pair["geometry"], pair["answer"]
    if CONFIGURATIONS[dimensions] not in answer:
        with pytest.raises(PlanError, match=r"single slice.*--dimensions 2"):
            our_plan(geometry, dimensions)
        return
    theirs = answer[CONFIGURATIONS[dimensions]]
    plan = our_plan(geometry, dimensions)
    if list(plan.axis_order) != answer["axis_order"]:  # only where no axis is clearly the coarse one
        _, middle, largest = sorted(plan.spacing_mm)
        assert plan.axis_order == (0, 1, 2)
        assert largest < 1.05 * middle
        plan = our_plan(geometry, dimensions, tuple(answer["axis_order"]))
    assert plan.spacing_mm[3 - dimensions :] == pytest.approx(theirs["spacing_mm"], rel=1e-9)
    assert list(plan.median_shape_voxels)[3 - dimensions :] == np.rint(theirs["median_shape_voxels"]).tolist()
    assert list(plan.patch_voxels) == theirs["patch_voxels"]
    assert list(plan.topology.features) == theirs["features"]
    assert [list(stride) for stride in plan.topology.strides] == theirs["strides"]
    assert [list(kernel) for kernel in plan.topology.kernels] == theirs["kernels"]
    assert plan.global_batch == {"labelled": theirs["batch"], "unlabelled": theirs["batch"]}
    assert plan.batch_dice == theirs["batch_dice"]
