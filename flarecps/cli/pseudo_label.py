"""``flarecps pseudo-label``: trained models label the unlabelled cases of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

FAILED = 1  # exit code: some cases could not be labelled


def pseudo_label(
    teacher: list[Path],
    store: Path,
    out: Path,
    split: str | None = None,
    teacher_store: Path | None = None,
    sibling: Literal["1", "2", "average"] = "average",
    step: float = 0.7,
    mirror: bool = False,
    mirror_axes: list[int] | None = None,
    swap_left_right: bool = False,
    batch: int | None = None,
    workers: int = 1,
    device: str = "auto",
    postprocess: str | None = None,
    largest: list[str] | None = None,
    annotate_next: int | None = None,
    shard: str | None = None,
    trust: list[str] | None = None,
    progress: bool = True,
) -> int:
    """Let trained models, the teachers, label the unlabelled scans of a case store.

    Labels are those of the mean of the teachers' probabilities over whole scans; 'flarecps fit' trains on them with
    --data.pseudo_labels OUT and the method flarecps.methods.SelfTraining. How far the teachers agree is in OUT's
    quality.csv and, with pictures, index.html, worst first; what you list in struck.csv is not trained on. Finished
    cases are skipped, so an interrupted run continues where it stopped. A case that can't be labelled is reported at
    the end, the others are done; exit code 1 then.

    Args:
        teacher: one or more .ckpt files written by 'flarecps fit' for one plan: folds, seeds, or a student of an
            earlier round.
        store: the case store whose cases get labels, written by 'flarecps preprocess': with the teachers' plan, or with
            a student's.
        out: folder of the pseudo-labels; made if needed, continued if it holds some of these teachers.
        split: name of a split in the store's splits.json, whose unlabelled cases are labelled; may be left out if there
            is only one, or one called "default".
        teacher_store: the case store of the same scans that was written with the teachers' plan, where STORE is a
            student's: what the teachers see in it is brought to STORE's grid.
        sibling: which networks of a checkpoint are teachers: 1, 2, or all of them (average).
        step: step of the sliding window as a fraction of the patch, above 0 and at most 1.
        mirror: average over the scan mirrored along all axes, 8 times the time in 3D, 4 times in 2D.
        mirror_axes: mirror only these axes of the patch, such as [2]: 0 slice, 1 row, 2 column; in 2D 0 row, 1 column.
        swap_left_right: exchange paired labels in scans mirrored from left to right, for models trained so.
        batch: windows per forward pass; changes memory and speed only.
        workers: cases at a time, each in a process with its own copy of the teachers.
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.
        postprocess: apply the rules that 'flarecps postprocess determine' wrote to this file; auto takes the
            postprocessing.json beside the first teacher. By default labels stay as the networks give them.
        largest: keep only the largest connected piece of these organs, or of all.
        annotate_next: say which N of the scans a person should annotate next: those of the lowest quality that are not
            struck out.
        shard: I/N does the I-th of N shares of the cases, for job arrays; all shares go into the same OUT.
        trust: classes of your own networks that a checkpoint may name, such as my_lab.nets.MyUNet; their code runs.
        progress: show progress and the time left.
    """
    from flarecps.cli import next_command
    from flarecps.cli.console import Console
    from flarecps.errors import ConfigError
    from flarecps.inference.outputs import disk_errors_as_config_error
    from flarecps.inference.postprocessing import rules_for
    from flarecps.inference.pseudo_labels import label_store
    from flarecps.inference.settings import SegmentationSettings
    from flarecps.preprocessing.store import CaseStore
    from flarecps.reporting.pseudo_labels import worth_annotating, write_quality

    if annotate_next is not None and annotate_next < 1:
        raise ConfigError(f"annotate-next {annotate_next}: expected at least 1 scan")
    if out.resolve().is_relative_to(store.resolve()):
        raise ConfigError(f"{out}: lies in the case store, where nothing else is written; name a folder elsewhere")
    settings = SegmentationSettings(
        sibling=sibling,
        step=step,
        mirror_axes=tuple(mirror_axes) if mirror_axes else "all" if mirror else (),
        swap_left_right=swap_left_right,
        batch=batch,
        device=device,
        trusted=tuple(trust or ()),
    )
    asked = annotate_next is not None
    rules = rules_for(CaseStore(store).plan.labels, teacher, postprocess, largest or ())
    outcomes = label_store(teacher, store, out, settings, rules, split, shard, workers, progress, asked, teacher_store)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    written, present = (sum(one.value == value for one in outcomes) for value in ("written", "present"))
    there = f"; {present} were there already" if present else ""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{written} of {len(outcomes)} cases labelled{there}: {out}", markup=False)
    failed = [one for one in outcomes if one.failed]
    for one in failed:
        errors.print(f"not labelled: {one.name}: {one.error}", style="red", markup=False)
    with disk_errors_as_config_error(out):
        write_quality(out, store, workers, progress)
    if annotate_next is not None:
        chosen = worth_annotating(out, store, annotate_next)
        console.print(f"annotate next: {', '.join(chosen)}", markup=False)
    if not failed and shard is None:
        patches = CaseStore(store).plan.global_batch["labelled"]
        words: list[object] = ["--data.store", store, *(("--data.split", split) if split else ())]
        words += ["--data.pseudo_labels", out, "--model.method", "flarecps.methods.SelfTraining"]
        words += ["--data.global_batch", f"{{labelled: {patches}, pseudo_labelled: {patches}}}"]
        console.print(f"look at {out / 'index.html'}; strike out what is wrong in {out / 'struck.csv'}", markup=False)
        console.print(next_command("fit", *words), markup=False)
    return FAILED if failed else 0
