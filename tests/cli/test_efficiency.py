"""``flarecps efficiency``: what it writes, shows and passes on."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flarecps.cli.main import main
from flarecps.evaluation import resource_usage
from flarecps.evaluation.efficiency import FLARE_COLUMNS

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """(exit code, standard error) of `flarecps efficiency WORDS`; standard output must be the command's own."""

    def call(*words: str | Path, printed: str = "") -> tuple[int, str]:
        code = main(["efficiency", *map(str, words)])
        captured = capfd.readouterr()
        assert captured.out == printed
        return code, captured.err

    return call


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_several_runs_build_a_table(run: Run, tmp_path: Path) -> None:
    for name in ("case_2", "case_1"):
        code, said = run("--out", tmp_path / "out", "--name", name, "--", "sleep", "0.3")
        assert code == 0
    assert "efficiency.csv, efficiency_all.csv (2 cases)" in said
    rows = rows_of(tmp_path / "out" / "efficiency.csv")
    assert tuple(rows[0]) == FLARE_COLUMNS
    assert [row["Name"] for row in rows] == ["case_1", "case_2"]
    everything = rows_of(tmp_path / "out" / "efficiency_all.csv")
    assert tuple(everything[0])[:8] == FLARE_COLUMNS
    assert {"AUC_GPU_Time_over_2048MB", "host_cpu_percent_s", "tree_cpu_s", "tree_ram_mb_max"} < set(everything[0])
    folder = tmp_path / "out" / "cases"
    record = json.loads((folder / "case_1.json").read_text())
    assert record["command"] == ["sleep", "0.3"]
    assert record["figures"]["Time"] == float(rows[0]["Time"])
    samples = rows_of(folder / "case_1.samples.csv")
    assert len(samples) == record["figures"]["samples"] + 2  # before the start, and at the end
    assert (folder / "case_1.png").read_bytes().startswith(b"\x89PNG")
    assert "process tree" in (folder / "case_1.svg").read_text()


def test_a_case_measured_again_replaces_its_row(run: Run, tmp_path: Path) -> None:
    for seconds in ("0.1", "0.4"):
        run("--out", tmp_path, "--name", "a", "--", "sleep", seconds)
    (row,) = rows_of(tmp_path / "efficiency.csv")
    assert float(row["Time"]) >= 0.4


def test_a_failing_command_passes_its_code_on_and_is_in_no_table(run: Run, tmp_path: Path) -> None:
    run("--out", tmp_path, "--name", "good", "--", "true")
    code, said = run("--out", tmp_path, "--name", "bad", "--", "sh", "-c", "exit 7")
    assert code == 7
    assert "the command failed (exit code 7): its figures are in no table" in said
    assert [row["Name"] for row in rows_of(tmp_path / "efficiency.csv")] == ["good"]
    assert json.loads((tmp_path / "cases" / "bad.json").read_text())["exit_code"] == 7


def test_the_commands_words_and_output_are_left_alone(run: Run) -> None:
    """Its options keep their underscores, a second -- is its own, and its output is on standard output alone."""
    code = "import sys; print(sys.argv[1:])"
    expected = "['--gpu_memory=8', '--', '--out', 'x']\n"
    assert run("--", sys.executable, "-c", code, "--gpu_memory=8", "--", "--out", "x", printed=expected)[0] == 0


def test_what_a_reader_must_know(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run("--", "true")[1]
    assert "only 1 sample: peaks may have been missed" in said
    fake = tmp_path / "docker"
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert "docker's containers are not in its process tree: take the figures of the machine" in run("--", "docker")[1]


def test_a_card_is_metered_through_nvml(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretended card with 3000 MB in use, 2500 of them the command's, as its driver would say."""

    class Card:
        name, failures, tells_processes = "Pretended", 0, True

        def read(self, pids: frozenset[int]) -> tuple[float, float]:
            return 3000.0, 2500.0 if pids else 0.0

        def close(self) -> None:
            pass

    monkeypatch.setattr(resource_usage, "open_gpu", lambda index: Card())
    run("--out", tmp_path, "--name", "a", "--", "sleep", "0.5")
    (row,) = rows_of(tmp_path / "efficiency_all.csv")
    ticks = int(row["samples"])
    assert (row["GPU_Mem"], row["AUC_GPU_Time"]) == ("3000", str(300 * ticks))
    assert (row["GPU_Mem_over_2048MB"], row["AUC_GPU_Time_over_2048MB"]) == ("952", str(round(95.2 * ticks)))
    assert float(row["card_mb_s"]) == pytest.approx(3000 * float(row["duration_s"]), rel=1e-3)
    assert row["tree_card_mb_max"] == "2500.0"
    assert json.loads((tmp_path / "cases" / "a.json").read_text())["machine"]["card"] == "Pretended"


def test_mistakes_are_answered(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for words, answer in [
        ([], "write it after two dashes"),
        (["--"], "write it after two dashes"),
        (["--", "nosuch"], "nosuch: no such program"),
        (["--interval", "0", "--", "true"], "--interval 0: expected 0.01 to 60 seconds"),
        (["--name", "a/b", "--", "true"], "expected the case's name, without folders"),
        (["--out", tmp_path / "file", "--", "true"], "can't be made"),
        (["--gpu", "77", "--", "true"], "--gpu 77: "),
    ]:
        code, said = run(*words)
        assert (code, answer in said) == (2, True), said
        assert said.count("\n") == 1
