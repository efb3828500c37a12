"""`benchmarks/gpu` on a CPU: every part of the run runs, tiny; kinds of kernels; what eight cards would do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gpu_scripts import GPU, script


def rehearse(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(GPU / "run.py"), str(folder / "work"), "--cpu-rehearsal"]
    environment = {name: value for name, value in os.environ.items() if name != "FLARECPS_PEER_PYTHON"}
    return subprocess.run(
        [*command, "--results", str(folder / "results"), *words],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )


def rehearsed(folder: Path, *words: str) -> tuple[str, dict[str, Any]]:
    """The report and the parts of a rehearsal that went well."""
    done = rehearse(folder, *words)
    logs = {file.name: file.read_text()[-2000:] for file in (folder / "work" / "logs").iterdir()}
    assert done.returncode == 0, done.stdout + done.stderr + str(logs)
    (report,) = (folder / "results" / "CPU").glob("*.md")
    (figures,) = (folder / "results" / "CPU").glob("*.json")
    text = report.read_text()
    assert "Failed" not in text
    return text, json.loads(figures.read_text())["parts"]


def test_parts_without_scans_run_and_are_kept(tmp_path: Path) -> None:
    parts = ["machine", "numbers", "step fast", "step plain, 2D", "step fast, in turn", "shares fast", "cards"]
    text, found = rehearsed(tmp_path, "--only", *parts)
    assert set(found) == set(parts)
    assert found["numbers"]["result"]["agree"]
    assert found["step fast"]["result"]["step_s"] > 0
    assert found["shares fast"]["result"]["kinds_ms"]["convolution"] > 0
    for heading in ("Numbers", "The step", "Where a step's time goes", "Between cards"):
        assert f"## {heading}" in text
    assert "Not measured: step plain; " in text
    (tmp_path / "work" / "parts_rehearsed" / "step fast.json").unlink()
    again = rehearse(tmp_path, "--only", "step fast", "numbers")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "numbers: kept" in again.stdout
    assert "step fast: kept" not in again.stdout
    unknown = rehearse(tmp_path, "--only", "step faster")
    assert unknown.returncode == 2
    assert "no part step faster; expected one of: machine, numbers" in unknown.stderr


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path) -> None:
    text, found = rehearsed(tmp_path, "--minutes", "14")
    assert "Not measured" not in text
    assert found["fit"]["result"]["patches_per_s"] > 0
    assert found["segment, mirrored"]["result"]["warm"]["cpu_s"] > 0
    for heading in ("A real training", "New scans"):
        assert f"## {heading}" in text


def test_a_part_that_fails_or_takes_too_long_leaves_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = script("run", monkeypatch)

    def fails() -> dict[str, int]:
        raise ValueError("no such luck")

    def hangs() -> dict[str, int]:
        import time

        time.sleep(100)
        return {}

    for name, work, why in (("a", fails, "ValueError: no such luck"), ("b", hangs, "not done within")):
        child = run.Child(work, tmp_path / f"{name}.json", tmp_path / f"{name}.log")
        child.wait(child.began + (60 if name == "a" else 0.3))
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert not found["ok"]
        assert why in found["why"]
    child = run.Child(lambda: {"x": 1}, tmp_path / "c.json", tmp_path / "c.log")
    child.wait(child.began + 60)
    assert json.loads((tmp_path / "c.json").read_text())["result"] == {"x": 1}
    text = run.write_report(tmp_path, tmp_path / "results", ["a", "b", "c", "d"])
    assert "- a: ValueError: no such luck" in text
    assert "Not measured: d." in text


def test_kernels_are_told_apart_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    kind_of = script("steps", monkeypatch).kind_of
    for kernel, kind in (
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, float>", "layout"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution"),
        ("cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816wgrad3d_optimized>", "convolution"),
        ("_gradient_sums", "norm and activation"),
        ("void at::native::batch_norm_collect_statistics_kernel<at::native::InvStd>", "norm and activation"),
        ("_differentiated", "loss"),
        (
            "void at::native::multi_tensor_apply_kernel<at::native::FusedSgdMathFunctor<float>>",
            "optimiser and clipping",
        ),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<OpaqueType<2>>", "copies and concatenation"),
        ("Memcpy HtoD (Pinned -> Device)", "copies and concatenation"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "element by element"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "between cards"),
        ("something new", "other"),
    ):
        assert kind_of(kernel) == kind, kernel


def test_eight_cards_are_computed_from_counted_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """30.79 M parameters a sibling; a ring of N cards moves 2 (N - 1) / N; a backward pass hides what it can."""
    eight = script("eight_cards", monkeypatch)
    topology = {
        "features": [32, 64, 128, 256, 320, 320],
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
        "kernels": [[3, 3, 3]] * 6,
    }
    layers = eight.layers_of(topology, [112, 160, 128])
    assert eight.gradient_bytes(layers) == pytest.approx(2 * 30.79e6 * 4, rel=1e-3)
    assert sum(layer.macs for layer in layers) == pytest.approx(523.6e9, rel=1e-3)
    sent = eight.buckets(layers, backward_s=0.2)
    assert sum(size for _, size in sent) == eight.gradient_bytes(layers)
    assert [ready for ready, _ in sent] == sorted(ready for ready, _ in sent)
    assert sent[-1][0] == pytest.approx(0.2)
    endless, slow = eight.Link("endless", 1e18, 0.0), eight.Link("slow", 1e9, 0.0)
    assert eight.predicted(layers, endless, 8, 0.3, 4)["exposed_s"] == pytest.approx(0, abs=1e-6)
    one = eight.predicted(layers, slow, 8, 1e-9, 4)  # nothing hides it
    assert one["exposed_s"] == pytest.approx(2 * 7 / 8 * eight.gradient_bytes(layers) / 1e9, rel=1e-3)
    assert eight.predicted(layers, slow, 8, 0.3, 2)["wire_s"] == pytest.approx(one["wire_s"] / 2)


def test_the_cards_busy_share_is_from_the_first_kernel_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    program = script("program", monkeypatch)
    looked = threading.Event()
    samples = iter([0, 50, 100, 0, 90])

    def rates(card: object) -> SimpleNamespace:
        found = next(samples, 0)
        if not found and len(busy.percent) > 5:
            looked.set()
        return SimpleNamespace(gpu=found)

    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUtilizationRates=rates,
    )
    busy = program.Busy(nvml, every_s=0.001)
    with busy:  # its thread may look before "as" has given it a name
        assert looked.wait(20)
    assert busy.share == pytest.approx((0.5 + 1 + 0 + 0.9) / 4)
    with program.Busy(None) as nothing:
        pass
    assert nothing.share is None


def test_a_cards_peak_stands_beside_the_plans_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's step has none; a CPU's peak is its process's, and calibrates nothing."""
    words = script("words", monkeypatch)
    step = {"step_s": 0.2, "seconds": [0.2], "peak_gb": 19.6, "predicted_gb": 19.43}
    found = {
        "step fast": {"ok": True, "result": step},
        "step nnU-Net": {"ok": True, "result": {key: step[key] for key in ("step_s", "seconds", "peak_gb")}},
    }
    for cards, shown in ((1, "| 1.01 × 19.43 |"), (0, "|  |")):
        text = words.report(found, {"card": "a card", "cards": cards}, "2026-11-28", [])
        (row,) = (line for line in text.splitlines() if line.startswith("| fast "))
        assert f"| 19.60 {shown}" in row
    (row,) = (line for line in text.splitlines() if line.startswith("| nnU-Net "))
    assert "| 19.60 |  |" in row
