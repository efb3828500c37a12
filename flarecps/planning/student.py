"""A student for deployment: a smaller network on a coarser grid, within a stated time and memory at inference.

FLARE22's winner, a fast student of slow teachers, had voxels of 4.0×1.2×1.2 mm, half the features and no mirroring:
14.6 s and less than 2 GB a scan (Huang et al. 2022). Here the teacher's own grid is tried first, then coarser ones,
then narrower networks, until what is forecast for the data set's largest scan keeps the limits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from flarecps.datasets.catalogue import Catalogue
from flarecps.errors import PlanError
from flarecps.planning.fingerprint import Fingerprint
from flarecps.planning.memory import Learners, MemoryModel
from flarecps.planning.plan import Plan, Topology, checked
from flarecps.planning.planner import plan_dataset
from flarecps.planning.spacing import coarser, in_canonical_order
from flarecps.planning.topology import MOST_FEATURES
from flarecps.typing import SpacingMm

PARAMETER_SHARE = 4  # a student has at most this part of its teacher's parameters
WIDTH = 8  # features come in multiples of it: what CPUs and GPUs compute at once
STEP = 1.1  # of the spacing, from one grid to the next coarser one
COARSEST = 2.0  # times the teacher's spacing; what is thinner than its voxels is lost for good
SMALLEST_SHARE = 16  # of the training's memory: patches are made smaller where they take too much at inference
STREAMS = 2  # labelled and pseudo-labelled patches
Parameters: TypeAlias = Callable[[Plan], int]


@dataclass(frozen=True)
class ScanForecast:
    """Whether a plan's network is estimated to keep the limits of memory and of time, and the estimate in words."""

    memory_fits: bool
    time_fits: bool
    words: str

    @property
    def fits(self) -> bool:
        """Whether it keeps both."""
        return self.memory_fits and self.time_fits


@dataclass(frozen=True)
class Teacher:
    """Whose student is planned: its plan, with the topology that it really has; its parameters; what it is called."""

    plan: Plan
    parameters: int
    name: str


def plan_student(
    fingerprint: Fingerprint,
    catalogue: Catalogue,
    teacher: Teacher,
    forecast: Callable[[Plan], ScanForecast],
    parameters: Parameters,
    gpu_memory_gb: float = 8.0,
    spacing_mm: list[float] | None = None,
    patch_voxels: list[int] | None = None,
    most_features: int | None = None,
) -> Plan:
    """The first plan of a student whose ``forecast`` keeps the limits; what was chosen, and why, is in its fingerprint.

    ``parameters`` counts those of a plan's network. ``gpu_memory_gb`` is for a training step, of one network with
    labelled and pseudo-labelled patches. ``spacing_mm`` (canonical), ``patch_voxels`` and ``most_features`` fix what is
    else chosen. Intensities and conventions are the teacher's. Raises ``PlanError`` when labels or channels are not the
    teacher's, or nothing that may be tried keeps the limits.
    """
    if (catalogue.labels, catalogue.channels) != (teacher.plan.labels, teacher.plan.channels):
        raise PlanError(
            f"{teacher.name}: other labels or channels than {catalogue.root}; name a teacher of this data set"
        )
    tried, said = 0, ""
    for first in _first_features(teacher.plan.topology.features[0]):
        for factor, spacing in _spacings(teacher.plan, spacing_mm):
            memory_gb = gpu_memory_gb
            while True:
                try:
                    plan = plan_dataset(
                        fingerprint, catalogue, teacher.plan.dimensions, "global", memory_gb, spacing, patch_voxels,
                        most_features, teacher.plan.axis_order, Learners(1), STREAMS, first,
                    )  # fmt: skip
                except PlanError:
                    if tried:
                        break  # no patch of so little memory
                    raise
                narrow = _narrowed(plan, first, most_features, teacher.parameters // PARAMETER_SHARE, parameters)
                if narrow is None:
                    break
                plan = replace(narrow, intensity=teacher.plan.intensity, conventions=teacher.plan.conventions)
                found, tried = forecast(plan), tried + 1
                if found.fits:
                    why = _reasons(plan, teacher, parameters(plan), factor, said, found, patch_voxels is not None)
                    summary = plan.fingerprint | {"student": why}
                    return checked(replace(plan, fingerprint=summary), f"the student's plan for {catalogue.root}")
                said = f"{_times(plan.spacing_mm)} mm, {first} features first: {found.words}"
                memory_gb /= 2
                if found.memory_fits or patch_voxels is not None or memory_gb * SMALLEST_SHARE < gpu_memory_gb:
                    break
    if not tried:
        raise PlanError(
            f"{teacher.name}: has {teacher.parameters:,} parameters; no network of {WIDTH} features and more has a "
            f"quarter of them; it needs no student"
        )
    raise PlanError(f"no student keeps the limits; the last of {tried} tried, {said}. Allow more time or memory")


def _first_features(of_teacher: int) -> Iterator[int]:
    """Half the teacher's, in whole multiples of 8, and half of that, down to 8."""
    first = max(WIDTH, of_teacher // 2 // WIDTH * WIDTH)
    while True:
        yield first
        if first == WIDTH:
            return
        first = max(WIDTH, first // 2 // WIDTH * WIDTH)


def _spacings(teacher: Plan, given: list[float] | None) -> Iterator[tuple[float, list[float]]]:
    """Times the teacher's, and the canonical spacing in mm: the one given, or the teacher's own and coarser ones.

    In 2D only those axes that the network sees are coarsened.
    """
    if given is not None:
        yield 1.0, given
        return
    seen = slice(3 - teacher.dimensions, 3)
    factor, spacing = 1.0, np.array(teacher.spacing_mm, dtype=float)
    while factor <= COARSEST:
        rounded = spacing if factor == 1 else spacing.round(2)
        yield factor, list(in_canonical_order(rounded.tolist(), teacher.axis_order))
        factor *= STEP
        spacing[seen] = coarser(spacing[seen], STEP)


def _narrowed(plan: Plan, first: int, most: int | None, limit: int, parameters: Parameters) -> Plan | None:
    """The plan's network with as many parameters as ``limit`` allows: fewer features in deep stages, or a stage less.

    None when it has more with 8 features in every stage.
    """
    widest = MOST_FEATURES[plan.dimensions] if most is None else most
    found = []
    for stages in {len(plan.topology.features), max(len(plan.topology.features) - 1, 2)}:

        def with_most(features: int, stages: int = stages) -> Plan:
            widths = tuple(min(first * 2**stage, features) for stage in range(stages))
            kernels = (*plan.topology.kernels[: stages - 1], plan.topology.kernels[-1])
            return replace(plan, topology=Topology(widths, plan.topology.strides[:stages], kernels))

        widths = range(first, max(first, widest) + 1, WIDTH)
        fitting = bisect_right(widths, limit, key=lambda features: parameters(with_most(features)))
        if fitting:
            one = with_most(widths[fitting - 1])
            found.append((parameters(one), stages, one))
    if not found:
        return None
    *_, narrow = max(found, key=lambda entry: entry[:2])
    memory = MemoryModel(plan.memory_gb, plan.dimensions, plan.class_count, Learners(1), STREAMS)
    step_gb = memory.step_gb(plan.patch_voxels, narrow.topology, plan.global_batch["labelled"])
    return replace(narrow, memory_gb=round(step_gb, 2))


def _reasons(
    plan: Plan, teacher: Teacher, count: int, factor: float, refused: str, found: ScanForecast, patch_given: bool
) -> dict[str, Any]:
    """A line for everything that was chosen."""
    features, before = plan.topology.features, teacher.plan.topology.features
    covered = np.prod(
        [min(a, b) for a, b in zip(plan.patch_voxels, plan.median_shape_voxels[-plan.dimensions :], strict=True)]
    )
    share = covered / np.prod(plan.median_shape_voxels[-plan.dimensions :], dtype=float)
    grid = f"the teacher's {_times(teacher.plan.spacing_mm)} mm" + (
        "" if factor == 1 else f", coarsened {factor:.2f} times"
    )
    return {
        "teacher": teacher.name,
        "teacher_parameters": teacher.parameters,
        "parameters": count,
        "why": {
            "spacing_mm": grid + (f"; the one before did not keep the limits: {refused}" if refused else ""),
            "topology": f"{'-'.join(map(str, features))} features instead of {'-'.join(map(str, before))}: "
            f"{count / teacher.parameters:.0%} of the teacher's parameters, at most a quarter",
            "patch_voxels": f"{'as given' if patch_given else 'the largest that the memory allows'}: "
            f"{share:.0%} of the median scan",
            "mirroring": "none: it would take up to 8 times as long",
            "limits": found.words,
        },
    }


def _times(values: SpacingMm | tuple[float, ...]) -> str:
    return "×".join(f"{value:g}" for value in values)
