"""``flarecps demo --real``: a few labelled scans of one's own go the whole road in minutes, at a coarse spacing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flarecps.cli import PLAIN
from flarecps.cli.demo import (
    CONTROL,
    CPS,
    Arms,
    arm_stages,
    equal_compute,
    lambda_start,
    length_words,
    run_announced,
)
from flarecps.datasets.catalogue import Case, Catalogue, read_catalogue
from flarecps.durations import clock
from flarecps.errors import ConfigError, DatasetError, counted
from flarecps.experiments.stages import Stage
from flarecps.typing import SpacingMm, Triple

if TYPE_CHECKING:
    from flarecps.cli.console import Console

CONFIG = "demo_3d"
MOST = {"labelled": 16, "unlabelled": 24, "test": 6}  # scans that are taken, evenly from the sorted names
FEWEST_LABELLED = 3  # two to learn from, one held out
MOST_VOXELS = 300_000  # of the median scan, resampled
PATCH_EDGE, PATCH_STEP = 32, 8  # voxels; a patch has to be halved three times
STEPS = 25  # in an epoch of the config
PACE_EPOCHS, PACE_STEPS = 2, 5  # of the trial; the last epoch counts
SHARE_OF_STEPS = 0.8  # of a training's time; the rest is start and checkpoints
FEWEST_EPOCHS, MOST_EPOCHS = 3, 1000  # of CPS
LABELLED_PATCHES = 2  # in a batch of the config


def real_demo(source: Path, out: Path, minutes: float, console: Console) -> tuple[Path, Arms, str]:
    """Run the demo on scans of ``source``: its data set of links, its arms, and the terms on which they compare.

    Raises ConfigError for minutes that are not positive, DatasetError for too few labelled scans.
    """
    from flarecps.metric_names import PATCHES_PER_SECOND
    from flarecps.reporting.curves import read_metrics

    if not source.is_dir():
        raise DatasetError(f"--real {source}: no such folder; expected a data set (see 'flarecps inspect --help')")
    if out.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"--out {out}: lies in the data's folder, where nothing is written; name a folder elsewhere")
    if not 0 < minutes <= 24 * 60:
        raise ConfigError(f"--minutes {minutes:g}: expected more than 0 and at most {24 * 60}")
    catalogue = read_catalogue(source)
    labelled, unlabelled, test = chosen_cases(catalogue)
    data = out / "data"
    for why in catalogue.faults.values():
        console.print(f"left out: {why}", style="yellow", **PLAIN)
    spacing, shape = bounded_grid([*labelled, *unlabelled])
    console.print(
        f"{source}: {len(labelled)} of {len(catalogue.labelled)} labelled scans and {len(unlabelled)} of "
        f"{len(catalogue.unlabelled)} unlabelled ones to learn from, {counted(len(test), 'labelled scan')} held out "
        f"({data} has links to them); resampled to {'×'.join(f'{edge:g}' for edge in spacing)} mm",
        **PLAIN,
    )  # fmt: skip
    patch = patch_of(spacing, shape)
    names = [[case.name for case in cases] for cases in (labelled, unlabelled, test)]
    link = partial(_link, catalogue, labelled, unlabelled, test, data)
    linked = Stage("data", (), (data / "dataset.json",), action=link, depends_on=repr(names), protected=True,
                   description=f"links to scans of {source.resolve()}")  # fmt: skip
    first = [linked, *_first_stages(out, data, spacing, patch)]
    methods = [CPS, CONTROL] if unlabelled else [CONTROL]
    later = 3 * len(methods) + 1
    run_announced(first, out, console, after=later)
    paces = out / "pace" / "csv" / "metrics.csv"
    found = read_metrics(paces).get(PATCHES_PER_SECOND)
    if found is None or not found.values[-1] > 0:
        raise ConfigError(f"{paces}: tells no speed; remove {out / 'pace'}, and the same command measures it again")
    speed = float(found.values[-1])
    epochs = affordable_epochs(speed, minutes / len(methods))
    words = ["--data.patch_voxels", _listed(patch)]
    arms: dict[str, tuple[str, Sequence[object]]] = {
        CONTROL: (f"{CONFIG}_supervised", [*words, *length_words(equal_compute(epochs))])
    }
    if unlabelled:
        ramp = {"start": lambda_start(epochs), "length": max(1, epochs // 6)}
        ramp_words = [word for key, value in ramp.items() for word in (f"--model.method.init_args.ramp.{key}", value)]
        arms = {CPS: (CONFIG, [*words, *length_words(epochs), *ramp_words]), **arms}
    else:
        console.print("no unlabelled scans: CPS has nothing to learn from, so the control trains alone", markup=False)
    control_s = equal_compute(epochs) * LABELLED_PATCHES * STEPS / (SHARE_OF_STEPS * speed)
    console.print(
        f"{speed:.1f} patches/s on this machine: {counted(equal_compute(epochs), 'epoch')} of the control"
        + (f", {counted(epochs, 'epoch')} of CPS" * bool(unlabelled))
        + f" in about {clock(len(methods) * control_s)}. That shows that your data goes the whole road; "
        "how good a model can be, a training of hours at a finer spacing tells.",
        **PLAIN,
    )  # fmt: skip
    stages = [*first, *arm_stages(out, data, out / "store", arms, first[-1].name)]
    run_announced(stages, out, console, before=len(first))
    return data, arms, f"at equal compute ({epochs} and {equal_compute(epochs)} epochs)"


def chosen_cases(catalogue: Catalogue) -> tuple[list[Case], list[Case], list[Case]]:
    """The labelled, unlabelled and test cases of the demo; partly annotated ones are left out.

    The test cases are the data set's where it has labels of some, else every fourth of the labelled ones or so. Raises
    DatasetError for fewer than three labelled cases.
    """
    whole = [case for case in catalogue.labelled if case.labels is not None and case.annotated is None]
    test = _evenly([case for case in catalogue.test if case.labels is not None], MOST["test"])
    if len(whole) < FEWEST_LABELLED - bool(test):
        raise DatasetError(
            f"{catalogue.root}: {counted(len(whole), 'labelled scan')} with every structure annotated; expected "
            f"{FEWEST_LABELLED} or more: two to learn from, one held out"
        )
    if not test:
        test = [replace(case, role="test") for case in _evenly(whole, max(1, min(MOST["test"], len(whole) // 4)))]
    held_out = {case.name for case in test}
    labelled = _evenly([case for case in whole if case.name not in held_out], MOST["labelled"])
    return labelled, _evenly(catalogue.unlabelled, MOST["unlabelled"]), test


def _evenly(cases: Sequence[Case], most: int) -> list[Case]:
    """At most so many of the cases, at even places in their order."""
    count = min(most, len(cases))
    return [cases[(2 * place + 1) * len(cases) // (2 * count)] for place in range(count)]


def _link(
    catalogue: Catalogue, labelled: Sequence[Case], unlabelled: Sequence[Case], test: Sequence[Case], data: Path
) -> None:
    from flarecps.datasets.layouts import link_cases, link_subset

    description = {
        "name": catalogue.name,
        "channel_names": {str(place): name for place, name in enumerate(catalogue.channels)},
        "labels": catalogue.labels,
        "left_right_pairs": catalogue.left_right_pairs,
    }
    link_cases(test, data / "imagesTs", data / "labelsTs")
    link_subset(data, labelled, unlabelled, description)


def bounded_grid(cases: Sequence[Case]) -> tuple[SpacingMm, Triple]:
    """A spacing, never finer than the scans' median one, at which the median scan has at most `MOST_VOXELS`; its shape.

    Both are (slice, row, column); of headers alone. Raises ScanError for one that can't be read.
    """
    from flarecps.volumes.io import read_space

    spaces = [read_space(case.images[0]) for case in cases]
    own = np.median([space.spacing_mm for space in spaces], axis=0)
    extent = np.median([np.multiply(space.shape, space.spacing_mm) for space in spaces], axis=0)
    edge = float(own.min())
    while np.prod(extent / np.maximum(own, edge)) > MOST_VOXELS:
        edge *= 1.02
    spacing = np.round(np.maximum(own, edge), 2)
    depth, rows, columns = np.maximum(np.rint(extent / spacing), 1).astype(int).tolist()
    return (float(spacing[0]), float(spacing[1]), float(spacing[2])), (depth, rows, columns)


def patch_of(spacing: SpacingMm, shape: Triple) -> Triple:
    """The patch in network order: `PATCH_EDGE` along every axis, less where the scans are shorter."""
    from flarecps.planning.spacing import axis_order, in_network_order

    fitting = [min(PATCH_EDGE, -(-size // PATCH_STEP) * PATCH_STEP) for size in shape]
    return in_network_order(fitting, axis_order(spacing))


def affordable_epochs(patches_per_second: float, minutes: float) -> int:
    """The epochs of CPS that a training of ``minutes`` has, by the labelled patches per second of a control.

    >>> affordable_epochs(20.0, 5.0), affordable_epochs(0.01, 5.0)
    (41, 3)
    """
    control = SHARE_OF_STEPS * 60 * minutes * patches_per_second / (LABELLED_PATCHES * STEPS)
    return int(np.clip(3 * control / equal_compute(3), FEWEST_EPOCHS, MOST_EPOCHS))


def _first_stages(out: Path, data: Path, spacing: SpacingMm, patch: Triple) -> list[Stage]:
    """Inspect, plan, preprocess, and a trial of the control, which measures how fast this machine trains."""
    from flarecps.experiments.stages import command_stage, store_stages

    store, pace = out / "store", out / "pace"
    stages = [
        Stage(
            "inspect",
            ("inspect", str(data)),
            after=("data",),
            cure="mend what it calls an error above, or take it out of the data set and choose another --out",
        ),
        *store_stages(data, out / "plan.json", store, ["--spacing", _listed(spacing)], after=["inspect"]),
    ]
    trial = ["fit", "--config", f"{CONFIG}_supervised", "--data.store", store, "--trainer.default_root_dir", pace]
    trial += ["--data.patch_voxels", _listed(patch), *length_words(PACE_EPOCHS)]
    trial += ["--data.iterations_per_epoch", PACE_STEPS, "--overwrite", "true"]
    return [*stages, command_stage("pace", trial, pace / "checkpoints" / "last.ckpt", stages[-1].name)]


def _listed(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"
