"""Stages with records: done once, in order, continued after a kill, made anew when what they come from changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from flarecps.cli.stages import Ledger, Stage, chosen, do_stage, only_run
from flarecps.errors import ConfigError, FlarecpsError


def three(out: Path, word: str = "a") -> list[Stage]:
    """Three stages in a row; the second is precious."""
    return [
        Stage("first", ("first", word), (out / "first",)),
        Stage("second", ("second",), (out / "second",), ("first",), precious=True),
        Stage("third", ("third",), (out / "third",), ("second",)),
    ]


def work(ledger: Ledger, done: list[str]) -> None:
    """Do what is to be done; every command leaves a file of its own name."""

    def run(words: Sequence[str]) -> int:
        done.append(words[0])
        (ledger.folder.parent / words[0]).write_text(" ".join(words))
        return 0

    for stage in ledger.stages.values():
        if ledger.state(stage) != "done":
            assert not ledger.missing_before(stage)
            do_stage(ledger, stage, run)


def test_each_stage_is_done_once(tmp_path: Path) -> None:
    done: list[str] = []
    work(Ledger(three(tmp_path), tmp_path / "stages"), done)
    work(Ledger(three(tmp_path), tmp_path / "stages"), done)
    assert done == ["first", "second", "third"]
    (tmp_path / "third").unlink()  # a result that is gone is made again
    work(Ledger(three(tmp_path), tmp_path / "stages"), done)
    assert done == ["first", "second", "third", "third"]


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_command_stages import three\n"
        "from flarecps.cli.stages import Ledger, do_stage\n"
        "out = Path(sys.argv[1])\n"
        "ledger = Ledger(three(out), out / 'stages')\n"
        "def run(words):\n"
        "    if words[0] == 'second':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    (out / words[0]).touch()\n"
        "    return 0\n"
        "for stage in ledger.stages.values():\n"
        "    do_stage(ledger, stage, run)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    ledger, done = Ledger(three(tmp_path), tmp_path / "stages"), []
    assert [ledger.state(stage) for stage in ledger.stages.values()] == ["done", "to do", "to do"]
    work(ledger, done)
    assert done == ["second", "third"]
    assert len(ledger.record(ledger.stages["second"])["starts"]) == 2


def test_other_words_make_what_follows_anew_but_nothing_precious(tmp_path: Path) -> None:
    done: list[str] = []
    work(Ledger(three(tmp_path), tmp_path / "stages"), done)
    other = Ledger(three(tmp_path, "b"), tmp_path / "stages")
    assert [other.state(stage) for stage in other.stages.values()] == ["to do"] * 3
    with pytest.raises(ConfigError, match="not overwritten"):
        work(other, done)
    assert done == ["first", "second", "third", "first"]
    assert (tmp_path / "first").read_text() == "first b"
    (tmp_path / "second").unlink()
    work(other, done)
    assert done[4:] == ["second", "third"]


def test_a_moved_folder_is_still_done_and_another_config_is_not(tmp_path: Path) -> None:
    def train(out: Path, config: str) -> Stage:
        return Stage("train", ("fit", "--out", str(out / "run")), (out / "run",), made_from=config)

    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    do_stage(
        Ledger([train(first, "a")], first / "stages"), train(first, "a"), lambda words: (first / "run").touch() or 0
    )
    first.rename(second)
    assert Ledger([train(second, "a")], second / "stages").state(train(second, "a")) == "done"
    assert Ledger([train(second, "b")], second / "stages").state(train(second, "b")) == "to do"


def test_a_failing_command_is_named_and_done_again(tmp_path: Path) -> None:
    ledger = Ledger(three(tmp_path), tmp_path / "stages")
    with pytest.raises(FlarecpsError, match=r"stage 'first' ended with exit code 3.*--without first"):
        do_stage(ledger, ledger.stages["first"], lambda words: 3)
    assert ledger.state(ledger.stages["first"]) == "to do"


def test_an_interrupted_training_gets_more_words(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    stage = Stage("train", ("fit",), (last,), more_when=(last, ("--ckpt_path", "last")), precious=True)
    ledger, said = Ledger([stage], tmp_path / "stages"), []

    def interrupted(words: Sequence[str]) -> int:
        said.append(list(words))
        last.touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do_stage(ledger, stage, interrupted)
    do_stage(ledger, stage, lambda words: said.append(list(words)) or 0)
    assert said == [["fit"], ["fit", "--ckpt_path", "last"]]
    assert ledger.state(stage) == "done"


def test_stages_are_chosen_by_name(tmp_path: Path) -> None:
    stages = three(tmp_path)
    assert [one.name for one in chosen(stages, ["f*", "third"], None)] == ["first", "third"]
    assert [one.name for one in chosen(stages, None, ["sec*"])] == ["first", "third"]
    with pytest.raises(ConfigError, match="no stage 'fourth'; stages: first, second, third"):
        chosen(stages, ["fourth"], None)


def test_two_runs_do_not_meet_even_when_the_first_was_killed(tmp_path: Path) -> None:
    """The process of a stage holds the lock as long as it lives."""
    with only_run(tmp_path) as descriptor:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(descriptor,))
    try:
        with pytest.raises(ConfigError, match="a run is at work here"), only_run(tmp_path):
            pass
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            with only_run(tmp_path):
                return
        except ConfigError:
            time.sleep(0.05)
    pytest.fail("the lock outlived all its holders")
