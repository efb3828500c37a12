"""Stages with records: done once, in order, continued after a kill, made anew when what they come from changes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from flarecps.errors import ConfigError, FlarecpsError
from flarecps.experiments.runner import run_experiment, run_lock, run_stage
from flarecps.experiments.stages import Stage, StageRecords, select_stages


def three(out: Path, word: str = "a") -> list[Stage]:
    """Three stages in a row; the second is protected."""
    return [
        Stage("first", ("first", word), (out / "first",)),
        Stage("second", ("second",), (out / "second",), ("first",), protected=True),
        Stage("third", ("third",), (out / "third",), ("second",)),
    ]


def work(records: StageRecords, done: list[str]) -> None:
    """Do what is to be done; every command leaves a file of its own name."""

    def run(words: Sequence[str]) -> int:
        done.append(words[0])
        (records.folder.parent / words[0]).write_text(" ".join(words))
        return 0

    for stage in records.stages.values():
        if records.state(stage) != "done":
            assert not records.missing_before(stage)
            run_stage(records, stage, run)


def test_each_stage_is_done_once(tmp_path: Path) -> None:
    done: list[str] = []
    work(StageRecords(three(tmp_path), tmp_path / "stages"), done)
    work(StageRecords(three(tmp_path), tmp_path / "stages"), done)
    assert done == ["first", "second", "third"]
    (tmp_path / "third").unlink()  # a result that is gone is made again
    work(StageRecords(three(tmp_path), tmp_path / "stages"), done)
    assert done == ["first", "second", "third", "third"]


def test_any_number_of_workers_makes_the_same(tmp_path: Path) -> None:
    stages = [[Stage("first", ("first", "--workers", count, "--b", "2"), (tmp_path / "first",))] for count in "14"]
    one, four = (StageRecords(some, tmp_path / "stages") for some in stages)
    work(one, [])
    assert four.state(stages[1][0]) == "done"
    other = [Stage("first", ("first", "--workers", "1", "--b", "3"), (tmp_path / "first",))]
    assert StageRecords(other, tmp_path / "stages").state(other[0]) == "to do"


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_experiment_stages import three\n"
        "from flarecps.experiments.runner import run_stage\n"
        "from flarecps.experiments.stages import StageRecords\n"
        "out = Path(sys.argv[1])\n"
        "records = StageRecords(three(out), out / 'stages')\n"
        "def run(words):\n"
        "    if words[0] == 'second':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    (out / words[0]).touch()\n"
        "    return 0\n"
        "for stage in records.stages.values():\n"
        "    run_stage(records, stage, run)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    records, done = StageRecords(three(tmp_path), tmp_path / "stages"), []
    assert [records.state(stage) for stage in records.stages.values()] == ["done", "to do", "to do"]
    work(records, done)
    assert done == ["second", "third"]
    assert len(records.read(records.stages["second"])["starts"]) == 2


def test_other_words_make_what_follows_anew_but_nothing_protected(tmp_path: Path) -> None:
    done: list[str] = []
    work(StageRecords(three(tmp_path), tmp_path / "stages"), done)
    other = StageRecords(three(tmp_path, "b"), tmp_path / "stages")
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
        return Stage("train", ("fit", "--out", str(out / "run")), (out / "run",), depends_on=config)

    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    stage = train(first, "a")
    run_stage(StageRecords([stage], first / "stages"), stage, lambda words: (first / "run").touch() or 0)
    first.rename(second)
    assert StageRecords([train(second, "a")], second / "stages").state(train(second, "a")) == "done"
    assert StageRecords([train(second, "b")], second / "stages").state(train(second, "b")) == "to do"


def test_a_record_of_the_first_edition_still_stands(tmp_path: Path) -> None:
    """The digest is SHA-256 of a JSON list, so that it can be told without the program: [words, "", config, before]."""
    before = hashlib.sha256(b'[["plan", "OUT/plan.json"], "", "", []]').hexdigest()
    digest = hashlib.sha256(f'[["fit", "--x"], "", "lr: 1", ["{before}"]]'.encode()).hexdigest()
    stages = [
        Stage("plan", ("plan", str(tmp_path / "plan.json")), (tmp_path / "plan.json",)),
        Stage("train", ("fit", "--x"), (tmp_path / "last.ckpt",), ("plan",), depends_on="lr: 1", protected=True),
    ]
    records = StageRecords(stages, tmp_path / "stages")
    (tmp_path / "stages").mkdir()
    for name, found, output in (("plan", before, "plan.json"), ("train", digest, "last.ckpt")):
        content = {"stage": name, "state": "done", "command": "flarecps", "digest": found, "starts": ["2026-11-20"]}
        (tmp_path / "stages" / f"{name}.json").write_text(json.dumps(content))
        (tmp_path / output).touch()
    assert [records.state(stage) for stage in stages] == ["done", "done"]


def test_what_was_made_without_records_stands_when_it_says_so_itself(tmp_path: Path) -> None:
    mark = tmp_path / "trained"
    stage = Stage("train", ("fit",), is_finished=mark.is_file)
    records = StageRecords([stage], tmp_path / "stages")
    assert records.state(stage) == "to do"
    mark.touch()
    assert records.state(stage) == "done"
    records.write(stage, "started")
    assert records.state(stage) == "to do", "a record counts more"


def test_the_processor_time_of_all_starts_is_kept(tmp_path: Path) -> None:
    """A child that computes for 0.2 s and fails, then one that succeeds."""
    stage = Stage("train", ("fit",))
    records = StageRecords([stage], tmp_path / "stages")
    busy = "import sys, time\nwhile time.process_time() < 0.2: pass\nsys.exit({})"

    def run(code: int) -> int:
        return subprocess.run([sys.executable, "-c", busy.format(code)], check=False).returncode

    with pytest.raises(FlarecpsError):
        run_stage(records, stage, lambda words: run(3))
    once = records.read(stage)["cpu_s"]
    run_stage(records, stage, lambda words: run(0))
    record = records.read(stage)
    tick = 0.02  # of the clock of other processes' time
    assert once >= 0.2 - tick
    assert record["cpu_s"] >= once + 0.2 - tick
    assert record["wall_s"] >= 0.2
    assert (len(record["starts"]), record["state"]) == (2, "done")


def test_an_experiment_does_what_can_be_done_and_names_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [
        Stage("first", action=(tmp_path / "first").touch, outputs=(tmp_path / "first",), description="a file"),
        Stage("absent", ("absent",), lacking="no data"),
        Stage("third", ("third",), after=("absent",)),
        Stage("last", action=(tmp_path / "last").touch, after=("first",), description="another"),
    ]
    for said in ("first: (a file)", "first: stands"):
        with pytest.raises(ConfigError, match="stage 'absent' no data; stage 'third' needs absent first"):
            run_experiment(stages, tmp_path / "stages")
        assert said in capsys.readouterr().out
        assert (tmp_path / "last").exists()
    run_experiment(stages, tmp_path / "stages", ["first", "last"])


def test_a_failing_command_is_named_and_done_again(tmp_path: Path) -> None:
    records = StageRecords(three(tmp_path), tmp_path / "stages")
    with pytest.raises(FlarecpsError, match=r"stage 'first' ended with exit code 3.*goes on from here"):
        run_stage(records, records.stages["first"], lambda words: 3)
    assert records.state(records.stages["first"]) == "to do"


def test_an_interrupted_training_gets_more_words(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    stage = Stage("train", ("fit",), (last,), resume=(last, ("--ckpt_path", "last")), protected=True)
    records, said = StageRecords([stage], tmp_path / "stages"), []

    def interrupted(words: Sequence[str]) -> int:
        said.append(list(words))
        last.touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(records, stage, interrupted)
    run_stage(records, stage, lambda words: said.append(list(words)) or 0)
    assert said == [["fit"], ["fit", "--ckpt_path", "last"]]
    assert records.state(stage) == "done"


CHILD = """
import pathlib, signal, sys, time
def save(*_):
    print("heard", flush=True)
    time.sleep(0.7)  # longer than Python's own patience
    if sys.argv[1] == "saves":
        pathlib.Path("saved").touch()
        sys.exit(3)
signal.signal(signal.SIGINT, save)
print("ready", flush=True)
while True:
    time.sleep(60)
"""
PARENT = f"""
import os, sys
from flarecps.experiments import runner
runner.FLARECPS = (sys.executable, "-c", {CHILD!r})
try:
    runner.run_flarecps(sys.argv[1:], os.open(os.devnull, os.O_RDONLY))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("way", ["saves", "hangs"])
def test_an_interrupted_run_lets_its_command_save_what_it_has(way: str, tmp_path: Path) -> None:
    """The signal reaches this process alone, as without a terminal; a second one ends a command that does not end."""
    words = [sys.executable, "-c", PARENT, way]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.send_signal(signal.SIGINT)
        assert parent.stdout.readline() == "heard\n"
        if way == "hangs":
            parent.send_signal(signal.SIGINT)
        assert parent.communicate(timeout=60)[0] == "interrupted\n"
    assert parent.returncode == 0
    assert (tmp_path / "saved").exists() == (way == "saves")


def test_stages_are_chosen_by_name(tmp_path: Path) -> None:
    stages = three(tmp_path)
    assert [one.name for one in select_stages(stages, ["f*", "third"], None)] == ["first", "third"]
    assert [one.name for one in select_stages(stages, None, ["sec*"])] == ["first", "third"]
    with pytest.raises(ConfigError, match="no stage 'fourth'; stages: first, second, third"):
        select_stages(stages, ["fourth"], None)


def test_two_runs_do_not_meet_even_when_the_first_was_killed(tmp_path: Path) -> None:
    """The process of a stage holds the lock as long as it lives."""
    with run_lock(tmp_path) as descriptor:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(descriptor,))
    try:
        with pytest.raises(ConfigError, match="a run is at work here"), run_lock(tmp_path):
            pass
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            with run_lock(tmp_path):
                return
        except ConfigError:
            time.sleep(0.05)
    pytest.fail("the lock outlived all its holders")
