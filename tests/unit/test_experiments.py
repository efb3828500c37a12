"""The experiments in ``benchmarks/`` that are lists of stages: equal methods, configs that exist, splits that hold."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flarecps.cli.stages import Ledger, Stage
from flarecps.errors import DatasetError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def experiment(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"experiment_{name}", BENCHMARKS / name / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def stages_of(name: str, out: Path, **given: Any) -> list[Stage]:
    common: dict[str, Any] = {"out": out, "seeds": [0, 1], "workers": 1, "fit_words": "", "dataset": out / "set"}
    common |= {"label_maps": out / "maps", "dimensions": [3, 2], "size": "small", "labelled": [8, 80]}
    return experiment(name).stages(argparse.Namespace(**(common | given)))


@pytest.mark.parametrize("size", ["small", "full"])
def test_phantom13_trains_both_methods_alike(size: str, tmp_path: Path) -> None:
    found = stages_of("phantom13", tmp_path, size=size)
    names = [stage.name for stage in found]
    assert len(set(names)) == len(names)
    assert all(name in names[:place] for place, stage in enumerate(found) for name in stage.after), "in order"
    trained = {stage.name: stage for stage in found if stage.name.startswith("train_")}
    assert len(trained) == 2 * 2 * 2  # dimensions, methods, seeds
    for stage in trained.values():
        config = Path(stage.words[2])
        assert config.is_file()
        assert config.stem.endswith("_supervised") == ("supervised" in stage.name)
        assert (config.stem.startswith("phantom13_"), "_2d" in config.stem) == (size == "full", "2d" in stage.name)
    twins = [trained[f"train_3d_{method}_1"].words for method in ("cps", "supervised")]
    differing = [(one, other) for one, other in zip(*twins, strict=True) if one != other]
    assert [one.replace("3d_cps_1", "3d_supervised_1") for one, _ in differing[1:]] == [
        other for _, other in differing[1:]
    ]
    compared = next(stage for stage in found if stage.name == "compare_3d").words
    assert compared[1].startswith("control=")
    assert compared[1].count("scores.csv") == 2
    ledger = Ledger(found, tmp_path / "stages")
    assert ledger.digest(trained["train_3d_cps_0"]) != ledger.digest(trained["train_3d_cps_1"])


def test_phantom13_refuses_a_patient_in_training_and_test(tmp_path: Path) -> None:
    check = experiment("phantom13").check_split
    sources = {"labelled_001": "a", "unlabelled_001": "b", "test_001": "c"}
    (tmp_path / "phantom.json").write_text(json.dumps({"sources": sources}))
    check(tmp_path)
    (tmp_path / "phantom.json").write_text(json.dumps({"sources": sources | {"unlabelled_002": "c"}}))
    with pytest.raises(DatasetError, match="1 patients are in training and test, first c"):
        check(tmp_path)


def test_la_sets_its_numbers_beside_the_published_ones(tmp_path: Path) -> None:
    found = stages_of("la", tmp_path)
    trained = [stage for stage in found if stage.name.startswith("train_")]
    assert [stage.name for stage in trained] == [
        "train_8_supervised_0", "train_8_supervised_1", "train_8_cps_0", "train_8_cps_1",
        "train_80_supervised_0", "train_80_supervised_1",
    ]  # fmt: skip
    splits = [stage.words[stage.words.index("--data.split") + 1] for stage in trained]
    assert splits == ["8_labelled"] * 4 + ["80_labelled"] * 2
    for seed, dice in ((0, "0.8"), (1, "0.9")):
        scores = tmp_path / "runs" / f"8_cps_{seed}" / "scores"
        scores.mkdir(parents=True)
        (scores / "scores.csv").write_text(f"Name,left_atrium_DSC,left_atrium_NSD\na,{dice},0.5\nb,{dice},0.5\n")
    table = found[-1]
    assert table.work is not None
    table.work()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in (tmp_path / "table.md").read_text().splitlines()
    ]
    assert ["8", "UA-MT", "published", "87.79", "–", "20"] in rows
    assert ["8", "flarecps CPS", "here", "85.00 ± 7.07", "2", "2"] in rows
