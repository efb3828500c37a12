"""A student's plan: what is tried in which order, what is refused, and what a forecast rests on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flarecps.datasets.catalogue import Catalogue
from flarecps.errors import PlanError
from flarecps.inference.resources.budget import budget_of
from flarecps.inference.resources.forecast import ASSUMED_MACS_PER_S, Forecaster, parameters_of, teacher_of
from flarecps.networks import PlainUNet
from flarecps.networks.cost import network_cost
from flarecps.planning.fingerprint import CaseShape, Fingerprint
from flarecps.planning.histogram import Histogram
from flarecps.planning.plan import Plan, Topology, plan_from_json, plan_to_json, write_plan
from flarecps.planning.planner import plan_dataset
from flarecps.planning.student import ScanForecast, Teacher, plan_student

CASES = tuple(
    CaseShape(f"case_{i}", "labelled", (shape, 512, 512), (2.5, 0.8, 0.8), "LPS", {})
    for i, shape in enumerate((90, 100, 240))
)
CATALOGUE = Catalogue(Path("data"), "Data", {"background": 0, "liver": 1, "spleen": 2}, ("CT",), (), ())


@pytest.fixture(scope="module")
def fingerprint() -> Fingerprint:
    values = Histogram.of(torch.arange(-100, 200).short().numpy())
    return Fingerprint(CASES, values, {1: values})


@pytest.fixture(scope="module")
def teacher(fingerprint: Fingerprint) -> Teacher:
    plan = plan_dataset(fingerprint, CATALOGUE)
    return Teacher(plan, parameters_of(plan), "teacher.json")


class Recorder:
    """A forecast that is fulfilled from the ``number``-th plan on."""

    def __init__(self, number: int, memory: bool = True) -> None:
        self.number, self.memory, self.seen = number, memory, list[Plan]()

    def __call__(self, plan: Plan) -> ScanForecast:
        self.seen.append(plan)
        good = len(self.seen) >= self.number
        return ScanForecast(good or self.memory, good or not self.memory, f"forecast {len(self.seen)}")


def student(fingerprint: Fingerprint, teacher: Teacher, forecast: Any, **more: Any) -> Plan:
    return plan_student(fingerprint, CATALOGUE, teacher, forecast, parameters_of, **more)


def test_a_quarter_of_the_parameters_on_the_teachers_grid_and_then_on_coarser_ones(
    fingerprint: Fingerprint, teacher: Teacher
) -> None:
    first = student(fingerprint, teacher, Recorder(1))
    assert first.spacing_mm == teacher.plan.spacing_mm
    assert first.topology.features[0] == teacher.plan.topology.features[0] // 2
    assert teacher.parameters / 8 < parameters_of(first) <= teacher.parameters / 4
    recorder = Recorder(4)
    fourth = student(fingerprint, teacher, recorder)
    assert [one.spacing_mm for one in recorder.seen] == [
        (2.5, 0.8, 0.8), (2.5, 0.88, 0.88), (2.5, 0.97, 0.97), (2.5, 1.06, 1.06)
    ], "the axes that are far finer than the slices first"  # fmt: skip
    why = fourth.fingerprint["student"]
    assert why["parameters"] == parameters_of(fourth)
    assert "forecast 3" in why["why"]["spacing_mm"]
    assert why["why"]["limits"] == "forecast 4"
    assert plan_from_json(plan_to_json(fourth)) == fourth
    assert fourth.intensity == teacher.plan.intensity


def test_where_memory_is_short_patches_get_smaller_before_the_grid_gets_coarser(
    fingerprint: Fingerprint, teacher: Teacher
) -> None:
    recorder = Recorder(3, memory=False)
    found = student(fingerprint, teacher, recorder)
    assert found.spacing_mm == teacher.plan.spacing_mm
    sizes = [torch.Size(one.patch_voxels).numel() for one in recorder.seen]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_what_never_fits_is_said_with_the_last_forecast(fingerprint: Fingerprint, teacher: Teacher) -> None:
    recorder = Recorder(10**6)
    with pytest.raises(PlanError, match=r"no student keeps the limits; the last of \d+ tried, .*forecast \d+"):
        student(fingerprint, teacher, recorder)
    assert {one.topology.features[0] for one in recorder.seen} == {16, 8}
    coarsest = max(one.spacing_mm[1] for one in recorder.seen)
    assert 0.8 * 1.8 < coarsest <= 0.8 * 2.01
    tiny = replace(teacher, parameters=9_000)
    with pytest.raises(PlanError, match="needs no student"):
        student(fingerprint, tiny, recorder)
    others = replace(teacher, plan=replace(teacher.plan, labels={"background": 0, "heart": 1}))
    with pytest.raises(PlanError, match="other labels"):
        student(fingerprint, others, recorder)


def test_what_is_given_is_kept(fingerprint: Fingerprint, teacher: Teacher) -> None:
    found = student(fingerprint, teacher, Recorder(1), spacing_mm=[4.0, 1.2, 1.2], patch_voxels=[32, 96, 96])
    assert (found.spacing_mm, found.patch_voxels) == ((4.0, 1.2, 1.2), (32, 96, 96))
    with pytest.raises(PlanError, match=r"the last of 2 tried"):  # 16 features first, then 8
        student(fingerprint, teacher, Recorder(9), spacing_mm=[4.0, 1.2, 1.2])


def test_without_a_gpu_cudas_seconds_are_macs_at_an_assumed_rate(teacher: Teacher) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: nothing is assumed")
    plan, one = teacher.plan, teacher.plan.topology
    network = PlainUNet(1, 3, one.features, one.strides, one.kernels).to("meta")
    cost = network_cost(network, 1, plan.patch_voxels)
    forecast = Forecaster(CASES, budget_of(vram="2G", seconds=15.0), "cuda")
    window = forecast._window(plan)
    assert window.seconds == cost.macs / ASSUMED_MACS_PER_S
    assert window.vram_bytes == 4 * (cost.parameters + cost.convolved_elements)
    said = forecast(plan).words
    assert "assumed: none is here" in said
    assert "of 15 s" in said
    assert "of 2.0 GB" in said
    assert not Forecaster(CASES, budget_of(vram="600M"), "cuda")(plan).memory_fits
    assert not Forecaster(CASES, budget_of(seconds=0.01), "cuda")(plan).time_fits


def test_on_this_machine_a_window_is_measured_and_others_follow_by_their_work(tmp_path: Path, teacher: Teacher) -> None:
    small = Topology((4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)))
    plan = replace(teacher.plan, patch_voxels=(16, 16, 16), topology=small)
    forecast = Forecaster(CASES[:1], budget_of(ram="60G"), "cpu")
    one = forecast._window(plan)
    other = forecast._window(replace(plan, patch_voxels=(32, 32, 32)))
    assert other.seconds == pytest.approx(8 * one.seconds)
    assert forecast(plan).memory_fits
    assert "measured on this machine's cpu" in forecast(plan).words
    write_plan(tmp_path / "plan.json", plan)
    assert teacher_of(tmp_path / "plan.json").parameters == sum(
        value.numel() for value in PlainUNet(1, 3, small.features, small.strides, small.kernels).parameters()
    )
