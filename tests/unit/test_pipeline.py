"""Three stages: what overlaps, what never does, and that a failing case harms no other."""

from __future__ import annotations

import threading

import pytest

from flarecps.errors import ScanError
from flarecps.inference.segment_case import pipelined

PATIENCE_S = 20.0  # what must happen at the same time happens long before


def names(count: int) -> list[tuple[str, int]]:
    return [(f"case {number}", number) for number in range(count)]


def test_the_next_is_read_and_the_last_is_written_while_one_is_computed() -> None:
    was_read = [threading.Event() for _ in range(4)]
    computing = [threading.Event() for _ in range(4)]

    def read(number: int) -> int:
        was_read[number].set()
        return 10 * number

    def compute(number: int, loaded: int) -> int:
        computing[number].set()
        if number + 1 < 4:
            assert was_read[number + 1].wait(PATIENCE_S), "the next case is read meanwhile"
        return loaded + 1

    def write(number: int, computed: int) -> int:
        if number + 1 < 4:
            assert computing[number + 1].wait(PATIENCE_S), "the next case is computed meanwhile"
        return computed + 1

    outcomes = list(pipelined(names(4), read, compute, write))
    assert [outcome.name for outcome in outcomes] == [name for name, _ in names(4)]
    assert [(outcome.value, outcome.error) for outcome in outcomes] == [(10 * n + 2, None) for n in range(4)]


def test_no_more_than_three_cases_are_in_memory() -> None:
    lock, alive, most = threading.Lock(), 0, 0

    class Scan:
        def __init__(self) -> None:
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    done = list(pipelined(names(12), lambda number: Scan(), lambda number, scan: scan, lambda number, scan: number))
    assert [outcome.value for outcome in done] == list(range(12))
    assert most <= 3
    assert alive == 0


def test_without_room_one_thing_is_done_at_a_time() -> None:
    log: list[str] = []

    def stage(name: str):
        def work(number: int, *given: int) -> int:
            log.append(f"{name} {number}")
            return number

        return work

    list(pipelined(names(3), stage("read"), stage("compute"), stage("write"), lambda loaded, following: False))
    assert log == [f"{name} {number}" for number in range(3) for name in ("read", "compute", "write")]


@pytest.mark.parametrize("broken", ["read", "compute", "write"])
def test_a_failing_stage_ends_its_case_only(broken: str) -> None:
    def stage(name: str):
        def work(number: int, *given: int) -> int:
            if name == broken and number in (1, 2):
                raise ScanError(f"scan {number} is broken")
            return number

        return work

    outcomes = list(pipelined(names(5), stage("read"), stage("compute"), stage("write")))
    assert [outcome.value for outcome in outcomes] == [0, None, None, 3, 4]
    assert [outcome.error for outcome in outcomes] == [None, "scan 1 is broken", "scan 2 is broken", None, None]
    assert list(pipelined([], stage("read"), stage("compute"), stage("write"))) == []
