"""``flarecps segment``: labels for new scans."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def segment(
    checkpoint: list[Path],
    input: Path,  # shows as INPUT on the command line
    output: Path,
    sibling: Literal["1", "2", "average"] = "1",
    mode: Literal["normal", "fast", "fastest"] = "normal",
    accumulate: Literal["softmax", "logits"] = "softmax",
    step: float = 0.7,
    mirror: bool = False,
    mirror_axes: list[int] | None = None,
    swap_left_right: bool = False,
    skip_air: bool = False,
    coarse_to_fine: bool = False,
    enforce_spacing: bool = False,
    budget: Literal["flare22"] | None = None,
    max_ram: str | None = None,
    max_vram: str | None = None,
    max_seconds: float | None = None,
    batch: int | None = None,
    workers: int = 1,
    device: str = "auto",
    postprocess: str | None = None,
    probabilities: bool = False,
    statistics: bool = False,
    preview: bool = False,
    agreement: bool = False,
    format: Literal["nii.gz", "seg.nrrd"] = "nii.gz",
    dicom_seg: bool = False,
    rtstruct: bool = False,
    shard: str | None = None,
    trust: list[str] | None = None,
    overwrite: bool = False,
) -> int:
    """Segment scans with a trained model; labels are written on each scan's own grid.

    Every scan is cropped, resampled to the model's spacing, segmented by a Gaussian-weighted sliding window, and its
    probabilities are resampled to the scan's grid. Finished cases are skipped, so an interrupted run continues
    where it stopped. A scan that can't be segmented is reported at the end, the others are done; exit code 1 then.

    Args:
        checkpoint: a .ckpt file written by 'flarecps fit'; nothing else is needed. The probabilities of several (the
            folds of one plan) are averaged.
        input: a scan (NIfTI, NRRD, MHA, multi-frame DICOM), a folder with one DICOM series, or a folder with any mix
            of these.
        output: folder for the results (X_0000.nii.gz becomes X.nii.gz, the DICOM folder a/SERIES a_SERIES.nii.gz)
            and a dataset.json with the label set; for one scan it may be a file name ending in .nii.gz or
            .seg.nrrd.
        sibling: which of the two networks: 1, 2, or the average of their probabilities.
        mode: normal interpolates probabilities on the scan's grid; fast interpolates labels, each linearly, fastest
            takes the nearest voxel's label. These two save little time here and look rougher.
        accumulate: average probabilities (softmax), as in nnU-Net v1 and the paper, or logits, as in nnU-Net v2.
        step: step of the sliding window as a fraction of the patch (nnU-Net's tile_step_size), above 0 and at most 1;
            less is slower and smoother.
        mirror: test-time augmentation: average over the scan mirrored along all axes, 8 times the time in 3D, 4 times
            in 2D.
        mirror_axes: mirror only these axes of the patch, such as [2]: 0 slice, 1 row, 2 column; in 2D 0 row, 1
            column. Choose axes along which the training mirrored, too.
        swap_left_right: exchange paired labels (right and left kidney) in scans mirrored from left to right, for
            models trained with swap_left_right.
        skip_air: leave out windows that hold nothing above -500 HU; they become background.
        coarse_to_fine: find the organs on 1.5 times larger voxels first, and look closely only within 20 mm of what was
            found; saves time in long scans and with mirroring, but structures that the first pass misses are lost.
        enforce_spacing: treat every scan as having the paper's fixed voxel sizes (0.75 mm in-plane; slices by their
            number), whatever the header says. Quick for long scans, but the paper reports 10 to 20 % less DSC and NSD.
        budget: flare22 stands for 28 GB of RAM, 2048 MB of GPU memory and 216 s a scan. With a budget, peaks and time
            are estimated before the start; batch, precision, mirroring, overlap and mode are reduced to fit, and it is
            printed what was.
        max_ram: RAM of the whole process, such as 8G; with several workers, of each.
        max_vram: memory of a CUDA GPU as the driver counts it, such as 2048M.
        max_seconds: time for a scan, from reading to the result; mirroring, overlap and mode are reduced for it, but it
            is not guaranteed.
        batch: windows per forward pass; changes memory and speed only, by default chosen by the size of the patch.
        workers: scans at a time, each in a process with its own copy of the model; 1 stays in this process, where the
            next scan is read and the last one written while one is segmented (up to three in memory).
        device: auto (a GPU if there is one), cpu, cuda, cuda:N or mps (Apple's).
        postprocess: apply the rules that 'flarecps postprocess determine' wrote to this file; auto takes the
            postprocessing.json beside the checkpoint. By default labels stay as the networks give them.
        probabilities: also write probabilities/X.npz, float16 on the network's grid (docs/inference.md).
        statistics: also write ml and mean HU of every organ: statistics.csv and .json, and a file per scan.
        preview: also write previews/X.png, the organs on slices in three planes.
        agreement: also write the Dice between the two siblings: agreement.csv and .json, lowest first (what to annotate
            next), and a file per scan. Runs the networks twice, with --sibling average three times.
        format: of the label files of a folder: NIfTI, or segmentations for 3D Slicer. Both hold the structures' names
            and colours.
        dicom_seg: also write dicom_seg/X.dcm, a DICOM segmentation, of scans that came as DICOM; needs
            the extra dicom (pip install highdicom).
        rtstruct: also write rtstruct/X.dcm, DICOM RT structures, of scans that came as DICOM.
        shard: I/N does the I-th of N shares of the scans, for job arrays; all shares go into the same OUTPUT.
        trust: classes of your own networks that the checkpoint may name, such as my_lab.nets.MyUNet; their code runs.
        overwrite: segment finished cases again.
    """
    import time

    from flarecps.cli import next_command
    from flarecps.cli.console import Console
    from flarecps.inference.folders import OutputOptions, segment_folder
    from flarecps.inference.resources.budget import budget_of
    from flarecps.inference.settings import SegmentationSettings

    if preview:  # matplotlib only for those who ask
        from flarecps.reporting.overlays import write_preview
    began = time.monotonic()
    outcomes = segment_folder(
        checkpoint,
        input,
        output,
        workers=workers,
        overwrite=overwrite,
        share=shard,
        outputs=OutputOptions(
            probabilities=probabilities,
            statistics=statistics,
            agreement=agreement,
            draw=write_preview if preview else None,
            dicom_seg=dicom_seg,
            rtstruct=rtstruct,
            ending=f".{format}",
        ),
        postprocess=postprocess,
        say=say_of_budget,
        settings=SegmentationSettings(
            sibling=sibling,
            step=step,
            mirror_axes=tuple(mirror_axes) if mirror_axes else "all" if mirror else (),
            swap_left_right=swap_left_right,
            device=device,
            batch=batch,
            accumulate=accumulate,
            mode=mode,
            skip_air=skip_air,
            coarse_to_fine=coarse_to_fine,
            enforce_spacing=enforce_spacing,
            budget=budget_of(budget, max_ram, max_vram, max_seconds),
            trusted=tuple(trust or ()),
        ),
    )
    console, errors = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    done = [one.value for one in outcomes if one.value is not None]
    failed = [one for one in outcomes if one.failed]
    for outcome in outcomes:
        for remark in outcome.value.warnings if outcome.value is not None else ():
            errors.print(f"{outcome.name}: {remark}", style="yellow", markup=False)
    fresh = [one for one in done if not one.skipped]
    rate = f", {(time.monotonic() - began) / len(fresh):.1f} s each" if fresh else ""
    there = f"; {len(done) - len(fresh)} were there already" if len(fresh) < len(done) else ""
    scans = [one for one in outcomes if not one.name.endswith("/")]
    console.print(f"{len(fresh)} of {len(scans)} scans segmented{rate}{there}: {output}", markup=False)
    for outcome in failed:
        errors.print(f"{outcome.name}: {outcome.error}", style="red", markup=False)
    if not failed and shard is None:
        beside = input.parent / "labelsTs"
        references = beside if input.name == "imagesTs" and beside.is_dir() else "REFERENCES"
        console.print(next_command("score", output, references, "--out", output.parent / "scores"), markup=False)
    return 1 if failed else 0


def say_of_budget(words: str) -> None:
    """Print a line about the budget: estimated, traded, taken."""
    from flarecps.cli.console import Console
    from flarecps.verbosity import is_quiet

    if not is_quiet():
        Console(stderr=True, highlight=False, soft_wrap=True).print(words, style="cyan", markup=False)
