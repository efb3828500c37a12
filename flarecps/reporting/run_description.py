"""A run in words: its plan, the sessions in its ``environment.json``, and how far it has come."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flarecps.anatomy import organs_of
from flarecps.durations import duration_in_words
from flarecps.errors import counted
from flarecps.json_fields import is_whole
from flarecps.planning.memory import gb_in_words
from flarecps.planning.plan import OWN_CONVENTIONS, Conventions, Plan

AXES = ("slice", "row", "column")
_ENDINGS = {
    "StoppedBySignal": "stopped by a signal, as for a requeue",
    "SystemExit": "stopped on purpose",
    "KeyboardInterrupt": "interrupted",
}


@dataclass(frozen=True)
class Session:
    """One start of the program: ``ended`` is when it was last heard of, ``finished`` whether it trained to the end."""

    began: datetime.datetime | None
    ended: datetime.datetime | None
    finished: bool
    first_epoch: int | None
    completed_epochs: int | None
    how: str  # it ended; empty where nothing was said
    record: Mapping[str, Any]

    @property
    def commit(self) -> str:
        """The commit it ran, shortened, and whether files differed from it; a dash outside a repository."""
        git = self.record.get("git")
        if not isinstance(git, Mapping) or not git.get("commit"):
            return "–"
        return str(git["commit"])[:9] + (", changed" if git.get("state") not in (None, "clean") else "")

    @property
    def seconds(self) -> float | None:
        """How long it was; None where that isn't known."""
        if self.began is None or self.ended is None:
            return None
        return (self.ended - self.began).total_seconds()


def sessions_of(environment: Mapping[str, Any]) -> list[Session]:
    """All sessions, the first one first; a record of before there were several is one; [] without a record."""
    records = environment.get("sessions")
    if not isinstance(records, list):
        records = [environment] if environment else []
    found = []
    for record in records:
        if isinstance(record, Mapping):
            began, finished = parse_time(record.get("started")), parse_time(record.get("finished"))
            first, completed = (
                number if is_whole(number) else None
                for number in (record.get("first_epoch"), record.get("completed_epochs"))
            )
            why = str(record.get("ended_by") or "")
            how = "trained to the end" if finished else _ENDINGS.get(why, f"ended by {why}" if why else "")
            ended = finished or parse_time(record.get("seen"))
            found.append(Session(began, ended, finished is not None, first, completed, how, record))
    return found


def run_status(environment: Mapping[str, Any], config: Mapping[str, Any], logged_epochs: int) -> str:
    """How far the run came: "finished after 60 epochs, 41 min" or "12 of 60 epochs so far, about 35 min to go".

    ``logged_epochs``: of its table; what a run without a record is known by.
    """
    trainer = config.get("trainer")
    planned = trainer.get("max_epochs") if isinstance(trainer, Mapping) else None
    sessions = sessions_of(environment)
    last = sessions[-1] if sessions else None
    epochs = logged_epochs  # unless the last session knows: a table may hold the validation of an unfinished epoch
    if last is not None and last.completed_epochs is not None:
        epochs = last.completed_epochs
    elif last is not None and last.first_epoch is not None:
        epochs = last.first_epoch - 1
    if not epochs:
        return "no epoch completed yet" if environment or config else ""
    several = f" in {len(sessions)} sessions" if len(sessions) > 1 else ""
    if last is not None and last.finished:
        known = [seconds for session in sessions if (seconds := session.seconds) is not None]
        took = f", {duration_in_words(sum(known))}" if known else ""
        return f"finished after {counted(epochs, 'epoch')}{took}{several}"
    if not isinstance(planned, int):
        return f"{counted(epochs, 'epoch')} so far{several}"
    to_go = ended = ""
    if last is not None:
        if last.seconds is not None and last.first_epoch is not None and last.completed_epochs is not None:
            done = last.completed_epochs - last.first_epoch + 1
            left = last.seconds / done * max(planned - epochs, 0) if done > 0 else 0.0
            to_go = f", about {duration_in_words(left)} to go" if left else ""
        if str(last.record.get("ended_by", "")).endswith("Error"):
            ended = f"; the last session was {last.how}"
    return f"{epochs} of {planned} epochs so far{to_go}{several}{ended}"


def parse_time(text: Any) -> datetime.datetime | None:
    """The moment that an ISO text names; None for anything else."""
    try:
        found = datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=datetime.timezone.utc)


def describe_plan(plan: Plan) -> list[tuple[str, str]]:
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
            f"{_kinds(plan.global_batch)} ones over all devices. "
            f"Dice is computed {'over the whole batch' if plan.batch_dice else 'patch by patch'}.",
        ),
        (
            "Network",
            f"{plan.dimensions}D U-Net with {len(topology.features)} stages of "
            f"{', '.join(map(str, topology.features))} features; the deepest sees the patch reduced by "
            f"{_times(topology.total_stride)}.",
        ),
        ("Memory", f"Estimated {gb_in_words(plan.memory_gb)} for one training step in bf16-mixed."),
    ]


def _kinds(global_batch: Mapping[str, int]) -> str:
    return " and ".join(f"{number} {kind.replace('_', '-')}" for kind, number in global_batch.items())


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
