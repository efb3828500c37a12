"""Splits: what splits.json may say, and folds that stay the same everywhere."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from flarecps.datasets.splits import Split, choose_split, fold, read_splits, split_to_json
from flarecps.errors import DatasetError


def write(folder: Path, content: object) -> Path:
    path = folder / "splits.json"
    path.write_text(json.dumps(content))
    return path


def test_flat_file_is_the_default_split(tmp_path: Path) -> None:
    path = write(tmp_path, {"labelled": ["a"], "unlabelled": ["b"], "annotated": {"a": [1, 3]}})
    assert read_splits(path) == {"default": Split(("a",), ("b",), annotated={"a": (1, 3)})}


def test_named_splits_and_the_way_back(tmp_path: Path) -> None:
    split = Split(("a", "b"), ("c",), ("d",), ("e",), {"b": (2,)})
    path = write(tmp_path, {"two": split_to_json(split), "one": {"labelled": ["a"]}})
    splits = read_splits(path)
    assert splits == {"two": split, "one": Split(("a",))}
    assert choose_split(splits, "two", path) is splits["two"]
    with pytest.raises(DatasetError, match="no split 'three'; it has two, one"):
        choose_split(splits, "three", path)
    with pytest.raises(DatasetError, match="several splits"):
        choose_split(splits, None, path)
    assert choose_split({"one": splits["one"]}, None, path) is splits["one"]


def test_real_splits(shared_data: Path) -> None:
    splits = read_splits(shared_data / "kbp" / "splits.json")
    sizes = {name: (len(one.labelled), len(one.unlabelled), len(one.test)) for name, one in splits.items()}
    assert sizes["10_labelled"] == (10, 132, 25)
    assert sizes["142_labelled"] == (142, 0, 25)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected one split"),
        ({"labelled": ["a"], "unlabelled": ["a"]}, "case 'a' is listed as labelled and as unlabelled"),
        ({"labelled": ["a"], "test": ["b"], "validation": ["b"]}, "'b' is listed as test and as validation"),
        ({"labelled": "a"}, "'labelled' must be a list"),
        ({"labelled": ["a"], "unlabeled": ["b"]}, "unknown entry 'unlabeled'"),
        ({"labelled": ["a"], "annotated": {"a": 3}}, "annotated"),
        ({"ten": ["a"]}, "split 'ten': expected"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_splits(write(tmp_path, content))


def test_missing_and_malformed_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        read_splits(tmp_path / "splits.json")
    (tmp_path / "splits.json").write_text("{")
    with pytest.raises(DatasetError, match="not valid JSON"):
        read_splits(tmp_path / "splits.json")


@pytest.mark.parametrize("count", [5, 7, 10, 42])
def test_folds_partition_the_cases(count: int) -> None:
    names = [f"case_{index}" for index in range(count)]
    folds = [fold(names, number) for number in range(5)]
    held_out = Counter(name for _, validation in folds for name in validation)
    assert held_out == Counter(names)
    sizes = [len(validation) for _, validation in folds]
    assert max(sizes) - min(sizes) <= 1
    for training, validation in folds:
        assert sorted(training + validation) == sorted(names)
        assert not set(training) & set(validation)


def test_folds_depend_on_the_names_only() -> None:
    names = [f"case_{index}" for index in range(20)]
    assert fold(names, 3) == fold(names[::-1], 3)
    assert fold(names, 0)[1] != tuple(sorted(names))[:4], "folds are shuffled, not cut in alphabetical order"
    assert fold([f"c{i}" for i in range(6)], 0) == (("c0", "c1", "c3", "c4"), ("c2", "c5"))  # pinned: runs compare


def test_fold_all_and_bad_folds() -> None:
    assert fold(["b", "a"], "all") == (("a", "b"), ())
    with pytest.raises(DatasetError, match=r'expected 0..4 or "all"'):
        fold(["a"] * 6, 5)
    with pytest.raises(DatasetError, match="3 labelled cases can't be split into 5 folds"):
        fold(["a", "b", "c"], 0)
