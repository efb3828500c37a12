"""``flarecps demo``: what was done stands when it is given again, and no folder of somebody else's is used."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from flarecps.cli import demo
from flarecps.cli.main import main
from flarecps.experiments import runner


def test_an_interrupted_demo_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands are pretended: each leaves its output. The training is interrupted once it has a checkpoint."""
    out = tmp_path / "out"
    outputs = {stage.words[:2]: stage.outputs for stage in demo._stages(out, "small", 0)}
    calls: list[list[str]] = []

    def pretend(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        own = [str(word) for word in words[3:]]
        calls.append(own)
        for path in outputs[tuple(own[:2])] if own[0] != "fit" else [Path(own[6]) / "checkpoints" / "last.ckpt"]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if own[0] == "fit" and len(calls) == 5:
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(runner.subprocess, "run", pretend)
    monkeypatch.setattr(demo, "_show_scores", lambda *_, **__: None)
    monkeypatch.setattr(demo, "_write_figure", lambda *_: None)
    assert main(["demo", "--out", str(out)]) == 130
    assert "the same command again goes on" in capsys.readouterr().err
    done = [words[0] for words in calls]
    assert done == ["phantom", "inspect", "plan", "preprocess", "fit"]
    calls.clear()
    assert main(["demo", "--out", str(out)]) == 0
    assert [words[0] for words in calls] == ["fit", "fit", "segment", "segment", "score", "score", "report"]
    assert calls[0][-2:] == ["--ckpt_path", "auto"]
    assert "--ckpt_path" not in calls[1]
    calls.clear()
    assert main(["demo", "--out", str(out)]) == 0
    assert not calls


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").touch()
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "not empty, and no demo's" in capsys.readouterr().err
