"""``flarecps phantom``: write a synthetic data set."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def phantom(
    out: Path,
    labelled: int = 12,
    unlabelled: int = 24,
    test: int = 6,
    size: Literal["small", "full"] = "small",
    seed: int = 0,
    anatomy: Path | None = None,
    workers: int = 2,
    organs: Literal["all", "large"] = "all",
) -> None:
    """Write a synthetic abdominal CT data set with 13 organs, as nnU-Net v2's raw folders plus imagesUn.

    The same seed gives the same files, whatever the number of workers. Unlabelled scans vary more than labelled ones:
    phases, noise, spacing, field of view.

    Args:
        out: folder to write into: new, empty, or an older phantom, which is replaced
        labelled: number of labelled training scans, at least 1
        unlabelled: number of unlabelled training scans
        test: number of test scans, with labels
        size: small: about 45×62×62 voxels of 6.4 mm, for two CPU cores; full: 512×512 voxels of about 0.8 mm in
            slices of 1 to 3 mm (unlabelled: 1 to 5 mm)
        seed: random seed of everything
        anatomy: folder of label maps (NIfTI, NRRD or MHA with FLARE22's ids 1-13) to build the scans from,
            deformed; by default the anatomy is synthetic as well
        workers: processes at work, one scan each (full size: about a minute and 1 GB of memory each)
        organs: which have labels: all 13, or the large ones that a small network learns in minutes (liver, kidneys,
            spleen, aorta, stomach)
    """
    from flarecps.cli import next_command
    from flarecps.cli.console import Console
    from flarecps.datasets.phantom import write_phantom

    write_phantom(out, labelled, unlabelled, test, size, seed, anatomy, workers, organs=organs)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{out}: {labelled} labelled, {unlabelled} unlabelled, {test} test scans", markup=False)
    console.print(next_command("inspect", out), markup=False)
