"""Places where nothing can be made: files in the way, links to themselves, endless names. One line from each."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folders import make_data, make_run
from small_model import write_model, write_scan
from stores import TinyStores, fit_words

from flarecps.cli.main import main
from flarecps.errors import refusal
from flarecps.inference.postprocessing import Rules, write_rules
from flarecps.planning.plan import read_plan


@pytest.fixture(scope="module")
def places(tiny_stores: TinyStores, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("places")
    make_data(root / "data")
    for name in ("one", "two"):
        make_run(root / name, 2, 0.1)
    write_rules(root / "rules.json", Rules({"background": 0, "liver": 1}, largest=(1,)))
    model = write_model(root / "model.ckpt")
    for kind, source in (("images", "imagesTr"), ("labels", "labelsTr")):
        shutil.copytree(tiny_stores.dataset / source, root / "plain" / kind)
    assert main(["convert", str(root / "plain")]) == 0
    assert main(["export", str(model), str(root / "nnunet"), "--to", "nnunet"]) == 0
    return {
        "TEACHER": write_model(root / "teacher.ckpt", plan=read_plan(tiny_stores.three / "plan.json")),
        "STORE": tiny_stores.three, "MODEL": model, "SCAN": write_scan(root / "scan.nii.gz"),
        "NNUNET": root / "nnunet", "PLAIN": root / "plain",
        "RULES": root / "rules.json",
        "DATA": tiny_stores.dataset, "PLAN": tiny_stores.three / "plan.json",
        "RUN": root / "one", "LABELS": tiny_stores.dataset / "labelsTr", "SCORES": root / "one" / "scores",
        "TRUTH": tiny_stores.dataset / "labelsTr",
    }  # fmt: skip


COMMANDS = (
    "phantom OUT --labelled 1 --unlabelled 0 --test 0 --workers 1",
    "inspect DATA --json OUT.json --workers 1",
    "inspect DATA --html OUT.html --workers 1",
    "inspect DATA --annotated OUT.json --workers 1",
    "relabel LABELS OUT --ids 1=2 --workers 1",
    "plan DATA --out OUT.json --workers 1",
    "plan DATA --out PLAIN.json --fingerprints OUT --workers 1",
    "preprocess DATA PLAN --out OUT --workers 1",
    "segment MODEL SCAN OUT --device cpu",
    "segment MODEL SCAN OUT.nii.gz --device cpu",
    "pseudo-label TEACHER STORE OUT --device cpu",
    "pseudo-label TEACHER STORE OUT --device cpu --teacher-store STORE",
    "plan DATA --out OUT.json --student --max-seconds 100 --device cpu --workers 1",
    "postprocess determine LABELS TRUTH --out OUT.json",
    "postprocess apply LABELS OUT --rules RULES",
    "score LABELS TRUTH --out OUT --workers 1",
    "compare SCORES --out OUT",
    "figures LABELS --references TRUTH --out OUT --workers 1",
    "report RUN --out OUT.html",
    "package MODEL OUT",
    "export MODEL OUT --to nnunet",
    "export MODEL OUT.onnx --to onnx",
    "import NNUNET OUT.ckpt --from nnunet",
    "convert PLAIN OUT",
    "configs --copy phantom_2d.yaml --out OUT",
    "efficiency --out OUT -- true",
    "demo --out OUT --size small",
    "demo --out OUT --real DATA",
    "study DATA --out OUT --workers 1",
)


def in_the_way(where: Path) -> Path:
    where.write_text("a file")
    return where


def below_a_file(where: Path) -> Path:
    where.write_text("a file")
    return where / "below"


def link_to_itself(where: Path) -> Path:
    where.symlink_to(where)
    return where / "below"


def endless_name(where: Path) -> Path:
    return where.with_name("x" * 300)


FAULTS = (in_the_way, below_a_file, link_to_itself, endless_name)


def called(words: str, out: Path, places: dict[str, Path], plain: Path) -> int:
    known = {name: str(path) for name, path in places.items()} | {"PLAIN.json": str(plain)}
    return main([str(out) if word.startswith("OUT") else known.get(word, word) for word in words.split()])


def assert_one_line(code: int, said: str) -> None:
    assert code in (1, 2), said
    assert "Traceback" not in said
    assert "defect" not in said
    assert "Error:" not in said


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize(
    "fault", [in_the_way, below_a_file, link_to_itself, endless_name], ids=lambda one: one.__name__
)
def test_where_nothing_can_be_made(
    words: str,
    fault: Callable[[Path], Path],
    places: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A folder is in the way of what is to be a file, a file of what is to be a folder."""
    wanted = next(word for word in words.split() if word.startswith("OUT"))
    suffix = wanted.removeprefix("OUT")
    if fault is in_the_way and suffix:
        out = tmp_path / f"out{suffix}"
        (out / "inside").mkdir(parents=True)
    else:
        out = fault(tmp_path / "out")
        out = out.with_name(out.name + suffix)
    before = {path: path.is_dir() or path.is_symlink() or path.read_bytes() for path in tmp_path.rglob("*")}
    code = called(words, out, places, tmp_path / "p.json")
    told = capfd.readouterr()
    if code == 0:
        assert fault is in_the_way
        assert suffix, "a folder, in which the file was made by its usual name"
        return
    assert_one_line(code, told.err + told.out)
    place = (out.name if fault is endless_name else str(tmp_path / "out"))[:90]
    assert [line for line in (told.err + told.out).splitlines() if place in line], told.err
    for path, content in before.items():
        assert content == (path.is_dir() or path.is_symlink() or path.read_bytes()), path


NUMBERS = (
    errno.ENOTDIR, errno.ENAMETOOLONG, errno.EISDIR, errno.ELOOP, errno.EROFS, errno.EDQUOT, errno.ENOSPC, errno.EACCES,
    errno.EMFILE, errno.ESTALE, errno.EIO, errno.ENOENT, errno.EPERM, errno.ENFILE,
)  # fmt: skip


@pytest.mark.parametrize("words", [one for one in COMMANDS if not one.startswith(("phantom", "demo", "study"))])
def test_folders_that_the_machine_refuses(
    words: str,
    places: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the number, of any folder or file within the place that was named."""
    mkdir, open_file = os.mkdir, os.open
    number = NUMBERS[COMMANDS.index(words) % len(NUMBERS)]
    refused = tmp_path / "new"

    def refuse(path: Any, how: Callable[..., Any], *args: Any, **more: Any) -> Any:
        if isinstance(path, str | os.PathLike) and str(path).startswith(str(refused)):
            raise OSError(number, os.strerror(number), str(path))
        return how(path, *args, **more)

    monkeypatch.setattr(os, "mkdir", lambda path, *args, **more: refuse(path, mkdir, *args, **more))
    monkeypatch.setattr(os, "open", lambda path, *args, **more: refuse(path, open_file, *args, **more))
    wanted = next(word for word in words.split() if word.startswith("OUT"))
    out = refused / f"out{wanted.removeprefix('OUT')}"
    code = called(words, out, places, tmp_path / "p.json")
    told = capfd.readouterr()
    assert_one_line(code, told.err + told.out)
    assert os.strerror(number) in told.err + told.out
    assert not refused.exists()


@pytest.mark.parametrize("number", NUMBERS)
def test_every_number_has_a_cure(number: int) -> None:
    said = refusal(OSError(number, os.strerror(number), "/scans/store"))
    assert said is not None
    assert said.startswith(f"/scans/store: {os.strerror(number)}; ")


def test_fit_in_a_place_where_nothing_can_be_made(
    tiny_stores: TinyStores, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, fault in enumerate(FAULTS):
        run = fault(tmp_path / f"run{number}")
        code = main(fit_words("phantom_2d.yaml", tiny_stores, run, epochs=1))
        assert_one_line(code, capfd.readouterr().err)
        assert code == 2


def test_pseudo_labels_never_lie_in_their_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pseudo-label", "teacher.ckpt", str(tmp_path), str(tmp_path / "cases" / "x")]) == 2
    assert "lies in the case store" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
