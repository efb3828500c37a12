"""``flarecps convert``: a data set in nnU-Net v2's raw layout."""

from __future__ import annotations

from pathlib import Path


def convert(source: Path, out: Path, *, copy: bool = False) -> int:
    """Make a raw data set of nnU-Net v2 from FLARE22's folders, MSD's, or plain images/ labels/ unlabelled/.

    Nothing is rewritten: the new folder holds links to the files, and a dataset.json. Unlabelled scans go into
    imagesUn/, which nnU-Net passes over and this program uses.

    Args:
        source: folder of the data set
        out: the folder to make; for nnU-Net its name is DatasetNNN_Name, in the folder nnUNet_raw
        copy: copy the files instead of linking them
    """
    import sys

    from flarecps.interop.nnunet_dataset import convert_dataset

    converted = convert_dataset(source, out, copy)
    print(f"{out}: " + ", ".join(f"{count} {role}" for role, count in converted.cases.items()))
    for remark in converted.remarks:
        print(remark, file=sys.stderr)
    for fault in converted.faults:
        print(f"left out: {fault}", file=sys.stderr)
    return 1 if converted.faults else 0
