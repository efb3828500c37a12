"""From what a data set looks like to the plan that it decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from flarecps.datasets.catalogue import Catalogue
from flarecps.errors import PlanError
from flarecps.planning.fingerprint import Fingerprint, is_ct
from flarecps.planning.histogram import Histogram
from flarecps.planning.memory import CROSS_PSEUDO, STREAMS, Learners, MemoryModel
from flarecps.planning.plan import Intensity, IntensitySource, Plan, checked
from flarecps.planning.spacing import axis_order, coarser, in_network_order, median_shape_voxels, target_spacing_mm
from flarecps.planning.topology import FIRST_FEATURES, fit_patch, given_patch
from flarecps.typing import Triple, triple

CLIP_PERCENTILES = (0.5, 99.5)  # nnU-Net's window for CT
LOW_RESOLUTION_BELOW = 0.25  # nnU-Net adds a low-resolution stage where a patch sees less of the median scan than this
COARSER_STEP = 1.03  # of the spacing, in the search for that stage


def plan_dataset(
    fingerprint: Fingerprint,
    catalogue: Catalogue,
    dimensions: Literal[2, 3] = 3,
    intensity: IntensitySource = "global",
    gpu_memory_gb: float = 8.0,
    spacing_mm: Sequence[float] | None = None,
    patch_voxels: Sequence[int] | None = None,
    most_features: int | None = None,
    order: Triple | None = None,
    learners: Learners = CROSS_PSEUDO,
    streams: int = STREAMS,
    first_features: int = FIRST_FEATURES,
) -> Plan:
    """The plan for a data set: nnU-Net v2's heuristics, with the memory that the method's step takes.

    That is of ``learners``, each with patches of ``streams`` kinds: what a method declares, here cross pseudo
    supervision's two siblings with labelled and unlabelled patches.

    ``spacing_mm`` (canonical: slice, row, column), ``patch_voxels`` (network order), ``most_features`` (of a stage),
    ``order`` (canonical axes in network order) and ``first_features`` override what the data and the paper say.
    Raises ``PlanError`` when the settings contradict each other or nothing fits the memory.
    """
    if dimensions not in (2, 3):
        raise PlanError(f"dimensions {dimensions!r}: expected 2 (slices) or 3 (volumes)")
    if not gpu_memory_gb > 0:
        raise PlanError(f"GPU memory {gpu_memory_gb} GB: expected a number above 0")
    if most_features is not None and most_features < 1:
        raise PlanError(f"--most-features {most_features}: expected at least 1; the paper has 320 in 3D, 480 in 2D")
    if not fingerprint.cases:
        raise PlanError(f"{catalogue.root}: nothing to plan on: the fingerprint holds no case")
    if spacing_mm is None:
        target = target_spacing_mm(fingerprint.cases)
    elif len(spacing_mm) == 3 and all(np.isfinite(edge) and edge > 0 for edge in spacing_mm):
        target = triple(map(float, spacing_mm))
    else:
        raise PlanError(f"--spacing {list(spacing_mm)}: expected three millimetres above 0 (slice, row, column)")
    order = axis_order(target) if order is None else order
    spacing = in_network_order(target, order)
    shape = in_network_order(median_shape_voxels(fingerprint.cases, target), order)
    if dimensions == 3 and shape[0] <= 1:
        raise PlanError(f"{catalogue.root}: most scans have a single slice; plan with --dimensions 2")
    seen = slice(3 - dimensions, 3)  # a 2D network does not see the first axis
    memory = MemoryModel(gpu_memory_gb, dimensions, len(catalogue.labels), learners, streams)
    if patch_voxels is None:
        patch, topology = fit_patch(spacing[seen], shape[seen], memory, most_features, first_features)
    else:
        patch, topology = given_patch(spacing[seen], tuple(patch_voxels), most_features, first_features)
    labelled_voxels = float(np.prod(shape)) * fingerprint.count("labelled")
    batch = memory.batch(patch, topology, labelled_voxels)
    return checked(
        Plan(
            dataset=catalogue.name,
            dimensions=dimensions,
            labels=dict(catalogue.labels),
            left_right_pairs=catalogue.left_right_pairs,
            channels=catalogue.channels,
            spacing_mm=spacing,
            axis_order=order,
            median_shape_voxels=triple(int(np.rint(edge)) for edge in shape),
            patch_voxels=patch,
            topology=topology,
            global_batch={"labelled": batch, "unlabelled": batch},
            batch_dice=dimensions == 2 or _has_low_resolution_stage(spacing, shape, patch, memory, most_features),
            intensity=_decide_intensity(fingerprint, catalogue.channels, intensity),
            fingerprint=_fingerprint_summary(fingerprint, catalogue.labels),
            memory_gb=round(memory.step_gb(patch, topology, batch), 2),
        ),
        f"the plan for {catalogue.root}",
    )


def _decide_intensity(fingerprint: Fingerprint, channels: Sequence[str], source: IntensitySource) -> Intensity:
    """CT: window (0.5 and 99.5 percentiles), mean and SD of all voxels or of labelled structures; else z-score."""
    if source not in ("global", "foreground"):
        raise PlanError(f"intensity {source!r}: expected 'global' (all voxels) or 'foreground' (labelled structures)")
    if not is_ct(channels):
        return Intensity("zscore", source=source)
    histogram = (fingerprint.histogram or Histogram.empty()) if source == "global" else fingerprint.foreground
    if not histogram.count:
        raise PlanError("no voxel of a labelled structure was found for --intensity foreground; use --intensity global")
    low, high = (histogram.percentile(percent) for percent in CLIP_PERCENTILES)
    if not low < high:
        raise PlanError(f"99 % of the voxels hold the same value, {low:g} HU; is this CT, and is dataset.json right?")
    return Intensity("ct", low, high, histogram.mean(), histogram.sd(), source)


def _has_low_resolution_stage(
    spacing_mm: Sequence[float],
    median_shape: Sequence[float],
    patch: Sequence[int],
    memory: MemoryModel,
    most_features: int | None,
) -> bool:
    """Whether nnU-Net would add a low-resolution stage: batch Dice is then on at full resolution (3D)."""
    full_voxels = float(np.prod(median_shape))
    full_spacing, spacing = np.array(spacing_mm, dtype=float), np.array(spacing_mm, dtype=float)
    voxels, patch_voxels = full_voxels, float(np.prod(patch))
    while patch_voxels / voxels < LOW_RESOLUTION_BELOW:
        spacing = coarser(spacing, COARSER_STEP)
        shape = np.array(median_shape) * full_spacing / spacing
        voxels = float(shape.prod())
        smaller, _ = fit_patch(tuple(spacing), tuple(np.rint(shape).clip(1)), memory, most_features)
        patch_voxels = float(np.prod(smaller))
    return full_voxels / voxels >= 2


def _fingerprint_summary(fingerprint: Fingerprint, labels: dict[str, int]) -> dict[str, Any]:
    """The fingerprint for people: plain numbers, rounded, units in the keys; triples are (slice, row, column)."""
    cases = fingerprint.cases
    orientations = [case.orientation for case in cases]
    content: dict[str, Any] = {
        "cases": {"labelled": fingerprint.count("labelled"), "unlabelled": fingerprint.count("unlabelled")},
        "spacing_mm": _spread([case.spacing_mm for case in cases], 4),
        "shape_voxels": _spread([case.shape_voxels for case in cases], 1),
        "orientations": {code: orientations.count(code) for code in sorted(set(orientations))},
        "intensity_hu": {},
        "structures": _structures(fingerprint, labels),
    }
    for name, histogram in (("global", fingerprint.histogram), ("foreground", fingerprint.foreground)):
        if histogram is not None and histogram.count:
            content["intensity_hu"][name] = {"voxels": histogram.count, **_statistics_hu(histogram)}
    return content


def _structures(fingerprint: Fingerprint, labels: dict[str, int]) -> dict[str, Any]:
    structures: dict[str, Any] = {}
    voxels = fingerprint.label_voxels
    for name, label in labels.items():
        if label == 0:
            continue
        volumes = [case.volumes_ml[label] for case in fingerprint.cases if label in case.label_voxels]
        structures[name] = {"cases": len(volumes)}
        if volumes:
            structures[name] |= {
                "voxels": voxels[label],
                "share_of_labelled_voxels": _rounded(voxels[label] / sum(voxels.values())),
                "volume_ml_minimum": _rounded(min(volumes)),
                "volume_ml_median": _rounded(float(np.median(volumes))),
                "volume_ml_maximum": _rounded(max(volumes)),
            }
        if label in fingerprint.label_histograms:
            structures[name] |= _statistics_hu(fingerprint.label_histograms[label])
    return structures


def _statistics_hu(histogram: Histogram) -> dict[str, float]:
    return {
        "mean_hu": round(histogram.mean(), 2),
        "sd_hu": round(histogram.sd(), 2),
        **{f"percentile_{percent}_hu": round(histogram.percentile(percent), 2) for percent in CLIP_PERCENTILES},
    }


def _spread(triples: list, digits: int) -> dict[str, list[float]]:
    values = np.array(triples, dtype=float)
    rows = {"minimum": values.min(axis=0), "median": np.median(values, axis=0), "maximum": values.max(axis=0)}
    return {name: np.round(row, digits).tolist() for name, row in rows.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
