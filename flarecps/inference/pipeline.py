"""Case after case through three stages that overlap: the next is read and the last is written while one is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeAlias, TypeVar

from flarecps.batch_processing import Outcome, attempt

A = TypeVar("A")  # what names a case
M = TypeVar("M")  # what is read
C = TypeVar("C")  # what is computed
T = TypeVar("T")  # what is left when it is written

Attempted: TypeAlias = tuple[T | None, str | None]


def pipelined(
    cases: Sequence[tuple[str, A]],
    read: Callable[[A], M],
    compute: Callable[[A, M], C],
    write: Callable[[A, C], T],
    may_read_ahead: Callable[[M, A], bool] = lambda loaded, following: True,
) -> Iterator[Outcome[T]]:
    """One outcome per (name, argument) of ``cases``, in their order, as each is written.

    While ``compute`` works on a case in this thread, another thread reads the next one and a third writes the one
    before; no more than these three are in memory. ``may_read_ahead(loaded, next argument)``, asked before a case is
    computed, says whether the next may be read meanwhile; where it may not, the case is also written before the next
    is read. A stage that fails ends its case with its error, and the others go on.
    """
    with ThreadPoolExecutor(1, "reading") as reader, ThreadPoolExecutor(1, "writing") as writer:
        reading: Future[Attempted[M]] | None = None
        writing: tuple[str, Future[Attempted[T]]] | None = None
        for index, (name, argument) in enumerate(cases):
            loaded, error = reading.result() if reading is not None else attempt(read, argument)
            reading = None
            following = [one for _, one in cases[index + 1 : index + 2]]
            if following and (loaded is None or may_read_ahead(loaded, following[0])):
                reading = reader.submit(attempt, read, following[0])
            computed: C | None = None
            if loaded is not None:
                computed, error = attempt(partial(compute, argument), loaded)
            loaded = None
            if writing is not None:
                yield _written(*writing)
                writing = None
            if computed is None:
                yield Outcome(name, None, error)
                continue
            writing = (name, writer.submit(attempt, partial(write, argument), computed))
            computed = None
            if reading is None:
                yield _written(*writing)
                writing = None
        if writing is not None:
            yield _written(*writing)


def _written(name: str, ending: Future[Attempted[T]]) -> Outcome[T]:
    value, error = ending.result()
    return Outcome(name, value, error)
