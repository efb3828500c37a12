"""Who is labelled, unlabelled, test or validation: ``splits.json`` and cross-validation folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flarecps.case_names import composed, why_not_plain
from flarecps.errors import DatasetError, did_you_mean
from flarecps.json_fields import is_whole, shown
from flarecps.text_files import read_json

SPLITS = "splits.json"
NNUNET_SPLITS = "splits_final.json"
EXPECTED = 'expected a splits.json, such as {"labelled": [case names], "unlabelled": [...], "test": [...]}'
DEFAULT_SPLIT = "default"  # the name of the one split in a flat file
FOLDS = 5
_FOLD_SEED = 12345  # must not be tuned: folds stay comparable between runs and machines
_ROLES = ("labelled", "unlabelled", "test", "validation")


@dataclass(frozen=True)
class Split:
    """The names of the cases in each role; ``annotated`` lists label ids of the cases that are not fully annotated.

    No case has two roles. ``validation`` cases have labels and are trained on in no way.
    """

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    annotated: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for role in _ROLES:
            for name in getattr(self, role):
                if name in seen:
                    raise DatasetError(
                        f"split: case {name!r} is listed as {seen[name]} and as {role}; each case has one role: "
                        f"remove it from one of the two lists"
                    )
                seen[name] = role


def split_to_json(split: Split) -> dict[str, Any]:
    """The split as plain JSON types, in the form ``read_splits`` reads; empty optional entries are left out."""
    content: dict[str, Any] = {role: list(getattr(split, role)) for role in ("labelled", "unlabelled", "test")}
    if split.validation:
        content["validation"] = list(split.validation)
    if split.annotated:
        content["annotated"] = {name: list(ids) for name, ids in split.annotated.items()}
    return content


def _split_from_json(content: Any, where: str) -> Split:
    """The split written as ``content``; ``where`` (file and split name) begins every error message.

    Raises DatasetError for unknown keys, lists that do not hold names, or a case with two roles.
    """
    if not isinstance(content, dict) or "labelled" not in content:
        raise DatasetError(f'{where}: expected {{"labelled": [case names], "unlabelled": [...], "test": [...]}}')
    unknown = sorted(set(content) - {*_ROLES, "annotated"})
    if unknown:
        raise DatasetError(f"{where}: unknown entry {unknown[0]!r}; known are {', '.join(_ROLES)}, annotated")
    lists: dict[str, tuple[str, ...]] = {}
    for role in _ROLES:
        names = content.get(role, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DatasetError(f"{where}: {role!r} must be a list of case names, not {shown(names)}")
        lists[role] = tuple(map(composed, names))
    annotated = content.get("annotated", {})
    if not isinstance(annotated, dict) or not all(
        isinstance(ids, list) and all(map(is_whole, ids)) for ids in annotated.values()
    ):
        raise DatasetError(
            f'{where}: "annotated" is {shown(annotated)}; expected a list of label ids per case, {{"case_1": [1, 2]}}'
        )
    for name in (*(name for names in lists.values() for name in names), *annotated):
        if reason := why_not_plain(name):
            raise DatasetError(f"{where}: the case name {ascii(name)[:80]} {reason}; expected a plain one")
    try:
        return Split(**lists, annotated={composed(name): tuple(ids) for name, ids in annotated.items()})
    except DatasetError as error:
        raise DatasetError(f"{where}: {error}") from None


def read_splits(path: Path | str) -> dict[str, Split]:
    """The splits of a ``splits.json`` by name; a flat file (one split, without a name) gives ``{"default": ...}``.

    Raises DatasetError when the file is missing, is not JSON, or holds something else.
    """
    path = Path(path)
    content = read_json(path, DatasetError, EXPECTED)
    if not isinstance(content, dict) or not content:
        raise DatasetError(f"{path}: holds {shown(content)}; expected one split, or several by name")
    if "labelled" in content:
        return {DEFAULT_SPLIT: _split_from_json(content, str(path))}
    return {name: _split_from_json(one, f"{path}: split {name!r}") for name, one in content.items()}


def data_set_splits(root: Path, unlabelled: Sequence[str] = (), test: Sequence[str] = ()) -> dict[str, Split]:
    """The splits that a data set folder holds, by name: of its ``splits.json``, else of nnU-Net's
    ``splits_final.json``; none without either.

    nnU-Net's list of folds becomes "fold_0", "fold_1", …: its ``train`` are labelled, its ``val`` validation cases.
    It knows no unlabelled and test cases, so these are what the folders say (``unlabelled`` and ``test``). Raises
    DatasetError when the file is no such list, or a case has two roles.
    """
    own, path = root / SPLITS, root / NNUNET_SPLITS
    if own.exists() or not path.exists():
        return read_splits(own) if own.exists() else {}
    content = read_json(path, DatasetError, "expected nnU-Net's list of folds")
    if not isinstance(content, list) or not content:
        raise DatasetError(f'{path}: expected nnU-Net\'s list of folds, [{{"train": [...], "val": [...]}}, ...]')
    splits = {}
    for number, one in enumerate(content):
        where = f"{path}: fold {number}"
        if not isinstance(one, dict) or set(one) != {"train", "val"}:
            raise DatasetError(f'{where}: expected {{"train": [case names], "val": [case names]}}')
        entries = {"labelled": one["train"], "validation": one["val"], "unlabelled": [*unlabelled], "test": [*test]}
        splits[f"fold_{number}"] = _split_from_json(entries, where)
    return splits


def choose_split(splits: Mapping[str, Split], name: str | None, where: Path | str) -> Split:
    """The split called ``name``; without a name the only one, or the one called "default".

    Raises DatasetError, naming those that exist, when there is no such split or the choice is open.
    """
    known = ", ".join(splits)
    if name is not None:
        if name not in splits:
            raise DatasetError(f"{where}: no split {name!r}; it has {known}{did_you_mean(name, splits)}")
        return splits[name]
    if DEFAULT_SPLIT in splits:
        return splits[DEFAULT_SPLIT]
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise DatasetError(f"{where}: several splits ({known}); name one of them")


def fold(labelled: Sequence[str], fold: int | Literal["all"]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """``(training, validation)`` names of one of five folds; ``"all"`` trains on every case and validates on none.

    The folds depend on the set of names only: not on their order, not on any generator's state. Fold sizes differ by
    at most one. Raises DatasetError for another fold, or when there are fewer cases than folds.

    >>> fold(["a", "b"], "all")
    (('a', 'b'), ())
    """
    names = sorted(labelled)
    if fold == "all":
        return tuple(names), ()
    if isinstance(fold, bool) or fold not in range(FOLDS):
        raise DatasetError(f'fold {fold!r}: expected 0..{FOLDS - 1} or "all"')
    if len(names) < FOLDS:
        raise DatasetError(
            f"{len(names)} labelled cases can't be split into {FOLDS} folds; "
            f'train with fold "all", or name validation cases in splits.json'
        )
    order = np.random.RandomState(_FOLD_SEED).permutation(len(names))  # a generator whose stream numpy has frozen
    held_out = {names[index] for index in order[fold::FOLDS]}
    training = tuple(name for name in names if name not in held_out)
    return training, tuple(name for name in names if name in held_out)
