"""A synthetic data set of abdominal CT with the 13 organs of FLARE22, in nnU-Net v2's raw layout plus ``imagesUn/``.

A case is drawn from (seed, role, index) alone, so the files are bit-identical for any number of workers and any
number of other cases. Unlabelled cases come from a wider distribution than the labelled ones, as in FLARE22.
"""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from flarecps.anatomy import FLARE22_LABELS, FLARE22_ORGANS, FLARE22_PAIRS
from flarecps.atomic import write_json
from flarecps.batch_processing import process_cases
from flarecps.datasets.layouts import Role
from flarecps.datasets.phantom_scan import draw_scene, paint
from flarecps.datasets.phantom_transplant import draw_mapped_scene
from flarecps.errors import DatasetError
from flarecps.text_files import read_own_json
from flarecps.volumes.discovery import find_scans
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Reorientation, Space

Size: TypeAlias = Literal["small", "full"]
Organs: TypeAlias = Literal["all", "large"]

RECIPE = "phantom.json"  # says that a folder is a phantom, and how it was made
FOLDERS: dict[Role, tuple[str, str | None]] = {
    "labelled": ("imagesTr", "labelsTr"),
    "unlabelled": ("imagesUn", None),
    "test": ("imagesTs", "labelsTs"),
}
ROLES = tuple(FOLDERS)
WIDE_TEST_EVERY = 4  # every fourth test case comes from the unlabelled cases' wider distribution
STORED_ORDERS = ("RAS", "LPS", "LAS", "LPI", "PIL", "ASR")  # axis codes of (column, row, slice), as nibabel's
STORED_SHARES = (0.35, 0.35, 0.1, 0.1, 0.05, 0.05)
# what a small network learns soon
LARGE_ORGANS = ("liver", "right kidney", "spleen", "aorta", "stomach", "left kidney")


@dataclass(frozen=True)
class _PhantomCase:
    """One case to be made: all that it depends on, and where it goes."""

    out: Path
    role: Role
    index: int
    seed: int
    size: Size
    anatomy: Path | None  # a label map to build it from
    organs: Organs

    @property
    def name(self) -> str:
        """The case's name, as ``labelled_001``."""
        return f"{self.role}_{self.index + 1:03d}"


def write_phantom(
    out: Path | str,
    labelled: int,
    unlabelled: int,
    test: int,
    size: Size = "small",
    seed: int = 0,
    anatomy: Path | str | None = None,
    workers: int = 1,
    progress: bool = True,
    organs: Organs = "all",
) -> None:
    """Write a phantom data set into the folder ``out``: scans int16 HU, labels uint8, ``dataset.json`` at the end.

    ``size`` is ``small`` (about 45×62×62 voxels of 6.4 mm) or ``full`` (512×512 voxels of 0.8 mm, slices of 1-3 mm);
    ``anatomy`` is a folder of FLARE22 label maps to build the cases from. ``organs``: which have labels, FLARE22's 13
    or LARGE_ORGANS, 1 to 6; the scans are the same. An older phantom in ``out`` is replaced.
    Raises DatasetError: ``out`` holds something else, no labelled case asked for, no label maps in ``anatomy``, a
    case that could not be made.
    """
    out = Path(out)
    counts: dict[Role, int] = {"labelled": labelled, "unlabelled": unlabelled, "test": test}
    if labelled < 1 or min(counts.values()) < 0:
        raise DatasetError(f"{labelled} labelled, {unlabelled} unlabelled, {test} test cases; at least 1, 0, 0 needed")
    if seed < 0:
        raise DatasetError(f"seed {seed}: expected a whole number, 0 or more")
    sources: dict[Role, list[Path]] = {}
    if anatomy is not None:
        maps = find_scans(anatomy) if Path(anatomy).is_dir() else []
        if not maps:
            raise DatasetError(f"{anatomy}: no label maps; expected a folder of FLARE22 label maps such as *.nii.gz")
        shuffled = np.random.default_rng([seed, len(ROLES)]).permutation(len(maps))
        sources = anatomy_sources([maps[i] for i in shuffled], counts)
    _clear(out)
    recipe: dict[str, object] = {"labelled": labelled, "unlabelled": unlabelled, "test": test}
    recipe |= {"size": size, "seed": seed, "anatomy": None if anatomy is None else Path(anatomy).name}
    recipe |= {} if organs == "all" else {"organs": organs}
    orders = [
        _PhantomCase(out, role, index, seed, size, sources[role][index] if sources else None, organs)
        for role in ("labelled", "test", "unlabelled")
        for index in range(counts[role])
    ]
    made_from = {"sources": {order.name: order.anatomy.name for order in orders if order.anatomy}} if sources else {}
    write_json(out / RECIPE, recipe | made_from)
    outcomes = process_cases(_make_case, [(order.name, order) for order in orders], workers, "phantom", progress)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        raise DatasetError(
            f"{out}: {len(failed)} of {len(orders)} cases could not be made, first {failed[0].name}: {failed[0].error}"
        )
    ids = label_ids(organs)
    description = {
        "name": "phantom",
        "description": f"synthetic abdominal CT with {len(ids)} organs of FLARE22",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {name: ids[label] for name, label in FLARE22_LABELS.items() if label in ids},
        "numTraining": labelled,
        "file_ending": ".nii.gz",
        "left_right_pairs": [(ids[right], ids[left]) for right, left in FLARE22_PAIRS if right in ids],
        "phantom": recipe,
    }
    write_json(out / "dataset.json", description)


def label_ids(organs: Organs) -> dict[int, int]:
    """The labels that are kept, FLARE22's id to the one that is written: ascending from 1.

    >>> label_ids("large")
    {1: 1, 2: 2, 3: 3, 5: 4, 11: 5, 13: 6}
    """
    kept = [organ.id for organ in FLARE22_ORGANS if organs == "all" or organ.name in LARGE_ORGANS]
    return {label: place for place, label in enumerate(kept, start=1)}


def anatomy_sources(maps: list[Path], counts: dict[Role, int]) -> dict[Role, list[Path]]:
    """Which label map each case is built from, by role and index.

    Labelled and test cases have patients of their own as long as there are maps. Unlabelled cases take what is left,
    then share the labelled cases' maps; never a test patient's, unless every map is one.
    """
    labelled = [maps[i % len(maps)] for i in range(counts["labelled"])]
    test = [maps[(counts["labelled"] + i) % len(maps)] for i in range(counts["test"])]
    fresh = maps[counts["labelled"] + counts["test"] :]
    pool = [*fresh, *(one for one in dict.fromkeys(labelled) if one not in test)] or maps
    unlabelled = [pool[i % len(pool)] for i in range(counts["unlabelled"])]
    return {"labelled": labelled, "unlabelled": unlabelled, "test": test}


def _make_case(order: _PhantomCase) -> None:
    """Write the scan of one case, and its labels unless it is unlabelled."""
    images, labels_folder = FOLDERS[order.role]
    generator = np.random.default_rng([order.seed, ROLES.index(order.role), order.index])
    image, labels, space = draw_case(
        generator, order.size, is_out_of_distribution(order.role, order.index), order.anatomy
    )
    to_stored = reordering(str(generator.choice(STORED_ORDERS, p=STORED_SHARES)))
    stored = to_stored.apply_to_space(space)
    write_volume(order.out / images / f"{order.name}_0000.nii.gz", np.ascontiguousarray(to_stored.apply(image)), stored)
    if labels_folder is not None:
        path = order.out / labels_folder / f"{order.name}.nii.gz"
        written = np.zeros(256, np.uint8)
        for label, kept in label_ids(order.organs).items():
            written[label] = kept
        labels = written[labels]
        write_volume(path, np.ascontiguousarray(to_stored.apply(labels)), stored)


def draw_case(
    generator: np.random.Generator, size: Size, wide: bool, anatomy: Path | None = None
) -> tuple[np.ndarray, np.ndarray, Space]:
    """One case in canonical RAS order: scan int16 HU, labels uint8, both (slice, row, column), and their grid.

    ``anatomy``: a label map to build it from; see ``draw_mapped_scene`` for what it raises.
    """
    scene = draw_scene(generator, size, wide) if anatomy is None else draw_mapped_scene(generator, anatomy, size, wide)
    image, labels = paint(scene, generator)
    x, y, z = np.round(generator.uniform((100, 100, -900), (250, 250, -300)), 2).tolist()
    return image, labels, Space.canonical(scene.view.shape, scene.view.spacing_mm, (x, y, z))


def is_out_of_distribution(role: Role, index: int) -> bool:
    """Whether a case comes from the wider distribution: every unlabelled one, and a part of the test cases."""
    return role == "unlabelled" or (role == "test" and index % WIDE_TEST_EVERY == WIDE_TEST_EVERY - 1)


def reordering(codes: str) -> Reorientation:
    """How canonical voxels are reordered to be stored with these axis codes of (column, row, slice).

    >>> reordering("RAS")
    Reorientation(axes=(0, 1, 2), flips=(False, False, False))
    >>> reordering("LPS").flips
    (False, True, True)
    """
    found = [next((a, code in "IPL") for a, pair in enumerate(("SI", "AP", "RL")) if code in pair) for code in codes]
    (column, back_column), (row, back_row), (slice_, back_slice) = found
    return Reorientation((slice_, row, column), (back_slice, back_row, back_column))


def _clear(out: Path) -> None:
    """Make ``out`` ready: a new folder, or an older phantom without its cases; anything else is left alone."""
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out}: is a file; expected a new folder, or one that holds a phantom")
    recipe = read_own_json(out / RECIPE)
    is_phantom = "seed" in recipe and "labelled" in recipe
    if out.is_dir() and any(out.iterdir()) and not is_phantom:
        raise DatasetError(f"{out}: holds files that are no phantom; choose a new folder, or empty this one yourself")
    out.mkdir(parents=True, exist_ok=True)
    (out / "dataset.json").unlink(missing_ok=True)  # until all is written, this is no data set
    for folder in filter(None, itertools.chain(*FOLDERS.values())):
        shutil.rmtree(out / folder, ignore_errors=True)
