"""A plan as a reader says it: what was decided for the data, and what it means in millimetres."""

from __future__ import annotations

from collections.abc import Sequence

from flarecps.anatomy import organs_of
from flarecps.planning.plan import OWN_CONVENTIONS, Conventions, Plan

AXES = ("slice", "row", "column")


def plan_in_words(plan: Plan) -> list[tuple[str, str]]:
    """(subject, sentence) pairs that describe a plan, in the order of processing."""
    names = {label: name for name, label in plan.labels.items()}
    structures = [organ.name for organ in organs_of(plan.labels)]
    pairs = [f"{names[right]} and {names[left]}" for right, left in plan.left_right_pairs]
    steps_mm = plan.spacing_mm[-plan.dimensions :]
    patch_mm = [round(size * step) for size, step in zip(plan.patch_voxels, steps_mm, strict=True)]
    topology = plan.topology
    return [
        ("Data set", f"{plan.dataset}; image channels: {', '.join(plan.channels)}."),
        (
            "Structures",
            f"{len(structures)}: {', '.join(structures)}."
            + (f" Left–right pairs: {'; '.join(pairs)}." if pairs else ""),
        ),
        ("Spacing", _spacing(plan)),
        ("Intensities", _intensities(plan)),
        *(
            [("Conventions of another program", _conventions(plan.conventions))]
            if plan.conventions != OWN_CONVENTIONS
            else []
        ),
        (
            "Patches",
            f"{_times(plan.patch_voxels)} voxels ({_times(patch_mm)} mm); every optimiser step sees "
            f"{plan.global_batch['labelled']} labelled and {plan.global_batch['unlabelled']} unlabelled ones over all "
            f"devices. Dice is computed {'over the whole batch' if plan.batch_dice else 'patch by patch'}.",
        ),
        (
            "Network",
            f"{plan.dimensions}D U-Net with {len(topology.features)} stages of "
            f"{', '.join(map(str, topology.features))} features; the deepest sees the patch reduced by "
            f"{_times(topology.total_stride)}.",
        ),
        ("Memory", f"Estimated {plan.memory_gb:.1f} GB for one training step with both siblings."),
    ]


def _spacing(plan: Plan) -> str:
    spacing, shape = plan.spacing_mm, plan.median_shape_voxels
    if plan.dimensions == 2:
        return (
            f"Slices are resampled to {_times(spacing[1:])} mm within the plane and kept where they are; the median "
            f"training scan has {shape[0]} slices of {_times(shape[1:])} pixels."
        )
    order = " × ".join(AXES[axis] for axis in plan.axis_order)
    return (
        f"Scans are resampled to {_times(spacing)} mm ({order}); the median training scan then has "
        f"{_times(shape)} voxels."
    )


def _conventions(conventions: Conventions) -> str:
    words = {
        "as_stored": "voxels are taken in the order of the file",
        "before_resampling": "CT is clipped before it is resampled",
        "nonzero": "scans are cropped to what is not 0",
    }
    kept = [words[one] for one in (conventions.orientation, conventions.intensity, conventions.crop) if one in words]
    return f"{'; '.join(kept)}.".capitalize().replace("ct is", "CT is")


def _intensities(plan: Plan) -> str:
    scaling = plan.intensity
    if scaling.scheme == "zscore":
        return "Every scan by its own mean and standard deviation."
    source = "labelled structures" if scaling.source == "foreground" else "all voxels of labelled and unlabelled scans"
    return (
        f"Clipped to {scaling.low:.0f} … {scaling.high:.0f} HU, then scaled to zero mean and unit variance with mean "
        f"{scaling.mean:.1f} and SD {scaling.sd:.1f} HU; the numbers come from {source}."
    ).replace("-", "−")


def _times(numbers: Sequence[float]) -> str:
    return "\u00a0×\u00a0".join(f"{number:.4g}" for number in numbers)  # never broken over two lines
