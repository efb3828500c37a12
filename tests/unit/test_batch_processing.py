"""Many cases at once: order, kept errors, killed workers, shards, progress lines."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
from patience import patient

from flarecps import batch_processing
from flarecps.batch_processing import Outcome, PerProcess, process_cases, progress_bar, shard
from flarecps.errors import ConfigError, ScanError


def double(number: int) -> int:
    time.sleep(0.02 * (3 - number % 4))  # later cases end first
    return 2 * number


def fail_on_some(number: int) -> int:
    if number == 1:
        raise ScanError("scan.nii.gz: truncated:\n  copy it again")
    if number == 2:
        raise OSError(28, "No space left on device")
    if number == 3:
        raise MemoryError
    if number == 4:
        return {}["no such key"]
    return number


def die_on_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return number


def always_die(_: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def threads(_: int) -> tuple[str | None, str | None]:
    return os.environ.get("OMP_NUM_THREADS"), os.environ.get("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


def numbered(count: int) -> list[tuple[str, int]]:
    return [(f"case_{number}", number) for number in range(count)]


@pytest.mark.parametrize("workers", [1, 2])
def test_values_can_be_taken_as_they_come_and_are_not_kept(workers: int) -> None:
    taken: dict[str, int] = {}
    outcomes = process_cases(fail_on_some, numbered(6), workers, progress=False, received=taken.__setitem__)
    assert taken == {"case_0": 0, "case_5": 5}
    assert all(outcome.value is None for outcome in outcomes)
    assert [outcome.failed for outcome in outcomes] == [False, True, True, True, True, False]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_outcomes_come_in_the_order_of_the_cases(workers: int) -> None:
    outcomes = process_cases(double, numbered(5), workers, "Doubling", progress=False)
    assert outcomes == [Outcome(f"case_{number}", 2 * number, None) for number in range(5)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_case_keeps_its_error_in_one_line_and_the_others_go_on(workers: int) -> None:
    outcomes = process_cases(fail_on_some, numbered(6), workers, progress=False)
    assert [outcome.failed for outcome in outcomes] == [False, True, True, True, True, False]
    assert outcomes[1].error == "scan.nii.gz: truncated: copy it again"
    assert outcomes[2].error is not None
    assert "No space left" in outcomes[2].error
    assert outcomes[3].error is not None
    assert "memory" in outcomes[3].error
    assert outcomes[4].error is not None
    assert outcomes[4].error.startswith("KeyError: 'no such key' (in test_batch_processing.py, line ")
    assert outcomes[5].value == 5


def test_a_case_that_kills_its_worker_is_named_and_its_neighbours_survive() -> None:
    outcomes = process_cases(die_on_three, numbered(6), 2, progress=False)
    assert [outcome.name for outcome in outcomes if outcome.failed] == ["case_3"]
    assert outcomes[3].error == batch_processing.KILLED
    assert [outcome.value for outcome in outcomes] == [0, 1, 2, None, 4, 5]


def test_workers_that_all_die_at_once_end_the_work() -> None:
    outcomes = process_cases(always_die, numbered(8), 2, progress=False)
    errors = [outcome.error for outcome in outcomes]
    assert errors.count(batch_processing.KILLED) == batch_processing.DEATHS_BEFORE_GIVING_UP
    assert errors.count(batch_processing.NOT_TRIED) == 8 - batch_processing.DEATHS_BEFORE_GIVING_UP


def test_a_worker_that_can_not_begin_says_why_for_its_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be taken for killed, and every case be tried in a process of its own."""

    def no_room(signals: object = ()) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(batch_processing, "obey_only_the_parent", no_room)
    monkeypatch.setattr(batch_processing, "_attempt_case", None, raising=False)
    batch_processing._begin_worker(str)
    value, error = batch_processing._attempt_in_worker("case")
    assert value is None
    assert error is not None
    assert error.startswith("can't start new thread; raise the limit of processes (ulimit -u)")


def test_what_cannot_travel_between_processes_is_an_error_of_the_case() -> None:
    outcomes = process_cases(lambda number: number, numbered(2), 2, progress=False)
    assert all(outcome.error and "ickl" in outcome.error for outcome in outcomes)


def test_workers_use_one_thread_each_and_the_parent_keeps_its_settings() -> None:
    before = dict(os.environ)
    outcomes = process_cases(threads, numbered(2), 2, progress=False)
    assert [outcome.value for outcome in outcomes] == [("1", "1"), ("1", "1")]
    assert dict(os.environ) == before


def test_no_cases_give_no_outcomes() -> None:
    assert process_cases(double, [], 4, progress=True) == []


def test_shards_are_a_partition() -> None:
    cases = list("abcdefghij")
    shares = [shard(cases, f"{job}/3") for job in (1, 2, 3)]
    assert sorted(case for share in shares for case in share) == cases
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert shard(cases, None) == cases
    assert shard(cases, "1/1") == cases


@pytest.mark.parametrize("share", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "", "²/³", "1/" + "9" * 5000])
def test_a_share_that_is_none_says_what_was_expected(share: str) -> None:
    with pytest.raises(ConfigError, match="expected I/N"):
        shard(["a"], share)


def test_away_from_a_terminal_progress_is_a_line_per_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(batch_processing, "PLAIN_LINE_SECONDS", (0.0, 30.0))
    with progress_bar("Reading", 40) as advance:
        for _ in range(40):
            advance()
    lines = said.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("Reading: 4 of 40 cases, ")
    assert lines[0].endswith(" left")
    assert lines[-1].startswith("Reading: 40 of 40 cases, in ")


def test_short_work_is_one_line_away_from_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    with progress_bar("Reading", 40) as advance:
        for _ in range(40):
            advance()
    assert said.getvalue().splitlines() == [said.getvalue().rstrip("\n")]
    assert said.getvalue().startswith("Reading: 40 of 40 cases, in ")


def test_progress_can_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    process_cases(fail_on_some, numbered(6), 1, progress=False)
    assert said.getvalue() == ""


def test_the_rate_is_said_per_second_or_per_case(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 20.0, 20.0])
    monkeypatch.setattr(batch_processing.time, "monotonic", lambda: next(clock))
    rate = batch_processing._Rate("Segmenting", 12, "case")
    rate.done = 2
    assert rate.rate_and_rest() == "10.0 s/case, 1:40 left"
    rate.done = 100
    rate.total = 36_300
    assert rate.rate_and_rest() == "5.0 cases/s, 2:00:40 left"


def _say_where_and_wait(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(300)


def test_workers_end_when_their_parent_is_killed_outright(tmp_path: Path) -> None:
    program = (
        "import os, sys; sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]\n"
        "from test_batch_processing import _say_where_and_wait\n"
        "from flarecps.batch_processing import PerProcess, process_cases\n"
        "if __name__ == '__main__':\n"
        "    process_cases(_say_where_and_wait, [(name, sys.argv[2]) for name in 'ab'], 2, progress=False)\n"
    )
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "workers").mkdir()
    words = [sys.executable, str(tmp_path / "program.py"), str(Path(__file__).parent), str(tmp_path / "workers")]
    with subprocess.Popen(words) as parent:
        started = time.monotonic()
        while len(list((tmp_path / "workers").iterdir())) < 2:
            assert time.monotonic() - started < 60
            time.sleep(0.05)
        workers = [psutil.Process(int(path.name)) for path in (tmp_path / "workers").iterdir()]
        parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=30)
    for process in alive:
        process.kill()
    assert not alive


def _die_beside_a_stopped_worker(task: tuple[str, Path]) -> str:
    name, folder = task
    other = folder / "other"
    if name == "other" and not other.exists():
        (folder / "new").write_text(str(os.getpid()))
        (folder / "new").rename(other)
        time.sleep(300)
    elif name == "one" and not (folder / "one").exists():
        while not other.exists():
            time.sleep(0.01)
        (folder / "one").touch()
        os.kill(int(other.read_text()), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGKILL)
    return name


@pytest.mark.skipif(os.name == "nt", reason="Windows stops no process")
def test_a_stopped_worker_beside_one_that_died_is_not_waited_for(tmp_path: Path) -> None:
    found: list[Outcome[str]] = []
    tasks = [(name, (name, tmp_path)) for name in ("one", "other")]
    run = partial(process_cases, _die_beside_a_stopped_worker, tasks, 2, progress=False)
    work = threading.Thread(target=lambda: found.extend(run()), daemon=True)
    work.start()
    work.join(patient(60))
    assert [outcome.value for outcome in found] == ["one", "other"]


def _die_while_sending(number: int) -> bytes:
    """Of the result of case 1, which a pipe does not hold, a part is sent."""

    def send(self: Connection, content: bytes) -> None:
        os.write(self.fileno(), content[: 2**15])  # its length comes first, alone
        if len(content) > 2**15:
            os.kill(os.getpid(), signal.SIGKILL)

    if number == 1:
        Connection._send = send  # type: ignore[attr-defined]
    return bytes(2**18)


@pytest.mark.skipif(os.name == "nt", reason="pipes of another kind")
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_worker_killed_while_it_sends_its_result_leaves_nobody_reading(interrupted: bool) -> None:
    before = set(threading.enumerate())
    found: list[Outcome[bytes]] = []

    def received(name: str, value: bytes) -> None:
        if interrupted:
            time.sleep(2.0)  # meanwhile the other has died
            raise KeyboardInterrupt

    def run() -> None:
        with suppress(KeyboardInterrupt):
            found.extend(process_cases(_die_while_sending, numbered(3), 2, progress=False, received=received))

    work = threading.Thread(target=run, daemon=True)
    work.start()
    work.join(patient(60))
    assert [outcome.error for outcome in found] == ([] if interrupted else [None, batch_processing.KILLED, None])
    started = time.monotonic()
    while left := set(threading.enumerate()) - before:  # Python itself would wait for them at its end
        assert time.monotonic() - started < patient(20), left
        time.sleep(0.05)


class _Counted:
    """Made once in each process: the cases it was given know how many came before them there."""

    def __init__(self) -> None:
        self.before = 0

    def __call__(self, number: int) -> tuple[int, int]:
        self.before += 1
        return os.getpid(), self.before


def _refuse() -> _Counted:
    raise ConfigError("no such model")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_function_may_be_made_once_in_every_process(workers: int) -> None:
    outcomes = process_cases(PerProcess(_Counted), numbered(6), workers, progress=False)
    counts: dict[int, list[int]] = {}
    for outcome in outcomes:
        assert outcome.value is not None
        counts.setdefault(outcome.value[0], []).append(outcome.value[1])
    assert len(counts) <= workers
    assert all(sorted(seen) == list(range(1, 1 + len(seen))) for seen in counts.values())
    refused = process_cases(PerProcess(_refuse), numbered(3), workers, progress=False)
    assert [outcome.error for outcome in refused] == ["no such model"] * 3
