"""A model of nnU-Net's as the start of a training: at step 0 it segments as it did where it came from."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import write_model
from stores import TinyStores, fit, fit_words

from flarecps import metric_names
from flarecps.checkpoint import load_plain, read_checkpoint, sibling_states
from flarecps.cli.main import main
from flarecps.datasets.splits import fold
from flarecps.inference.sliding_window import predict_probabilities
from flarecps.planning.plan import Topology
from flarecps.preprocessing.store import CaseStore

TOPOLOGY = Topology((4, 8), ((1,) * 3, (2,) * 3), ((3,) * 3,) * 2)
SETTINGS = [
    *("--data.fold", 0, "--data.global_batch", "{labelled: 2, unlabelled: 2}", "--data.augmentation", "false"),
    *("--model.topology.features", "[4, 8]", "--model.topology.strides", "[[1, 1, 1], [2, 2, 2]]"),
    *("--model.topology.kernels", "[[3, 3, 3], [3, 3, 3]]"),
    *("--model.network.class_path", "flarecps.networks.PlainUNet", "--model.network.init_args.output_bias", "true"),
]
STANDING = ["--model.optimizer.init_args.lr", 0]  # after an epoch the weights are those of step 0


@pytest.fixture(scope="module")
def imported(tiny_stores: TinyStores, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that came through an nnU-Net model folder, for the labels and the grid of the tiny store."""
    folder = tmp_path_factory.mktemp("imported")
    plan = replace(CaseStore(tiny_stores.three).plan, topology=TOPOLOGY)
    write_model(folder / "ours.ckpt", siblings=1, plan=plan)
    assert main(["export", str(folder / "ours.ckpt"), str(folder / "model"), "--to", "nnunet"]) == 0
    assert main(["import", str(folder / "model"), str(folder / "imported.ckpt"), "--from", "nnunet"]) == 0
    return folder / "imported.ckpt"


def dsc_of(checkpoint: Path, store: CaseStore, step: float) -> dict[str, float]:
    """DSC of the validation case per organ, from the checkpoint's network and the case's voxels alone."""
    model = read_checkpoint(checkpoint)
    labelled = [name for name in store.names if store.record(name).role == "labelled"]
    _, (held_out,) = fold(labelled, 0)
    image, drawn = store.read_case(held_out)
    assert drawn is not None
    found = predict_probabilities(
        model.siblings[0], torch.from_numpy(image), model.patch_voxels, model.plan.class_count, step
    )
    labels = found.argmax(0).numpy()
    return {
        name: 2 * np.count_nonzero((labels == label) & (drawn == label)) / volumes
        for name, label in model.labels.items()
        if label and (volumes := np.count_nonzero(labels == label) + np.count_nonzero(drawn == label))
    }


def test_at_step_0_its_validation_is_the_imported_models(
    imported: Path, tiny_stores: TinyStores, tmp_path: Path
) -> None:
    run = fit("phantom_3d.yaml", tiny_stores, tmp_path / "run", *SETTINGS, *STANDING, "--init", imported, epochs=1)
    rows = list(csv.DictReader((run / "csv" / "metrics.csv").open()))
    logged = {name: float(row[name]) for row in rows for name in row if row[name]}
    expected = dsc_of(imported, CaseStore(tiny_stores.three), step=0.5)
    assert max(expected.values()) > 0.02  # noise, but not nothing
    for organ, value in expected.items():
        assert logged[metric_names.dsc("sibling_1", organ)] == pytest.approx(value, abs=1e-6), organ
    trained = load_plain(run / "checkpoints" / "last.ckpt")
    assert all(
        torch.equal(value, sibling_states(trained)[0][name])
        for name, value in sibling_states(load_plain(imported))[0].items()
    )


def test_it_starts_any_sibling_and_the_siblings_learn(imported: Path, tiny_stores: TinyStores, tmp_path: Path) -> None:
    words = ["--init", imported, "--init_siblings", "[2]"]
    standing = fit("phantom_3d.yaml", tiny_stores, tmp_path / "a", *SETTINGS, *STANDING, *words, epochs=1)
    given = sibling_states(load_plain(imported))[0]
    first, second = sibling_states(load_plain(standing / "checkpoints" / "last.ckpt"))
    assert all(torch.equal(value, second[name]) for name, value in given.items())
    assert not torch.equal(first["heads.0.weight"], given["heads.0.weight"])
    learning = fit("phantom_3d.yaml", tiny_stores, tmp_path / "b", *SETTINGS, *words, epochs=1)
    _, second = sibling_states(load_plain(learning / "checkpoints" / "last.ckpt"))
    assert all(not torch.equal(value, second[name]) for name, value in given.items() if name.endswith("weight"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--init_siblings", "[1]"], "name a checkpoint there, too"),
        (["--init", "IMPORTED", "--init_siblings", "[3]"], "init_siblings is [3]; expected some of [1, 2]"),
        (["--ckpt_path", "IMPORTED"], "no training to go on with; start from it with --init"),
        (["--init", "IMPORTED", "--model.network.init_args.output_bias", "false"], "its output_bias is True"),
    ],
)
def test_mistakes_of_starting_are_answered(
    words: list[str],
    message: str,
    imported: Path,
    tiny_stores: TinyStores,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    given = [str(imported) if word == "IMPORTED" else word for word in words]
    assert main(fit_words("phantom_3d.yaml", tiny_stores, tmp_path / "run", *SETTINGS, *given, epochs=1)) == 2
    assert message in capsys.readouterr().err


def test_heads_start_anew_where_the_labels_are_others(
    imported: Path, tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dataset = imported.parent / "model" / "dataset.json"
    content = json.loads(dataset.read_text())
    content["labels"] = {("other " if label else "") + name: label for name, label in content["labels"].items()}
    other = tmp_path / "model"
    shutil.copytree(imported.parent / "model", other)
    (other / "dataset.json").write_text(json.dumps(content))
    assert main(["import", str(other), str(tmp_path / "other.ckpt"), "--from", "nnunet"]) == 0
    words = ["--init", tmp_path / "other.ckpt"]
    run = fit("phantom_3d.yaml", tiny_stores, tmp_path / "run", *SETTINGS, *STANDING, *words, epochs=1)
    first = sibling_states(load_plain(run / "checkpoints" / "last.ckpt"))[0]
    for name, value in sibling_states(load_plain(tmp_path / "other.ckpt"))[0].items():
        if not name.startswith("heads."):
            assert torch.equal(value, first[name]), name
        elif name.endswith("weight"):
            assert not torch.equal(value, first[name]), name
