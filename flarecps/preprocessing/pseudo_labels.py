"""Pseudo-labels of a case store's unlabelled cases, in a folder of their own beside the store.

One directory::

    FOLDER/pseudo_labels.json  quality.csv  struck.csv  index.html
    FOLDER/cases/NAME/labels.b2nd  samples.b2nd  [disputed.b2nd]  case.json  checksums.sha256

Labels lie on the network's grid, as those of the store do, and only they are here: images are read from the store. A
case appears whole or not at all. ``disputed`` is 1 where the teachers, each for itself, differ. ``struck.csv`` belongs
to people: what is listed there is trained on no more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from flarecps import atomic
from flarecps.case_names import file_name
from flarecps.errors import StoreError, counted, first_few
from flarecps.planning.plan import Plan
from flarecps.preprocessing.checksums import CHECKSUMS, check_file
from flarecps.preprocessing.store import CaseRecord, CaseStore, is_finished, open_array, read_description, read_samples
from flarecps.preprocessing.store_writing import whole_case, write_array, write_label_array
from flarecps.text_files import csv_lines, read_own_json
from flarecps.typing import LabelArray, NormalisedArray, Triple

DESCRIPTION, STRUCK = "pseudo_labels.json", "struck.csv"
FORMAT, VERSION = "flarecps-pseudo-labels", 1
STRUCK_HEADER = ("case", "organ")  # a line without organ strikes out the whole scan


@dataclass(frozen=True)
class PseudoLabels:
    """What is known of a scan's pseudo-labels. ``quality`` is the teachers' agreement by organ, None where there is no
    number (one teacher, or none of them saw the organ); ``ml`` the organs' volumes."""

    name: str
    shape: Triple
    quality: dict[str, float | None]
    ml: dict[str, float]
    samples: dict[int, int]  # voxels kept per structure, by label id
    folder: Path

    def maps(self) -> tuple[LabelArray, LabelArray | None]:
        """The labels and what is disputed, both (S, H, W) on the network's grid."""
        disputed = self.folder / "disputed.b2nd"
        labels = open_array(self.folder / "labels.b2nd")[:]
        return labels, open_array(disputed)[:] if disputed.exists() else None

    @property
    def mean_quality(self) -> float | None:
        """Over the organs that have one."""
        return mean_quality(self.quality)


def mean_quality(quality: Mapping[str, float | None], organs: Sequence[str] | None = None) -> float | None:
    """The mean over the organs that have a quality, of ``organs`` or of all; None where none has.

    >>> mean_quality({"liver": 0.9, "spleen": None, "aorta": 0.5}), mean_quality({"liver": 0.9}, [])
    (0.7, None)
    """
    there = [one for organ, one in quality.items() if one is not None and (organs is None or organ in organs)]
    return float(np.mean(there)) if there else None


def prepare_folder(folder: Path, content: dict[str, Any]) -> None:
    """Make the folder, or check that what is in it came of the same store, teachers and settings (``content``).

    Several processes may do this at once. Raises ``StoreError`` for other pseudo-labels, and for another folder.
    """
    content = {"format": FORMAT, "version": VERSION, **content}
    if (folder / DESCRIPTION).exists():
        there = _description(folder)
        for key in content:
            if there.get(key) != content[key]:
                raise StoreError(
                    f"{folder}: holds pseudo-labels of another run ({key} {_short(there.get(key))} there, "
                    f"{_short(content[key])} here); choose another folder, or delete this one first"
                )
    elif folder.exists() and (not folder.is_dir() or _others(folder)):
        raise StoreError(f"{folder}: exists and holds no pseudo-labels; choose a new or empty folder")
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    atomic.write_json(folder / DESCRIPTION, content)
    if not (folder / STRUCK).exists():
        atomic.write_text(folder / STRUCK, ",".join(STRUCK_HEADER) + "\n")


def _others(folder: Path) -> bool:
    """Whether anything but what another process of the same run begins with is there."""
    return any(path.name != "cases" and not path.name.startswith(atomic.PARTIAL_PREFIX) for path in folder.iterdir())


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 90 else f"{text[:90]}…"


def _description(folder: Path) -> dict[str, Any]:
    content = read_own_json(folder / DESCRIPTION)
    if not content:
        raise StoreError(
            f"{folder}: holds no pseudo-labels (no readable {DESCRIPTION}); 'flarecps pseudo-label' makes them"
        )
    if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise StoreError(f"{folder}: {DESCRIPTION} is not of format '{FORMAT}', version {VERSION}; label again")
    return content


def write_pseudo_labels(
    folder: Path,
    name: str,
    labels: LabelArray,
    disputed: LabelArray | None,
    dimensions: int,
    quality: Mapping[str, float | None],
    ml: Mapping[str, float],
) -> None:
    """Write one scan's pseudo-labels, whole or not at all; ``disputed`` is None where there is one teacher only.

    Raises ``StoreError`` when the disk is full.
    """
    with whole_case(folder, name) as partial:
        samples = write_label_array(partial, labels, name, dimensions)
        if disputed is not None:
            write_array(partial / "disputed.b2nd", disputed, dimensions)
        content = {
            "name": name,
            "shape_voxels": list(labels.shape),
            "quality": dict(quality),
            "ml": dict(ml),
            "samples": samples,
        }
        atomic.write_json(partial / "case.json", content)


def read_pseudo_labels(folder: Path, name: str) -> PseudoLabels:
    """What is known of a finished scan; ``StoreError`` when it is damaged."""
    case = folder / "cases" / file_name(name)
    try:
        content = read_own_json(case / "case.json")
        return PseudoLabels(
            name=content["name"],
            shape=tuple(content["shape_voxels"]),
            quality=content["quality"],
            ml=content["ml"],
            samples={int(label): count for label, count in content["samples"].items()},
            folder=case,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{case}: missing or damaged; delete it and give 'flarecps pseudo-label' again") from error


def read_all(folder: Path) -> list[PseudoLabels]:
    """Every finished scan, sorted by name."""
    there = (folder / "cases").iterdir() if (folder / "cases").is_dir() else ()
    return [read_pseudo_labels(folder, path.name) for path in sorted(there) if is_finished(folder, path.name)]


def read_struck(folder: Path, store: CaseStore) -> dict[str, frozenset[str]]:
    """What a person struck out in ``struck.csv``: by scan the organs, all of the plan's where a line names none.

    Raises ``StoreError``, with the line's number, for a scan that ``store`` does not have, or an organ that its plan
    does not have, and for a file that is no such table.
    """
    path, struck = folder / STRUCK, dict[str, frozenset[str]]()
    organs = organs_of_plan(store.plan)
    lines = csv_lines(path, StoreError, "expected a table of CASE,ORGAN")[0] if path.exists() else []
    for number, line in enumerate(lines, start=1):
        words = [word.strip() for word in line]
        if not any(words) or (number == 1 and tuple(words) == STRUCK_HEADER):
            continue
        name, organ, *more = [*words, ""]
        if any(more) or (organ and organ not in organs) or not is_finished(store.path, name):
            raise StoreError(
                f"{path}: line {number} is {','.join(words)!r}; expected CASE, or CASE,ORGAN, with a case of "
                f"{store.path} and one of {', '.join(organs)}"
            )
        struck[name] = struck.get(name, frozenset()) | frozenset([organ] if organ else organs)
    return struck


def organs_of_plan(plan: Plan) -> list[str]:
    """The names of the plan's labels without background."""
    return [name for name, label in plan.labels.items() if label]


@dataclass(frozen=True)
class _PseudoLabelledRecord(CaseRecord):
    """A case whose labels are pseudo-labels."""

    pseudo_folder: Path = Path()

    @property
    def labels_folder(self) -> Path:
        return self.pseudo_folder

    @property
    def samples(self) -> dict[int, np.ndarray]:
        """Voxels (n, 3) of every structure that gives a loss, by label id."""
        check_file(self.pseudo_folder / "samples.b2nd")
        voxels = read_samples(self.pseudo_folder, tuple(self.sample_counts.items()))
        return {label: some for label, some in voxels.items() if label in (self.annotated or ())}


class PseudoLabelledStore(CaseStore):
    """A store's unlabelled cases with their pseudo-labels, without those struck out or of too low a quality.

    Args:
        path: the case store.
        folder: of pseudo-labels of this store.
        pool: the cases that may be used: a split's unlabelled ones.
        min_quality: an organ below it is left out in that scan, as one that is struck out.

    A scan is left out where no organ is left, or those that are have a quality of 0. ``weights`` says, by case, the
    mean quality of the organs left; 1 where there is no number.

    Raises ``StoreError`` when the pseudo-labels are of another store's grid, when one of the pool has none and is not
    struck out, or when nothing is left.
    """

    def __init__(self, path: Path | str, folder: Path | str, pool: Sequence[str], min_quality: float = 0.0) -> None:
        super().__init__(path)
        self.folder, self.pool, self.min_quality = Path(folder), tuple(pool), min_quality
        described, theirs = read_description(self.path), _description(self.folder)
        if theirs["preprocessing_hash"] != described["preprocessing_hash"]:
            raise StoreError(f"{self.folder}: pseudo-labels of another grid than {self.path}; label this store's cases")
        struck, organs = read_struck(self.folder, self), organs_of_plan(self.plan)
        waiting = [name for name in self.pool if len(struck.get(name, ())) < len(organs)]
        missing = [name for name in waiting if not is_finished(self.folder, name)]
        if missing:
            raise StoreError(
                f"{self.folder}: {counted(len(missing), 'unlabelled case')} of {len(self.pool)} without pseudo-labels "
                f"({first_few(missing)}); give 'flarecps pseudo-label' again, or strike them out in {STRUCK}"
            )
        self.weights: dict[str, float] = {}
        self._pseudo_labels: dict[str, PseudoLabels] = {}
        self._annotated: dict[str, tuple[int, ...]] = {}
        for name in waiting:
            self._take(read_pseudo_labels(self.folder, name), struck.get(name, frozenset()))
        if not self.weights:
            raise StoreError(
                f"{self.folder}: no pseudo-labelled case is left of {len(self.pool)}: struck out in {STRUCK}, below "
                f"data.min_quality ({min_quality:g}), or the teachers agree on nothing (quality.csv); use better ones"
            )

    def _take(self, found: PseudoLabels, struck: frozenset[str]) -> None:
        if found.shape != super().record(found.name).shape:
            raise StoreError(f"{found.folder}: not of the size that {self.path} has; delete it and label again")
        good = [organ for organ, one in found.quality.items() if one is None or one >= self.min_quality]
        kept = [organ for organ in good if organ not in struck]
        quality = mean_quality(found.quality, kept)
        weight = 1.0 if quality is None else quality
        if kept and weight > 0:
            self.weights[found.name] = weight
            self._pseudo_labels[found.name] = found
            self._annotated[found.name] = tuple(self.plan.labels[organ] for organ in kept)

    def __reduce__(self) -> tuple[Any, ...]:
        return PseudoLabelledStore, (self.path, self.folder, self.pool, self.min_quality)

    @property
    def names(self) -> tuple[str, ...]:
        """The cases that are trained on, in the pool's order."""
        return tuple(self.weights)

    @property
    def digest(self) -> str:
        """What is trained on, in short: another one for other labels, organs or weights (SHA-256)."""
        labels = [
            (self.folder / "cases" / file_name(name) / CHECKSUMS).read_text(encoding="utf-8") for name in self.names
        ]
        content = json.dumps([labels, self._annotated, self.weights])
        return hashlib.sha256(content.encode()).hexdigest()

    def read_patch(
        self, name: str, lower: tuple[int, ...], shape: tuple[int, ...], labels: bool
    ) -> tuple[NormalisedArray, LabelArray | None]:
        """As a ``CaseStore`` does; organs that are left out are background in the labels."""
        image, drawn = super().read_patch(name, lower, shape, labels)
        if drawn is None:
            return image, None
        kept = np.zeros(self.plan.class_count, np.uint8)
        kept[list(self._annotated[name])] = self._annotated[name]
        return image, kept[drawn]

    def record(self, name: str) -> CaseRecord:
        """The record of a case with its pseudo-labels."""
        stored, found = super().record(name), self._pseudo_labels[name]
        content = {field.name: getattr(stored, field.name) for field in fields(CaseRecord)} | {
            "has_labels": True,
            "annotated": self._annotated[name],
            "sample_counts": found.samples,
        }
        return _PseudoLabelledRecord(**content, pseudo_folder=found.folder)
