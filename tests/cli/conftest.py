"""Stand-ins that several commands' tests share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flarecps.experiments import runner


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of every sbatch that an experiment runs; the jobs' numbers are 101, 102, …"""
    jobs: list[list[str]] = []

    def sbatch(words: list[str], **_: Any) -> SimpleNamespace:
        jobs.append(words)
        return SimpleNamespace(returncode=0, stdout=f"{100 + len(jobs)}\n", stderr="")

    monkeypatch.setattr(runner, "subprocess", SimpleNamespace(run=sbatch))
    return jobs
