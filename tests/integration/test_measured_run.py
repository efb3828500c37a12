"""Meters around processes of known behaviour.

The machine that runs the tests may be busy, so figures are compared with what the measured processes say of
themselves (their own clocks, processor time, resident memory), not with what an idle machine would show; that is
benchmarks/efficiency/known.py.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flarecps.errors import ConfigError
from flarecps.evaluation.efficiency import figures_row, flare_figures, true_figures
from flarecps.evaluation.measured_run import MeasuredRun, run_measured

BURN = """
import os, resource, sys, time
while time.process_time() < float(sys.argv[1]):
    pass
"""


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-S", "-c", code, *words]


def figure(run: MeasuredRun, name: str) -> float:
    value = true_figures(run.trace)[name]
    assert value is not None
    return value


def test_the_time_lies_between_the_commands_own_and_ours(tmp_path: Path) -> None:
    """One monotonic clock for all processes: ours includes the start-up, nothing else."""
    code = """
import sys, time
began = time.perf_counter()
time.sleep(0.5)
open(sys.argv[1], "w").write(f"{began} {time.perf_counter()}")
"""
    began = time.perf_counter()
    run = run_measured(python(code, str(tmp_path / "times")))
    ours = time.perf_counter() - began
    inner_began, inner_ended = map(float, (tmp_path / "times").read_text().split())
    assert inner_ended - inner_began <= run.trace.duration_s <= ours
    assert flare_figures(run.trace)["Time"] == pytest.approx(run.trace.duration_s, abs=0.0051)
    assert (run.exit_code, run.left, run.interrupted) == (0, (), False)


def test_processor_time_of_a_command_and_two_children_at_once() -> None:
    """Three processes burn 0.4 s each by their own count; interpreters take a little more to start and stop."""
    code = f"""
import subprocess, sys
burn = {BURN!r}
children = [subprocess.Popen([sys.executable, "-S", "-c", burn, "0.4"]) for _ in range(2)]
sys.argv[1:] = ["0.4"]
exec(burn)
for child in children:
    child.wait()
"""
    run = run_measured(python(code))
    assert figure(run, "tree_cpu_s") == pytest.approx(1.2, rel=0.05, abs=0.15)
    # the area over time is the same quantity, as a share of all cores
    cores = psutil.cpu_count() or 1
    assert figure(run, "tree_cpu_percent_s") == pytest.approx(100 * figure(run, "tree_cpu_s") / cores, rel=1e-6)


def test_children_that_live_between_two_samples_are_counted() -> None:
    """Six short processes, none of which is ever seen: their parent waited for them, and the system kept count."""
    before = os.times()
    word = " ".join(python(BURN, "0.1")[:2])
    run = run_measured(["sh", "-c", f'for i in 1 2 3 4 5 6; do {word} -c "$0" 0.1; done', BURN], interval_s=60.0)
    after = os.times()
    kept = after.children_user + after.children_system - before.children_user - before.children_system
    assert figure(run, "tree_cpu_s") == pytest.approx(kept, abs=0.03)  # counted in hundredths
    assert figure(run, "tree_cpu_s") > 6 * 0.1
    assert len(run.trace.time_s) == 2  # before the start and at the end


def test_memory_held_is_what_the_process_says_it_holds(tmp_path: Path) -> None:
    """400 MB, touched and held until it has been there for a second; the process notes its own resident size."""
    code = """
import sys, time
held = bytearray(400 * 2**20)
held[::4096] = b"x" * len(held[::4096])
pages = int(open("/proc/self/statm").read().split()[1])
open(sys.argv[1], "w").write(str(pages))
time.sleep(1.0)
"""
    run = run_measured(python(code, str(tmp_path / "pages")))
    said_mb = int((tmp_path / "pages").read_text()) * os.sysconf("SC_PAGE_SIZE") / 2**20
    assert said_mb > 400
    assert figure(run, "tree_ram_mb_max") == pytest.approx(said_mb, rel=0.05)


def test_memory_of_parent_and_child_adds_up(tmp_path: Path) -> None:
    code = """
import subprocess, sys, time
held = bytearray(100 * 2**20); held[::4096] = b"x" * len(held[::4096])
if len(sys.argv) == 2:
    child = subprocess.Popen([sys.executable, "-S", "-c", open(sys.argv[1]).read()])
    child.wait()
else:
    time.sleep(1.0)
"""
    (tmp_path / "code.py").write_text(code)
    run = run_measured(python(code, str(tmp_path / "code.py")))
    assert 200 < figure(run, "tree_ram_mb_max") < 240  # and two interpreters of some 10 MB


@pytest.mark.parametrize("code", [0, 1, 42])
def test_the_exit_code_is_the_commands(code: int) -> None:
    assert run_measured(["sh", "-c", f"exit {code}"]).exit_code == code


def test_a_signals_exit_code_is_the_shells() -> None:
    assert run_measured(["sh", "-c", "kill -TERM $$"]).exit_code == 128 + signal.SIGTERM


def test_a_command_shorter_than_a_tick_has_all_figures() -> None:
    row = figures_row("short", run_measured(["true"]).trace, 0)
    assert row["Name"] == "short"
    assert row["samples"] == 1


def test_a_child_that_outlives_its_parent_is_named_and_left_alone() -> None:
    run = run_measured(["sh", "-c", "sleep 30 & exit 0"])
    (left,) = run.left
    assert left.startswith("sleep (")
    orphan = psutil.Process(int(left.removeprefix("sleep (").removesuffix(")")))
    assert orphan.is_running()
    orphan.kill()
    orphan.wait(timeout=10)


def test_orphans_stay_in_the_tree_while_the_command_runs(tmp_path: Path) -> None:
    """The middle process ends at once; what its child burns belongs to the command all the same."""
    done = tmp_path / "done"
    burn = BURN.replace("sys.argv[1]", "'0.5'") + f"open({str(done)!r}, 'w').close()"
    middle = f"import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {burn!r}])"
    code = f"""
import os, subprocess, sys, time
subprocess.run([sys.executable, "-S", "-c", {middle!r}])
while not os.path.exists({str(done)!r}):
    time.sleep(0.05)
time.sleep(0.5)
"""
    run = run_measured(python(code))
    assert figure(run, "tree_cpu_s") == pytest.approx(0.55, abs=0.12)
    assert run.left == ()


def test_what_cannot_be_started_is_explained(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("echo x")
    with pytest.raises(ConfigError, match=r"no such program.*-- sh -c 'nosuch \| wc'"):
        run_measured(["nosuch", "|", "wc"])
    with pytest.raises(ConfigError, match="not a program that may be run"):
        run_measured([str(tmp_path / "script")])
    (tmp_path / "script").chmod(0o755)
    with pytest.raises(ConfigError, match="expected a program or a script with a #! line"):
        run_measured([str(tmp_path / "script")])
    with pytest.raises(ConfigError, match="write it after two dashes"):
        run_measured([])


def test_no_adoption_remains_and_other_children_are_not_counted() -> None:
    """A process of ours that burns beside the command is none of its tree."""
    other = subprocess.Popen(python(BURN, "0.6"))
    run = run_measured(["sleep", "0.3"])
    assert figure(run, "tree_cpu_s") < 0.1
    assert other.wait() == 0


def measuring(*command: str) -> subprocess.Popen[str]:
    """`flarecps efficiency -- COMMAND` as a process of its own, without a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "flarecps", "efficiency", "--", *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_goes_on_and_nothing_is_left(number: signal.Signals, code: int) -> None:
    """A shell that waits for its child: both end, by the signal that was sent to the meter."""
    outer = measuring("sh", "-c", "echo started $$; sleep 60; echo never")
    assert outer.stdout is not None
    shell = psutil.Process(int(outer.stdout.readline().split()[1]))
    while [child.name() for child in shell.children()] != ["sleep"]:  # before, it is a shell that forgets the signal
        time.sleep(0.02)
    (sleeper,) = shell.children()
    time.sleep(1.0)  # until the shell waits for it
    outer.send_signal(number)
    said, problems = outer.communicate(timeout=30)
    assert outer.returncode == code, problems
    assert "never" not in said
    assert f"the command was interrupted (exit code {code})" in problems
    assert not shell.is_running()
    assert not sleeper.is_running()


def test_a_command_that_handles_the_interrupt_keeps_its_own_exit_code() -> None:
    code = """
import time
try:
    print("started", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    raise SystemExit(9)
"""
    outer = measuring(*python(code))
    assert outer.stdout is not None
    assert outer.stdout.readline() == "started\n"
    outer.send_signal(signal.SIGINT)
    outer.communicate(timeout=30)
    assert outer.returncode == 9


def test_the_keyboards_interrupt_arrives_once() -> None:
    """On a terminal Ctrl-C reaches all of the foreground: the meter must not send it a second time."""
    code = """
import signal, time
came = []
signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
print("started", flush=True)
until = time.monotonic() + 60
while not came and time.monotonic() < until:
    time.sleep(0.05)
time.sleep(1)  # for a second one
print(f"interrupts: {len(came)}.", flush=True)
raise SystemExit(5)
"""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-m", "flarecps", "efficiency", "--", *python(code)])
    shown = b""
    with suppress(OSError):  # Linux's way to say that nobody holds the other end any more
        while part := os.read(terminal, 4096):
            if b"started" in part and b"started" not in shown:
                os.write(terminal, b"\x03")
            shown += part
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert b"interrupts: 1." in shown
    assert os.waitstatus_to_exitcode(status) == 5


def test_three_signals_end_even_the_deaf() -> None:
    code = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("started", flush=True)
time.sleep(60)
"""
    outer = measuring(*python(code))
    assert outer.stdout is not None
    outer.stdout.readline()
    for _ in range(3):
        outer.send_signal(signal.SIGINT)
        time.sleep(0.5)  # signals that come together are one
    outer.communicate(timeout=30)
    assert outer.returncode == 128 + signal.SIGKILL


def test_it_works_in_a_thread_where_no_signal_can_be_had() -> None:
    found: list[MeasuredRun] = []
    thread = threading.Thread(target=lambda: found.append(run_measured(["sleep", "0.2"])))
    thread.start()
    thread.join()
    assert found[0].exit_code == 0
