"""Many cases, one function: in parallel, with the time left in sight, and no case lost because of another.

Every folder command works through its cases here. A case that fails keeps its error and the others go on; a case
that kills its worker process (usually for want of memory) is found, named, and the others go on too.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from flarecps.durations import clock
from flarecps.errors import ConfigError, FlarecpsError, refusal
from flarecps.processes import LOOKS_S, kill, obey_only_the_parent
from flarecps.verbosity import is_quiet

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")

# One thread per worker: N workers of N threads each would fight over the same cores.
SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "BLOSC_NTHREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
}
PLAIN_LINE_SECONDS = (5.0, 30.0)  # no oftener, and no more seldom
PLAIN_LINE_SHARE = 0.1
DEATHS_BEFORE_GIVING_UP = 3  # workers that die before any case is done: the cause is not in the cases
KILLED = (
    "its worker process was killed, also when this case ran alone: usually too little memory (RAM) for this scan; "
    "free memory or use a machine with more"
)
NOT_TRIED = (
    "not tried: every worker process died at once. Too little memory (RAM), or a script that calls flarecps outside "
    "`if __name__ == '__main__':`; try with 1 worker"
)


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of one case: its value, or the one-line error that stopped it, and remarks on its scan."""

    name: str
    value: T | None
    error: str | None
    remarks: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether the case ended in an error."""
        return self.error is not None


@dataclass(frozen=True)
class PerProcess(Generic[A, T]):
    """A function that every process makes for itself, once, before its first case: one with a loaded model, say.

    ``make`` travels to worker processes; what it returns need not be able to. An error of it is every case's.
    """

    make: Callable[[], Callable[[A], T]]


def process_cases(
    function: Callable[[A], T] | PerProcess[A, T],
    cases: Sequence[tuple[str, A]],
    workers: int = 1,
    title: str = "Working",
    progress: bool = True,
    received: Callable[[str, T], None] | None = None,
) -> list[Outcome[T]]:
    """One outcome per (name, argument) of ``cases``, in their order; no exception of ``function`` gets out.

    With ``workers`` of 0 or 1, or one case, everything runs in this process. Otherwise ``function`` (once for every
    process), arguments and values travel between processes (spawned; module-level functions and plain data), and a
    case that was under way when a worker died is run a second time, alone: what ``function`` writes must therefore
    be written atomically.

    ``received`` is given name and value of every case that succeeds, in this process, as it ends; the outcomes then
    hold no values, so memory does not grow with the number of cases.
    """
    outcomes: dict[int, Outcome[T]] = {}
    with progress_bar(title, len(cases), shown=progress) as advance:

        def finish(index: int, value: T | None, error: str | None) -> None:
            name = cases[index][0]
            if received is not None and error is None:
                received(name, cast(T, value))
                value = None
            outcomes[index] = Outcome(name, value, error)
            advance()

        workers = min(workers, len(cases))
        if workers <= 1:
            attempt_case = _case_attempt(function)
            for index, (_, argument) in enumerate(cases):
                finish(index, *attempt_case(argument))
        elif cannot_travel := attempt(pickle.dumps, function)[1]:
            for index in range(len(cases)):
                finish(index, None, cannot_travel)
        else:
            _work_in_processes(function, cases, workers, finish)
    return [outcomes[index] for index in range(len(cases))]


def shard(cases: Sequence[B], share: str | None) -> list[B]:
    """The share ``"I/N"`` of ``cases`` for job I (1 to N) of a job array: every Nth case; all of them for None.

    >>> shard(["a", "b", "c", "d", "e"], "2/3")
    ['b', 'e']
    """
    if share is None:
        return list(cases)
    first, last = map(int, re.findall(r"\d+", share)) if re.fullmatch(r"\s*\d{1,9}\s*/\s*\d{1,9}\s*", share) else (0, 0)
    if not 1 <= first <= last:
        raise ConfigError(f"shard {share!r}: expected I/N with I from 1 to N, such as 1/4 … 4/4 for four jobs")
    return list(cases[first - 1 :: last])


@contextmanager
def progress_bar(title: str, total: int, unit: str = "case", shown: bool = True) -> Iterator[Callable[[], None]]:
    """A function to call after each of ``total`` steps; meanwhile a bar, the rate and the time left are shown.

    On a terminal (standard error) a live bar; elsewhere a plain line every tenth of the work, but none within 5 s of
    another, and at least one in half a minute; and one at the end.
    """
    console = Console(stderr=True)
    rate = _Rate(title, total, unit)
    if not shown or total == 0 or is_quiet():
        yield rate.step
    elif console.is_terminal and not console.is_dumb_terminal:
        named = TextColumn("{task.description}")
        with Progress(named, BarColumn(), MofNCompleteColumn(), rate, console=console) as bar:
            task = bar.add_task(title, total=total)

            def advance() -> None:
                rate.step()
                bar.advance(task)

            yield advance
    else:
        yield _plain_lines(rate)


class _Rate(ProgressColumn):
    """How many steps are done since when, in words; as a column of rich's bar, the rate and the time left."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        super().__init__()
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self.started = time.monotonic()

    def step(self) -> None:
        self.done += 1

    def rate_and_rest(self) -> str:
        elapsed = time.monotonic() - self.started
        if not self.done or not elapsed:
            return "–"
        if self.done >= self.total:
            return f"in {clock(elapsed)}"
        per_s = self.done / elapsed
        rate = f"{per_s:.1f} {self.unit}s/s" if per_s >= 1 else f"{1 / per_s:.1f} s/{self.unit}"
        return f"{rate}, {clock((self.total - self.done) / per_s)} left"

    def line(self) -> str:
        units = self.unit if self.total == 1 else f"{self.unit}s"
        return f"{self.title}: {self.done} of {self.total} {units}, {self.rate_and_rest()}"

    def render(self, task: Task) -> Text:
        return Text(self.rate_and_rest(), style="progress.remaining")


def _plain_lines(rate: _Rate) -> Callable[[], None]:
    said_at, said_share = rate.started, 0.0

    def advance() -> None:
        nonlocal said_at, said_share
        rate.step()
        now, share = time.monotonic(), rate.done / rate.total
        often, seldom = PLAIN_LINE_SECONDS
        is_due = share >= said_share + PLAIN_LINE_SHARE - 1e-9 and now - said_at >= often
        if is_due or rate.done == rate.total or now - said_at >= seldom:
            said_at, said_share = now, share
            sys.stderr.write(rate.line() + "\n")
            sys.stderr.flush()

    return advance


def attempt(function: Callable[[A], T], argument: A) -> tuple[T | None, str | None]:
    """The function's value and no error, or no value and its error in one line."""
    try:
        return function(argument), None
    except Exception as error:
        return None, _one_line(error)


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    if isinstance(error, FlarecpsError):
        return message
    if isinstance(error, MemoryError):
        return f"not enough memory (RAM) for this case: use fewer workers ({message or 'MemoryError'})"
    if refused := refusal(error):
        return refused
    kind = type(error).__name__
    if isinstance(error, OSError):
        return f"{kind}: {message}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (in {Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{kind}: {message}{place}"


def _case_attempt(function: Callable[[A], T] | PerProcess[A, T]) -> Callable[[A], tuple[T | None, str | None]]:
    """How this process attempts a case: with ``function``, or with what it makes, whose error is every case's."""
    if not isinstance(function, PerProcess):
        return partial(attempt, function)
    made, error = attempt(lambda make: make(), function.make)
    return (lambda _: (None, error)) if made is None else partial(attempt, made)


_attempt_case: Callable[[Any], tuple[Any, str | None]]  # of a worker process; set when it begins


def _begin_worker(function: Callable[[A], T] | PerProcess[A, T]) -> None:
    global _attempt_case
    _, error = attempt(obey_only_the_parent, ())  # it begins a thread, for which there may be no room
    _attempt_case = (lambda _: (None, error)) if error else _case_attempt(function)


def _attempt_in_worker(argument: A) -> tuple[Any, str | None]:
    return _attempt_case(argument)


def _work_in_processes(
    function: Callable[[A], T] | PerProcess[A, T],
    cases: Sequence[tuple[str, A]],
    workers: int,
    finish: Callable[[int, T | None, str | None], None],
) -> None:
    """Finish all cases in worker processes; those under way when one died are run again, each alone, to find which."""
    waiting = deque(range(len(cases)))
    done = deaths = 0

    def count_and_finish(index: int, value: T | None, error: str | None) -> None:
        nonlocal done
        done += 1
        finish(index, value, error)

    while waiting:
        suspects = _run_pool(function, cases, waiting, workers, count_and_finish)
        deaths_before = deaths
        for index in suspects:
            if not done and deaths >= DEATHS_BEFORE_GIVING_UP:
                waiting.append(index)
            elif _run_pool(function, cases, deque([index]), 1, count_and_finish):
                deaths += 1
                finish(index, None, KILLED)
        if not done and deaths >= DEATHS_BEFORE_GIVING_UP:
            while waiting:
                finish(waiting.popleft(), None, NOT_TRIED)
        if suspects and deaths == deaths_before:  # each fits alone, so together they were too much
            workers = max(1, workers // 2)


def _run_pool(
    function: Callable[[A], T] | PerProcess[A, T],
    cases: Sequence[tuple[str, A]],
    waiting: deque[int],
    workers: int,
    finish: Callable[[int, T | None, str | None], None],
) -> list[int]:
    """Work off ``waiting`` in a fresh pool; the cases under way if a worker died (the pool is lost then), else none."""
    under_way: dict[Future[tuple[T | None, str | None]], int] = {}
    with _single_threaded():
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_begin_worker, initargs=(function,)
        )
        others = set(multiprocessing.active_children())
        results = pool._result_queue._writer  # type: ignore[attr-defined]

        def end_workers() -> None:
            kill(set(multiprocessing.active_children()) - others)
            results.close()  # else the pool would read on what a killed worker had begun to send: it held this end, too

        try:
            while waiting or under_way:
                while waiting and len(under_way) < workers:  # no case is handed out that could not start at once
                    under_way[pool.submit(_attempt_in_worker, cases[waiting[0]][1])] = waiting[0]
                    waiting.popleft()
                ended = wait(under_way, LOOKS_S, FIRST_COMPLETED).done
                # the pool itself watches those alone that it had when it last heard of anything
                if not ended and any(one.exitcode is not None for one in list(pool._processes.values())):
                    break
                whole = [future for future in ended if not isinstance(future.exception(), BrokenProcessPool)]
                for future in whole:
                    error = future.exception()  # the worker's own errors are in its result: this one is of pickling
                    value, message = future.result() if error is None else (None, _one_line(_as_exception(error)))
                    finish(under_way.pop(future), value, message)
                if len(whole) < len(ended):
                    break
        except BrokenProcessPool:  # found broken on handing out the next case, which is still waiting
            pass
        except BaseException:  # an interrupt: running cases are stopped, not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            end_workers()
            raise
        if under_way:  # the pool would ask the others to end, and wait for one that is stopped
            end_workers()
        pool.shutdown()
    return sorted(under_way.values())


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


@contextmanager
def _single_threaded() -> Iterator[None]:
    """An environment in which newly started processes use one thread each."""
    before = {name: os.environ.get(name) for name in SINGLE_THREADED}
    os.environ.update(SINGLE_THREADED)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
