"""FLARE's figures and the true ones against traces whose areas and maxima are worked out by hand; NVML pretended."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from flarecps.errors import ConfigError
from flarecps.evaluation.efficiency import (
    FLARE_COLUMNS,
    Trace,
    area_of_rates,
    flare_cpu_percent,
    flare_figures,
    held_memory_mb,
    host_cpu_percent,
    tolerated_figures,
    tree_cpu_percent,
    true_figures,
)
from flarecps.evaluation.resource_usage import GpuMeter, open_gpu
from flarecps.reporting.efficiency_report import binned_means

MIB = 2**20


def trace(card: Sequence[float] | None = None, tree_card: Sequence[float] | None = None) -> Trace:
    """A run of 0.45 s on 2 cores, read at 0, 0.1, 0.2 and 0.4 s (a tick missed) and at its end.

    Between readings the machine's two cores have 0.2 0.2 0.4 0.1 s; idle 0.1 0 0.2 0.05 of it, waiting for disks 0.05
    in the first interval.
    """
    spent = np.array(
        #  user  sys   idle  wait  all
        [[0.0, 0.0, 0.0, 0.0, 0.0], [0.04, 0.01, 0.1, 0.05, 0.2], [0.15, 0.05, 0.0, 0.0, 0.2],
         [0.1, 0.1, 0.2, 0.0, 0.4], [0.03, 0.02, 0.05, 0.0, 0.1]]
    )  # fmt: skip
    return Trace(
        duration_s=0.45,
        interval_s=0.1,
        cores=2,
        time_s=np.array([0.0, 0.1, 0.2, 0.4, 0.45]),
        host_cpu_s=1000 + spent.cumsum(axis=0),
        host_ram_mb=np.array([1000.0, 1100, 1200, 1400, 1400]),
        tree_cpu_s=np.array([0.0, 0.05, 0.25, 0.45, 0.5]),
        tree_ram_mb=np.array([0.0, 100, 200, 400, 400]),
        card_mb=None if card is None else np.array(card, float),
        tree_card_mb=None if tree_card is None else np.array(tree_card, float),
    )


def test_flares_cpu_with_its_quirk_by_hand() -> None:
    """100 - 100 · idle / (user + system + idle + 0.1): 100 - 10/.25 = 60; 100; 100 - 20/.5 = 60; 100 - 5/.2 = 75."""
    assert flare_cpu_percent(trace()) == pytest.approx([0, 60, 100, 60, 75])


def test_an_idle_machine_of_two_cores_shows_33_percent_by_flares_rule() -> None:
    """0.2 s of idle in 0.1 s: 100 - 100 · 0.2 / 0.3."""
    idle = np.outer(np.arange(4), [0.0, 0.0, 0.2, 0.0, 0.2])
    flat = np.zeros(4)
    run = Trace(0.3, 0.1, 2, np.arange(4) / 10, idle, flat, flat, flat, None, None)
    assert flare_cpu_percent(run)[1:] == pytest.approx([100 / 3] * 3)
    assert host_cpu_percent(run).tolist() == [0, 0, 0, 0]


def test_flares_figures_by_hand() -> None:
    """Three ticks. Card 500 500 3000: 1 of 3 samples is more than 2 %, so 3000; area 4000 · 0.1; CPU 220 · 0.1; RAM."""
    figures = flare_figures(trace(card=[400, 500, 500, 3000, 3000]))
    assert ("Name", *figures) == FLARE_COLUMNS
    assert figures == {
        "Time": 0.45, "GPU_Mem": 3000, "AUC_GPU_Time": 400, "CPU_Utilization": 100.0, "AUC_CPU_Time": 22.0,
        "RAM": 1400.0, "AUC_RAM_Time": 370,
    }  # fmt: skip
    assert flare_figures(trace())["GPU_Mem"] == flare_figures(trace())["AUC_GPU_Time"] == 0


def test_the_tolerance_by_hand() -> None:
    """Above 2048: 0 0 952; area 95.2."""
    assert tolerated_figures(trace(card=[0, 500, 500, 3000, 0])) == {
        "GPU_Mem_over_2048MB": 952, "AUC_GPU_Time_over_2048MB": 95,
    }  # fmt: skip
    assert set(tolerated_figures(trace(card=[2000] * 5)).values()) == {0}


def test_true_areas_by_hand() -> None:
    """Host busy: .05/.2 = 25 %, 100 %, 50 %, 50 % over .1 .1 .2 .05 s: 2.5 + 10 + 10 + 2.5 = 25 % s.

    Tree: 25 100 50 50 %: .5 s of 2 cores = 25 % s. RAM: .1·1050 + .1·1150 + .2·1300 + .05·1400 = 550; tree 5 + 15 +
    60 + 20 = 100; card .1·450 + .1·500 + .2·1750 + .05·3000 = 595.
    """
    run = trace(card=[400, 500, 500, 3000, 3000], tree_card=[0, 0, 100, 100, 100])
    assert host_cpu_percent(run) == pytest.approx([0, 25, 100, 50, 50])
    assert tree_cpu_percent(run) == pytest.approx([0, 25, 100, 50, 50])
    figures = true_figures(run)
    expected = {
        "duration_s": 0.45, "samples": 3, "host_cpu_percent_max": 100, "host_cpu_percent_mean": 25 / 0.45,
        "host_cpu_percent_s": 25, "host_ram_mb_max": 1400, "host_ram_mb_s": 550, "host_ram_rise_mb": 400,
        "card_mb_max": 3000, "card_mb_s": 595, "tree_cpu_s": 0.5, "tree_cpu_percent_max": 100,
        "tree_cpu_percent_mean": 25 / 0.45, "tree_cpu_percent_s": 25, "tree_ram_mb_max": 400, "tree_ram_mb_s": 100,
        "tree_card_mb_max": 100, "tree_card_mb_s": 5 + 20 + 5,
    }  # fmt: skip
    assert figures == {name: pytest.approx(value) for name, value in expected.items()}
    assert true_figures(trace())["card_mb_s"] is None


@pytest.mark.parametrize(
    ("samples", "held"),
    [
        ([500] * 97 + [900] * 3, 900),  # 3 of 100 are more than 2 %
        ([500] * 98 + [900] * 2, 500),  # 2 of 100 are not
        ([900.5], 900.5),
        (list(range(101)), 98),  # none is held; more than 2 % of 101 are 3, and 3 samples reach 98
    ],
)
def test_the_two_percent_rule_by_hand(samples: list[float], held: float) -> None:
    assert held_memory_mb(np.array(samples, float)) == held


@pytest.mark.parametrize("rows", [5, 4000])
def test_the_plot_keeps_the_area(rows: int) -> None:
    """A long run is drawn in fewer levels: whatever the ticks, the area under them is that of the readings."""
    generator = np.random.default_rng(0)
    time_s = np.concatenate([[0.0], np.cumsum(generator.uniform(0.09, 0.14, rows))])
    percent = np.concatenate([[0.0], generator.uniform(0, 100, rows)])
    edges, levels = binned_means(time_s, percent)
    assert len(levels) == min(rows, 300)
    assert (levels * np.diff(edges)).sum() == pytest.approx(area_of_rates(time_s, percent))


class FakeNvml:
    """As much of pynvml as the meter asks, with two cards of 16 GiB; what is in use is set by the test."""

    class NVMLError(Exception):
        pass

    def __init__(self, cards: int = 2) -> None:
        self.cards, self.used, self.running = cards, 0, []
        self.open = 0
        self.lost = self.silent = False

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self.cards

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return f"Card {handle}".encode()

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        if self.lost:
            raise self.NVMLError("GPU is lost")
        total = 16 * 1024 * MIB
        return SimpleNamespace(total=total, free=total - self.used, used=self.used - 100 * MIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        if self.silent:
            raise self.NVMLError("Not Supported")
        return self.running


def process(pid: int, used_mb: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=None if used_mb is None else used_mb * MIB)


def test_the_cards_memory_is_total_less_free_and_the_trees_share_is_its_processes() -> None:
    nvml = FakeNvml()
    card = open_gpu(1, nvml)
    assert card is not None
    nvml.used, nvml.running = 900 * MIB, [process(7, 300), process(8, 200), process(9, 50)]
    assert (card.name, card.read(frozenset({7, 8}))) == ("Card 1", (900, 500))
    assert card.tells_processes
    card.close()
    assert nvml.open == 0


def test_a_card_that_is_lost_repeats_its_last_reading() -> None:
    nvml = FakeNvml()
    card = GpuMeter(nvml, 0)
    nvml.used = 100 * MIB
    card.read(frozenset())
    nvml.lost = True
    assert card.read(frozenset())[0] == 100
    assert card.failures == 1


@pytest.mark.parametrize("silent", [True, False])
def test_a_driver_that_does_not_tell_processes(silent: bool) -> None:
    nvml = FakeNvml()
    nvml.silent, nvml.running = silent, [process(7, None)]
    card = GpuMeter(nvml, 0)
    assert card.read(frozenset({7})) == (0, 0)
    assert not card.tells_processes


def test_no_card_and_no_such_card() -> None:
    class NoDriver(FakeNvml):
        def nvmlInit(self) -> None:
            raise self.NVMLError("Driver Not Loaded")

    assert open_gpu(None, NoDriver()) is None
    empty = FakeNvml(cards=0)
    assert open_gpu(None, empty) is None
    assert empty.open == 0
    with pytest.raises(ConfigError, match=r"--gpu 0: no NVIDIA card can be asked here \(Driver Not Loaded\)"):
        open_gpu(0, NoDriver())
    with pytest.raises(ConfigError, match="--gpu 2: there is no such card; expected 0 to 1"):
        open_gpu(2, FakeNvml())
