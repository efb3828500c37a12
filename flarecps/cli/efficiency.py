"""``flarecps efficiency -- COMMAND``: FLARE's time, GPU-memory, CPU and RAM meters around any command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flarecps.cli import PLAIN
from flarecps.errors import ConfigError, counted

if TYPE_CHECKING:
    from flarecps.cli.console import Console
    from flarecps.evaluation.measured_run import MeasuredRun
    from flarecps.evaluation.resource_usage import GpuMeter

SHORTEST_INTERVAL_S = 0.01
OTHERS_PERCENT = 10  # of the processor, taken by others on average: worth a word
FEW_SAMPLES = 10
CONTAINER_CLIENTS = ("docker", "nerdctl")  # their containers are children of a service; podman's are the client's


def efficiency(
    *command: str, name: str | None = None, out: Path | None = None, interval_s: float = 0.1, gpu: int | None = None
) -> int:
    """Run COMMAND and measure what it costs, as FLARE does: time, CPU, RAM and GPU memory, sampled every 0.1 s.

    COMMAND runs without a shell, with its own input and output; the summary goes to standard error, and its exit code
    is passed on. FLARE's figures are of the whole machine, so measure on an idle one. The process tree (COMMAND and all
    its descendants) is measured as well, without what other programs use.

    OUT collects one row per case: efficiency.csv (FLARE's columns by FLARE's rules), efficiency_all.csv (also the true
    areas, the process tree, and GPU memory above the tolerance of 2048 MB), and in OUT/cases each case's record,
    samples and plot. A command that fails is recorded but is in no table.

    A container started by 'docker run' is not in the process tree: take the figures of the machine.

    Args:
        name: name of the case in the tables; without it that of the program.
        out: folder for the tables; without it the summary is only shown.
        interval_s: period of the samples in seconds.
        gpu: index of the NVIDIA GPU to measure, as nvidia-smi counts; without it the first, if there is one.
    """
    from datetime import datetime, timezone

    from flarecps.cli.console import Console
    from flarecps.evaluation.measured_run import run_measured
    from flarecps.evaluation.resource_usage import open_gpu
    from flarecps.reporting.efficiency_report import (
        CASES,
        checked_case_name,
        efficiency_figure,
        write_efficiency_figure,
        write_measured_run,
    )

    if not SHORTEST_INTERVAL_S <= interval_s <= 60:
        raise ConfigError(f"--interval {interval_s:g}: expected {SHORTEST_INTERVAL_S} to 60 seconds (FLARE's is 0.1)")
    called = checked_case_name(name if name is not None else Path(command[0]).name if command else "none")
    if out is not None:
        try:
            (out / CASES).mkdir(parents=True, exist_ok=True)  # before the work, not after it, if it can't be made
        except OSError as error:
            raise ConfigError(
                f"--out: {out / CASES} can't be made ({error.strerror}); name a folder you may write to"
            ) from None
    card = open_gpu(gpu)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    try:
        run = run_measured(command, interval_s, card)
    finally:
        if card is not None:
            card.close()
    said = _remarks(run, card)
    console = Console(stderr=True)
    _show(called, run, console)
    for remark in said:
        console.print(f"- {remark}", **PLAIN)
    if out is not None:
        cases = write_measured_run(out, called, run, card.name if card else None, started, said)
        write_efficiency_figure(out / CASES, called, efficiency_figure(run.trace, called))
        console.print(f"written: {out}/efficiency.csv, efficiency_all.csv ({counted(cases, 'case')}), "
                      f"{CASES}/{called}.json, .samples.csv, .png, .svg", **PLAIN)  # fmt: skip
    return run.exit_code


def _remarks(run: MeasuredRun, card: GpuMeter | None) -> list[str]:
    """What a reader of the figures must know."""
    from flarecps.evaluation.efficiency import true_figures

    figures = true_figures(run.trace)
    others = (figures["host_cpu_percent_mean"] or 0.0) - (figures["tree_cpu_percent_mean"] or 0.0)
    contained = Path(run.command[0]).name in CONTAINER_CLIENTS
    said = []
    if run.exit_code:
        how = "was interrupted" if run.interrupted else "failed"
        said.append(f"the command {how} (exit code {run.exit_code}): its figures are in no table")
    if card is None:
        said.append("no NVIDIA card: the GPU's columns are 0")
    elif card.failures:
        said.append(f"the card could not be read {card.failures} times; the last reading was repeated")
    if contained:
        said.append(f"{run.command[0]}'s containers are not in its process tree: take the figures of the machine")
    elif others > OTHERS_PERCENT:
        said.append(
            f"others used {others:.0f} % of the processor meanwhile: FLARE's figures of the machine include them"
        )
    if run.left:
        fate = "were ended with it" if run.interrupted else "run on, unmeasured"
        said.append(f"outlived by {', '.join(run.left)}: they {fate}")
    samples = int(figures["samples"] or 0)
    if samples < FEW_SAMPLES:
        said.append(f"only {counted(samples, 'sample')}: peaks may have been missed")
    elif run.trace.duration_s > 1.5 * samples * run.trace.interval_s:
        period = run.trace.duration_s / samples
        said.append(f"samples came only every {period:.2f} s (the machine was busy): FLARE's areas are too low")
    return said


def _show(name: str, run: MeasuredRun, console: Console) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from flarecps.evaluation.efficiency import flare_figures, tolerated_figures, true_figures

    flare, over, true = flare_figures(run.trace), tolerated_figures(run.trace), true_figures(run.trace)

    def number(key: str, decimals: int = 0) -> str:
        value = true[key]
        return "–" if value is None else f"{value:,.{decimals}f}"

    shown = Table(title=escape(f"{name}: {run.trace.duration_s:.2f} s, {true['tree_cpu_s']:.2f} s of processor time"),
                  title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)  # fmt: skip
    shown.add_column("")
    for column in ("FLARE", "machine", "process tree"):
        shown.add_column(column, justify="right")
    shown.add_row("CPU, most (%)", f"{flare['CPU_Utilization']:,.2f}",
                  number("host_cpu_percent_max", 1), number("tree_cpu_percent_max", 1))  # fmt: skip
    shown.add_row("CPU, area (% s)", f"{flare['AUC_CPU_Time']:,.2f}",
                  number("host_cpu_percent_s", 1), number("tree_cpu_percent_s", 1))  # fmt: skip
    shown.add_row("RAM, most (MB)", f"{flare['RAM']:,.2f}", number("host_ram_mb_max"), number("tree_ram_mb_max"))
    shown.add_row("RAM, area (MB s)", f"{flare['AUC_RAM_Time']:,}", number("host_ram_mb_s"), number("tree_ram_mb_s"))
    if run.trace.card_mb is not None:
        shown.add_row("GPU, held (MB)", f"{flare['GPU_Mem']:,}", number("card_mb_max"), number("tree_card_mb_max"))
        shown.add_row("GPU, area (MB s)", f"{flare['AUC_GPU_Time']:,}", number("card_mb_s"), number("tree_card_mb_s"))
        shown.add_row("GPU above 2048 MB", f"{over['GPU_Mem_over_2048MB']:,}", "", "")
        shown.add_row("its area (MB s)", f"{over['AUC_GPU_Time_over_2048MB']:,}", "", "")
    console.print(shown)
