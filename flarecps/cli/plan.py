"""``flarecps plan``: from a data set to the numbers it decides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flarecps.cli import PLAIN, next_command

if TYPE_CHECKING:
    from flarecps.cli.console import Console
    from flarecps.datasets.catalogue import Catalogue
    from flarecps.inference.resources.budget import Budget
    from flarecps.planning.fingerprint import Fingerprint
    from flarecps.planning.memory import Learners
    from flarecps.planning.plan import Plan
    from flarecps.planning.student import Teacher

FAILED = 1  # exit code: some scans could not be read; the plan was made from the others


def plan(
    dataset: Path,
    *,
    out: Path,
    dimensions: Literal[2, 3] = 3,
    intensity: Literal["global", "foreground"] = "global",
    gpu_memory_gb: float = 8.0,
    split: str | None = None,
    spacing_mm: list[float] | None = None,
    patch: list[int] | None = None,
    most_features: int | None = None,
    method: str | None = None,
    siblings_in_turn: bool = False,
    student: bool = False,
    teacher: Path | None = None,
    max_vram: str | None = None,
    max_ram: str | None = None,
    max_seconds: float | None = None,
    device: str = "auto",
    fingerprints: Path | None = None,
    shard: str | None = None,
    workers: int = 2,
    progress: bool = True,
) -> int:
    """Decide spacing, patch, batch, network and intensities from a data set, and write them as one JSON file.

    Looks at all labelled and unlabelled scans, never at test scans. The heuristics are nnU-Net v2's; the memory is
    that of the method's step, by default two networks, each with labelled and unlabelled patches. The JSON is meant to
    be read and edited. Scans that can't be read are reported, the plan is made from the others; exit code 1 then.

    Large data sets: with --fingerprints every scan's numbers are kept in a folder as soon as they are there, so an
    interrupted run continues, and other plans (2D, another memory) read no scan again. A job array adds --shard I/N:
    each job does its share of the scans and writes no plan; the same command without --shard then does what is
    missing, puts the shares together and plans.

    Args:
        dataset: folder of the data set (nnU-Net v2's raw layout plus imagesUn, FLARE22, MSD, or plain folders)
        out: the plan to write, a .json file; another plan that is there is kept as OUT.1, OUT.2, ...
        dimensions: 3 for volumes, 2 for slices
        intensity: which voxels decide CT window, mean and SD: global, all of them, as in the paper; or foreground,
            those of labelled structures, as in nnU-Net. Other modalities are scaled scan by scan
        gpu_memory_gb: GPU memory that one training step may take, by nnU-Net's rule, which is cautious: 32 gives the
            patch sizes that nnU-Net plans for its 8 GB. What the step is estimated to take is printed
        split: name of a split in the data set's splits.json; without it the folders say who is labelled
        spacing_mm: spacing to resample to instead of the planned one: "[2.5, 0.8, 0.8]" (slice, row, column)
        patch: patch size in voxels instead of the planned one: "[64, 96, 96]" (slice, row, column), in 2D "[256, 256]"
        most_features: most features of a network stage; by default 320 in 3D and 480 in 2D, as in the paper; nnU-Net
            v2 takes 512 in 2D
        method: plan for the step of this method, such as flarecps.methods.Supervised or a class of yours; by default
            cross pseudo supervision's
        siblings_in_turn: plan for a step that holds one sibling's feature maps at a time, as the method's setting of
            this name has it: larger patches or batches in the same memory
        student: plan a student for deployment: a network with at most a quarter of its teacher's parameters, on the
            teacher's grid or a coarser one, that is forecast to keep the limits on the largest scan, unmirrored. It
            learns from the teachers' labels (docs/student.md)
        teacher: a teacher's checkpoint, or its plan; by default the plan that the data set gets without --student
        max_vram: GPU memory that a scan may cost a student, such as 2G
        max_ram: RAM that a scan may cost a student, such as 4G
        max_seconds: seconds that a scan may cost a student
        device: where a student is to run: auto, cpu, cuda, ...; without a GPU here, cuda's speed is assumed
        fingerprints: folder that keeps what was measured, one file per scan; used again while the scan is unchanged
        shard: I/N does the I-th of N shares of the scans into --fingerprints, for job arrays, and writes no plan
        workers: processes at work, one scan each
        progress: show progress and the time left
    """
    from flarecps.cli.console import Console
    from flarecps.datasets.catalogue import read_catalogue
    from flarecps.errors import PlanError
    from flarecps.planning.fingerprint import fingerprint_dataset, fingerprint_shard
    from flarecps.planning.memory import STREAMS, Learners, gb_in_words
    from flarecps.planning.plan import write_plan
    from flarecps.planning.planner import plan_dataset

    if out.is_dir() or out.suffix.lower() != ".json":
        raise PlanError(f"--out {out}: expected the name of a .json file to write")
    if shard is not None and fingerprints is None:
        raise PlanError(f"--shard {shard}: expected --fingerprints FOLDER beside it, one folder for all shares")
    if fingerprints is not None and fingerprints.is_file():
        raise PlanError(f"--fingerprints {fingerprints}: is a file; expected a folder, new or of an earlier run")
    budget = _students_budget(student, teacher, max_vram, max_ram, max_seconds)
    if student and (method is not None or siblings_in_turn):
        raise PlanError("--student: learns by flarecps.methods.SelfTraining; leave --method and --siblings-in-turn out")
    learners, streams = Learners(in_turn=siblings_in_turn), STREAMS
    if method is not None:
        learners, streams = _declared_cost(method, siblings_in_turn)
    catalogue = read_catalogue(dataset, split)
    console, errors = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    if shard is not None and fingerprints is not None:
        count, failed = fingerprint_shard(catalogue, shard, fingerprints, workers, progress)
        done = f"share {shard}: {count - len(failed)} of {count} scans fingerprinted: {fingerprints}"
        console.print(done, markup=False)
        for outcome in failed:
            errors.print(f"not fingerprinted: {outcome.name}: {outcome.error}", style="red", markup=False)
        return FAILED if failed else 0
    taught_by = _teacher(teacher)  # before the scans are read, which can take hours
    fingerprint, failed = fingerprint_dataset(catalogue, workers, progress, fingerprints)
    asked = (dimensions, intensity, gpu_memory_gb, spacing_mm, patch, most_features)
    if budget is None:
        decided = plan_dataset(fingerprint, catalogue, *asked, learners=learners, streams=streams)
    else:
        decided = _students_plan(fingerprint, catalogue, taught_by, budget, device, asked)
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = _keep_former(out, decided)
    write_plan(out, decided)
    _show(decided, console)
    console.print(f"written: {out}", *kept, sep="\n", **PLAIN)
    if siblings_in_turn:
        console.print("train it with: fit --model.method.init_args.siblings_in_turn true", **PLAIN)
    if patch is not None and decided.memory_gb > gpu_memory_gb:
        note = f"this step is estimated at {gb_in_words(decided.memory_gb)}, more than the {gpu_memory_gb:g} GB given"
        errors.print(f"{note}: choose a smaller --patch", style="yellow", markup=False)
    for case in fingerprint.cases:
        for remark in case.remarks:
            errors.print(f"{case.name}: {remark}", style="yellow", markup=False)
    for outcome in failed:
        errors.print(f"not in the plan: {outcome.name}: {outcome.error}", style="red", markup=False)
    if not failed:
        store = out.with_name("store") if out.stem == "plan" else out.with_suffix("")
        console.print(next_command("preprocess", dataset, out, "--out", store), **PLAIN)
    return FAILED if failed else 0


def _students_budget(
    student: bool, teacher: Path | None, vram: str | None, ram: str | None, seconds: float | None
) -> Budget | None:
    """The limits for a student; None where none is planned."""
    from flarecps.errors import PlanError

    if not student:
        for name, given in (("teacher", teacher), ("max-vram", vram), ("max-ram", ram), ("max-seconds", seconds)):
            if given is not None:
                raise PlanError(f"--{name} {given}: is for a student; give --student, too")
        return None
    from flarecps.inference.resources.budget import budget_of

    if not (budget := budget_of(ram=ram, vram=vram, seconds=seconds)):
        raise PlanError("--student: expected its limits at inference: --max-vram, --max-ram or --max-seconds")
    return budget


def _teacher(path: Path | None) -> Teacher | None:
    if path is None:
        return None
    from flarecps.inference.resources.forecast import teacher_of

    return teacher_of(path)


def _students_plan(
    fingerprint: Fingerprint, catalogue: Catalogue, teacher: Teacher | None, budget: Budget, device: str, asked: tuple
) -> Plan:
    from flarecps.inference.resources.forecast import Forecaster, parameters_of
    from flarecps.planning.planner import plan_dataset
    from flarecps.planning.student import Teacher, plan_student

    dimensions, intensity, memory_gb, spacing_mm, patch, most_features = asked
    if teacher is None:
        plan = plan_dataset(fingerprint, catalogue, dimensions, intensity, memory_gb)
        teacher = Teacher(plan, parameters_of(plan), "the plan without --student")
    forecast = Forecaster(fingerprint.cases, budget, device)
    given = (memory_gb, spacing_mm, patch, most_features)
    return plan_student(fingerprint, catalogue, teacher, forecast, parameters_of, *given)


def _keep_former(out: Path, decided: Plan) -> list[str]:
    """Move a plan that is another than the ``decided`` one out of the way; what was done, in words."""
    from itertools import count

    from flarecps.errors import PlanError
    from flarecps.planning.plan import plan_differences, read_plan

    if not out.exists():
        return []
    try:
        changed = plan_differences(read_plan(out), decided)
    except PlanError:
        changed = ["the former one could not be read"]
    if not changed:
        return ["the plan is the one that was there"]
    former = next(path for path in (out.with_name(f"{out.name}.{n}") for n in count(1)) if not path.exists())
    out.rename(former)
    return [f"another plan was there, and is now {former}", *changed]


def _declared_cost(class_path: str, in_turn: bool) -> tuple[Learners, int]:
    """Whose memory a method's step takes, and how many kinds of patches it reads."""
    from importlib import import_module
    from inspect import signature

    from flarecps.errors import ConfigError
    from flarecps.methods import Method
    from flarecps.planning.memory import Learners

    module, _, name = class_path.rpartition(".")
    try:
        method = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"--method {class_path}: can't be imported ({error}); expected the path of a class, such as "
            "flarecps.methods.Supervised, in a package that is installed or on PYTHONPATH"
        ) from error
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ConfigError(f"--method {class_path}: is no flarecps.methods.Method; expected a class of these")
    if in_turn and "siblings_in_turn" not in signature(method).parameters:
        raise ConfigError(f"--siblings-in-turn: {class_path} has no setting siblings_in_turn; leave the option out")
    in_turn = in_turn or method.siblings_in_turn
    return Learners(method.sibling_count, method.extra_networks, in_turn), len(method.streams)


def _show(plan: Plan, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    from flarecps.planning.memory import gb_in_words
    from flarecps.planning.plan import batch_words

    cases = plan.fingerprint["cases"]
    axes = [("slice", "row", "column")[axis] for axis in plan.axis_order]
    intensities = "each scan by its own mean and SD"
    if (one := plan.intensity).scheme == "ct":
        source = "all voxels" if one.source == "global" else "labelled structures"
        intensities = f"HU {one.low:g} to {one.high:g}, mean {one.mean:.1f}, SD {one.sd:.1f} ({source})"
    rows = [
        ("scans", f"{cases['labelled']} labelled, {cases['unlabelled']} unlabelled"),
        ("structures", ", ".join(name for name in plan.labels if plan.labels[name])),
        ("spacing", f"{_times(plan.spacing_mm)} mm" + (" (slices keep theirs)" if plan.dimensions == 2 else "")),
        ("median shape", f"{_times(plan.median_shape_voxels)} voxels after cropping and resampling"),
        ("axes", "×".join(axes) + (" (the coarse axis first)" if plan.axis_order != (0, 1, 2) else "")),
        ("patch", f"{_times(plan.patch_voxels)} voxels"),
        ("batch", batch_words(plan.global_batch)),
        ("stages", f"{len(plan.topology.features)}, features {'-'.join(map(str, plan.topology.features))}"),
        ("strides", ", ".join(_times(stride) for stride in plan.topology.strides)),
        ("kernels", ", ".join(_times(kernel) for kernel in plan.topology.kernels)),
        ("Dice over", "the batch" if plan.batch_dice else "each patch"),
        ("intensities", intensities),
        ("GPU memory", f"about {gb_in_words(plan.memory_gb)} for a step in bf16-mixed (estimate)"),
    ]
    if (why := plan.fingerprint.get("student")) is not None:
        rows.append(("parameters", f"{why['parameters']:,}; {why['teacher']}: {why['teacher_parameters']:,}"))
        rows += [(f"why {name.replace('_', ' ')}", reason) for name, reason in why["why"].items()]
    table = Table(title=escape(f"{plan.dimensions}D plan for {plan.dataset}"), title_justify="left", show_header=False)
    for heading, content in rows:
        table.add_row(heading, escape(content))
    console.print(table)


def _times(values: tuple) -> str:
    return "×".join(f"{value:g}" for value in values)
