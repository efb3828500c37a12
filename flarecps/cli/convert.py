"""``flarecps convert``: a data set in nnU-Net v2's raw layout, or a first dataset.json."""

from __future__ import annotations

from pathlib import Path

from flarecps.cli import next_command
from flarecps.errors import ConfigError, visible


def convert(source: Path, out: Path | None = None, /, *, copy: bool = False) -> int:
    """Make a raw data set of nnU-Net v2 from FLARE22's folders, MSD's, or plain images/ labels/ unlabelled/.

    Nothing is rewritten: the new folder holds links to the files, and a dataset.json. Unlabelled scans go into
    imagesUn/, which nnU-Net passes over and this program uses.

    Without OUT, a first dataset.json for a folder of images and label maps (imagesTr/ and labelsTr/, or images/ and
    labels/) that has none: ids and channels are read from the files, names are left to fill in.

    Args:
        source: folder of the data set
        out: the folder to make; left out, SOURCE/dataset.json is drafted. For nnU-Net its name is
            DatasetNNN_Name, in the folder nnUNet_raw
        copy: copy the files instead of linking them
    """
    import sys

    if out is None:
        if copy:
            raise ConfigError("--copy copies files into OUT: name it, or leave out --copy")
        return _draft(source)
    from flarecps.interop.nnunet_dataset import convert_dataset

    converted = convert_dataset(source, out, copy)
    print(visible(f"{out}: " + ", ".join(f"{count} {role}" for role, count in converted.cases.items())))
    for remark in converted.remarks:
        print(visible(remark), file=sys.stderr)
    for fault in converted.faults:
        print(visible(f"left out: {fault}"), file=sys.stderr)
    print(visible(next_command("inspect", out)))
    return 1 if converted.faults else 0


def _draft(source: Path) -> int:
    from flarecps.cli.console import Console
    from flarecps.datasets.drafting import draft_description

    draft = draft_description(source)
    console, errors = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    for line in (f"{draft.path}: drafted", *draft.found, *(f"to fill in: {one}" for one in draft.missing)):
        console.print(line, markup=False)
    for fault in draft.faults:
        errors.print(f"left out: {fault}", style="red", markup=False)
    console.print(next_command("inspect", source, "--html", "doctor.html"), markup=False)
    return 1 if draft.faults else 0
