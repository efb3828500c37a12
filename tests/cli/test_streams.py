"""Standard streams that are closed, full, or read by nobody: sensible exit codes, no traceback, no work lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

import flarecps
from flarecps.cli.main import main
from flarecps.cli.streams import PIPE_CLOSED
from flarecps.inference.postprocessing import Rules, write_rules

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
COPY = "configs --copy phantom_2d.yaml --out OUT"


def ended(shell: str, out: Path, words: str, python: str = "") -> subprocess.CompletedProcess[str]:
    """The command with the streams that ``shell`` gives it; its exit code is bash's."""
    program = f"{sys.executable} {python} -m flarecps {words.replace('OUT', str(out))}"
    return subprocess.run(["bash", "-c", f"{program} {shell}"], capture_output=True, text=True, check=False)


@needs_full
@pytest.mark.parametrize("words", ["--help", "--version", "configs", "completion bash", "fit --help", COPY])
def test_output_on_a_full_disk_is_one_line(words: str, tmp_path: Path) -> None:
    done = ended("> /dev/full", tmp_path / "out", words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "standard output can't be written (No space left on device)" in done.stderr
    assert (tmp_path / "out").exists() == (words == COPY)  # the work itself is done


@needs_full
@pytest.mark.parametrize("shell", [">&-", "2>&-", "<&-", ">&- 2>&-", ">&- 2>&- <&-", "2> /dev/full"])
@pytest.mark.parametrize(("words", "code"), [("configs", 0), (COPY, 0), ("score a", 2), ("score", 2)])
def test_closed_streams_are_nobodys_file(shell: str, words: str, code: int, tmp_path: Path) -> None:
    done = ended(shell, tmp_path / "out", words)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    if words == COPY:
        copied = next(path for path in [tmp_path / "out", *(tmp_path / "out").glob("*")] if path.is_file())
        assert "flarecps configs" not in copied.read_text()
        assert main(["configs", "--copy", "phantom_2d.yaml", "--out", str(tmp_path / "again")]) == 0
        assert (
            copied.read_bytes()
            == next(
                path for path in [tmp_path / "again", *(tmp_path / "again").glob("*")] if path.is_file()
            ).read_bytes()
        )


@pytest.mark.parametrize("python", ["", "-u"])
@pytest.mark.parametrize("words", ["--help", "configs"])  # by print, by rich
def test_a_reader_that_goes_ends_the_command(words: str, python: str, tmp_path: Path) -> None:
    done = ended("| head -c 0; exit ${PIPESTATUS[0]}", tmp_path, words, python)
    assert (done.returncode, done.stderr) == (PIPE_CLOSED, "")


@pytest.mark.parametrize("words", ["score a\udcff b", "fit --data.store \udcff", "inspect --json=\udcff x"])
def test_names_that_are_not_utf8_are_refused_by_name(words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "\\udcff: its letters are not UTF-8; rename it" in said


def test_names_that_a_locale_has_no_letters_for_are_no_bad_names(tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-m", "flarecps", "score", "Größe", "b"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | plain)
    assert done.returncode == 2
    assert "its letters are not ASCII; set PYTHONUTF8=1" in done.stderr


def test_a_file_name_that_is_not_utf8_is_its_own_fault(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Names of files written under another encoding, as Latin-1: the other cases are done."""
    maps = tmp_path / "maps"
    maps.mkdir()
    for name in (b"a.nii.gz", b"M\xfcller.nii.gz"):
        nibabel.save(
            nibabel.Nifti1Image(np.eye(8, dtype=np.uint8)[None].repeat(8, 0), np.eye(4)), tmp_path / "m.nii.gz"
        )
        os.rename(tmp_path / "m.nii.gz", os.path.join(os.fsencode(maps), name))
    assert main(["relabel", str(maps), str(tmp_path / "new"), "--ids", "1=2", "--workers", "1"]) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.nii.gz"]
    assert "M\\udcfcller.nii.gz: the case's name is not UTF-8" in capfd.readouterr().out
    write_rules(tmp_path / "rules.json", Rules({"background": 0, "liver": 1}, largest=(1,)))
    words = ["postprocess", "apply", str(maps), str(tmp_path / "applied"), "--rules", str(tmp_path / "rules.json")]
    assert main(words) == 1
    assert [path.name for path in (tmp_path / "applied").iterdir()] == ["a.nii.gz"]
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    words = ["score", str(maps), str(maps), "--out", str(tmp_path / "scores"), "--workers", "1"]
    assert main([*words, "--labels", str(labels)]) == 0
    assert "M\\udcfcller" in (tmp_path / "scores" / "scores.csv").read_text(encoding="utf-8")
    assert "defect" not in capfd.readouterr().err


def test_a_current_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    go = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && {sys.executable} -m flarecps"
    environment = {**os.environ, "PYTHONPATH": str(Path(flarecps.__file__).parents[1])}
    words = ["bash", "-c", f"{go} segment model scan out"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert (
        done.stderr == "flarecps segment: the current folder has been removed; go to another one (cd) and try again\n"
    )


def test_messages_need_no_utf8(tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "1"}
    for words in (["--help"], ["configs"], ["score", "--help"], ["score", "größte", "maße"]):
        done = subprocess.run(
            [sys.executable, "-m", "flarecps", *words], capture_output=True, env=environment, check=False, cwd=tmp_path
        )
        assert done.returncode == (2 if words[-1] == "maße" else 0)
        assert b"Traceback" not in done.stderr
