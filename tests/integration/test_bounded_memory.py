"""Numbers in files that would decide how much memory is taken, or how often a loop runs: refused in a line, at once.

All in one process with a limit of memory, for it takes long to start.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import patient
from small_model import write_model
from stores import TinyStores

from flarecps.checkpoint import ENTRY
from flarecps.cli.main import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")

BIG = 10**9
ROOM_MB, WITHIN_S = 800, 20.0
PROGRAM = """
import json, resource, sys, time
import torch, flarecps.interop.nnunet_import, flarecps.inference.folders, flarecps.preprocessing.dataset
import flarecps.datasets.inspection, flarecps.evaluation.scores, flarecps.reporting.run_folder, flarecps.volumes.io
from flarecps.cli.main import main
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + ROOM * 2**20,) * 2)
for line in sys.stdin:
    said, began = StringIO(), time.monotonic()
    with redirect_stderr(said), redirect_stdout(said):
        code = main(json.loads(line))
    print(json.dumps([code, time.monotonic() - began, said.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def limited() -> Any:
    """A function that runs a command line in a process with little memory: its exit code, seconds, and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("ROOM", str(ROOM_MB))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def run(*words: object) -> tuple[int, float, str]:
        print(json.dumps(list(map(str, words))), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        assert answer, f"it died of {words}"
        code, seconds, said = json.loads(answer)
        return code, seconds, said

    yield run
    process.kill()
    process.wait()


def assert_refused(found: tuple[int, float, str]) -> None:
    code, seconds, said = found
    assert code in (1, 2), said
    assert seconds < patient(WITHIN_S)
    assert "Traceback" not in said
    assert "not enough memory" not in said, "it was tried"
    assert max(map(len, said.splitlines())) < 2000


def test_what_is_sound_has_room_enough(limited: Any, tiny_stores: TinyStores, tmp_path: Path) -> None:
    plan, store = tiny_stores.three / "plan.json", tmp_path / "store"
    code, _, said = limited("preprocess", tiny_stores.dataset, plan, "--out", store, "--workers", "1")
    assert code == 0, said


def stages(**lists: Any) -> Callable[[dict[str, Any]], None]:
    def change(plan: dict[str, Any]) -> None:
        count = len(plan["topology"]["features"])
        plan["topology"] |= {key: [value] * count for key, value in lists.items()}

    return change


PLANS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "patch": lambda plan: plan.update(patch_voxels=[BIG] * 3),
    "patch of many voxels": lambda plan: plan.update(patch_voxels=[8192] * 3),
    "features": stages(features=BIG),
    "kernels": stages(kernels=[BIG + 1] * 3),
    "strides": stages(strides=[BIG] * 3),
    "stages": lambda plan: plan["topology"].update(
        features=[8] * 5000, strides=[[1] * 3] * 5000, kernels=[[1] * 3] * 5000
    ),
    "batch": lambda plan: plan.update(global_batch={"labelled": BIG, "unlabelled": BIG}),
    "spacing": lambda plan: plan.update(spacing_mm=[0.001] * 3),
    "labels": lambda plan: plan.update(labels={"background": 0} | {f"organ {i}": i for i in range(1, 100_000)}),
    "an id": lambda plan: plan.update(labels={"background": 0, "organ": BIG}),
    "channels": lambda plan: plan.update(channels=["CT"] * 100_000),
}  # fmt: skip


@pytest.mark.parametrize("what", PLANS)
def test_numbers_of_a_plan(what: str, limited: Any, tiny_stores: TinyStores, tmp_path: Path) -> None:
    plan = json.loads((tiny_stores.three / "plan.json").read_text())
    PLANS[what](plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    words = ("preprocess", tiny_stores.dataset, tmp_path / "plan.json", "--out", tmp_path / "out", "--workers", "1")
    assert_refused(limited(*words))


@pytest.fixture(scope="module")
def nnunet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nnunet")
    assert main(["export", str(write_model(root / "model.ckpt")), str(root / "model"), "--to", "nnunet"]) == 0
    return root / "model"


def kwargs(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(configuration: dict[str, Any]) -> None:
        given = configuration["architecture"]["arch_kwargs"]
        for key, value in changes.items():
            given[key] = [value] * len(given[key]) if isinstance(given[key], list) else value

    return change


NNUNET: dict[str, Callable[[dict[str, Any]], Any]] = {
    "patch": lambda one: one.update(patch_size=[BIG] * 3),
    "stages": kwargs(n_stages=BIG),
    "features": kwargs(features_per_stage=BIG),
    "features that pass": kwargs(features_per_stage=4096),
    "kernels": kwargs(kernel_sizes=[BIG] * 3),
    "kernels that pass": kwargs(kernel_sizes=[63] * 3),
    "strides": kwargs(strides=[BIG] * 3),
    "convolutions": kwargs(n_conv_per_stage=BIG, n_conv_per_stage_decoder=BIG),
    "batch": lambda one: one.update(batch_size=10**18),
    "itself": lambda one: one.update(inherits_from="3d_fullres"),
}


@pytest.mark.parametrize("what", NNUNET)
def test_numbers_of_nnunets_plans(what: str, limited: Any, nnunet: Path, tmp_path: Path) -> None:
    model = shutil.copytree(nnunet, tmp_path / "model")
    plans = json.loads((model / "plans.json").read_text())
    NNUNET[what](plans["configurations"]["3d_fullres"])
    (model / "plans.json").write_text(json.dumps(plans))
    assert_refused(limited("import", model, tmp_path / "out.ckpt", "--from", "nnunet"))
    assert not (tmp_path / "out.ckpt").exists()


@pytest.mark.parametrize(
    "entry",
    [
        {"labels": {"background": 0, "organ": BIG}},
        {"labels": {"background": 0} | {f"organ {i}": i for i in range(1, 50_000)}},
        {"channel_names": {str(i): "CT" for i in range(50_000)}},
        {"channel_names": {str(BIG): "CT"}},
    ],
    ids=["an id", "labels", "channels", "a channel"],
)
def test_numbers_of_a_data_sets_description(
    entry: dict[str, Any], limited: Any, nnunet: Path, tiny_stores: TinyStores, tmp_path: Path
) -> None:
    model = shutil.copytree(nnunet, tmp_path / "model")
    data = shutil.copytree(tiny_stores.dataset, tmp_path / "data")
    for path in (model / "dataset.json", data / "dataset.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | entry))
    assert_refused(limited("import", model, tmp_path / "out.ckpt", "--from", "nnunet"))
    assert_refused(limited("plan", data, "--out", tmp_path / "plan.json", "--workers", "1"))
    assert_refused(limited("inspect", data, "--workers", "1"))


def deflated(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/version", b"3\n")
        with archive.open("archive/data.pkl", "w", force_zip64=True) as file:
            for _ in range(300):
                file.write(content)


MODELS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "siblings": lambda held: held[ENTRY].update(siblings=BIG),
    "features": lambda held: held[ENTRY]["network"]["arguments"].update(features=[4096, 4096]),
    "classes": lambda held: held[ENTRY]["network"]["arguments"].update(classes=BIG),
    "networks": lambda held: held[ENTRY].update(inference_networks=["siblings.0."] * 10**6),
    "patch": lambda held: held[ENTRY]["plan"].update(patch_voxels=[BIG] * 3),
    "convolutions": lambda held: held[ENTRY]["network"]["arguments"].update(convolutions=BIG),
}


@pytest.mark.parametrize("what", MODELS)
def test_numbers_of_a_checkpoint(what: str, limited: Any, tmp_path: Path) -> None:
    held = torch.load(write_model(tmp_path / "model.ckpt"), weights_only=True)
    held = copy.deepcopy(held)
    MODELS[what](held)
    torch.save(held, tmp_path / "model.ckpt")
    assert_refused(limited("summary", tmp_path / "model.ckpt"))


def test_packed_checkpoints_are_not_unpacked(limited: Any, nnunet: Path, tmp_path: Path) -> None:
    """3 GB of zeros in 3 MB."""
    deflated(tmp_path / "model.ckpt", pickle.dumps(bytes(10 * 2**20)))
    assert (tmp_path / "model.ckpt").stat().st_size < 10 * 2**20
    assert_refused(limited("summary", tmp_path / "model.ckpt"))
    model = shutil.copytree(nnunet, tmp_path / "model")
    shutil.copy(tmp_path / "model.ckpt", model / "fold_0" / "checkpoint_final.pth")
    assert_refused(limited("import", model, tmp_path / "out.ckpt", "--from", "nnunet"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("record", lambda one: one.update(shape_voxels=[BIG] * 3)),
        ("record", lambda one: one["way_back"].update(network_shape=[BIG] * 3)),
        ("store", lambda one: one.update(cases=BIG)),
    ],
)
def test_numbers_of_a_store(
    name: str, change: Callable[[Any], None], limited: Any, tiny_stores: TinyStores, tmp_path: Path
) -> None:
    store = shutil.copytree(tiny_stores.three, tmp_path / "store")
    found = sorted(store.glob("cases/*/case.json")) if name == "record" else [store / "store.json"]
    for path in found:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    words = ("preprocess", tiny_stores.dataset, store / "plan.json", "--out", store, "--workers", "1", "--verify")
    _, seconds, said = limited(*words)
    assert seconds < patient(WITHIN_S)
    assert "Traceback" not in said
    assert "not enough memory" not in said
