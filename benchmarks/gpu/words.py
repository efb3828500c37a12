"""The report of `run.py` in Markdown."""

from __future__ import annotations

from typing import Any

Found = dict[str, dict[str, Any]]
PAPER_STEPS = 1000 * 250
AIMS = (
    "≤ 0.13 s a step, at most 0.35 of four nnU-Net steps, ≥ 25 % of the matrix rate; waiting ≤ 2 %; in turn ≤ 11 GB; "
    "≤ 5 s a scan of 512×512×280, the card busy ≥ 80 % of a folder's time, flare22 within 2048 MB"
)


def report(found: Found, machine: dict[str, Any], date: str, missing: list[str]) -> str:
    """Of the parts that there are; what failed and what was not measured is said."""
    results = {name: one["result"] for name, one in found.items() if one["ok"]}
    lines = [f"# {machine['card']}, {date}", "", *_machine(machine)]
    for section in (_numbers, _steps, _shares, _training, _scans, _cards):
        lines += section(results, found, machine)
    failed = [f"- {name}: {one['why']}" for name, one in found.items() if not one["ok"]]
    if failed:
        lines += ["", "## Failed", "", *failed]
    if missing:
        lines += ["", f"Not measured: {'; '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _machine(machine: dict[str, Any]) -> list[str]:
    if "torch" not in machine:
        return ["The machine was not described."]
    triton = machine["no_triton"] or "there"
    return [
        f"{machine['cards']} card(s), {machine['cores']} cores; Python {machine['python']}, PyTorch "
        f"{machine['torch']}, CUDA {machine['cuda']}; Triton: {triton}. A product of matrices reaches "
        f"{machine['matrix_flops'] / 1e12:.3g} TFLOP/s, a copy {machine['copy_bytes_per_s'] / 1e12:.3g} TB/s.",
        "",
        f"Aims on an H100: {AIMS}.",
    ]


def _numbers(results: Found, found: Found, machine: dict[str, Any]) -> list[str]:
    one = results.get("numbers")
    if one is None:
        return []
    lines = ["", "## Numbers", "", "Distance from double precision on the CPU, ‖difference‖ / ‖exact‖:", ""]
    lines += ["| road, precision | logits | loss | gradients |", "|---|--:|--:|--:|"]
    for name, row in one["from_float64"].items():
        lines.append(f"| {name} | {row['logits']:.1e} | {row['loss']:.1e} | {row['gradients']:.1e} |")
    said = f"by the plain road {one['curve_noise']:.1e}, by the fast one {one['curve_apart']:.1e}"
    lines += ["", f"20 CPS steps in bf16, largest relative distance of a loss from the CPU's in float32: {said}.", ""]
    return lines + [f"- {check}: {'yes' if holds else '**no**'}" for check, holds in one["checks"].items()]


def _steps(results: Found, found: Found, machine: dict[str, Any]) -> list[str]:
    steps = {name.removeprefix("step "): one for name, one in results.items() if name.startswith("step ")}
    if not steps:
        return []
    peer = steps.get("nnU-Net")
    lines = ["", "## The step", "", "Medians, shortest–longest; nnU-Net's are four steps, as many patch passes.", ""]
    lines += [
        "| | seconds | of nnU-Net's | peak GB | of the plan's figure | of the matrix rate | 1000 × 250, h |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, one in steps.items():
        spread = f"{one['step_s']:.4f} ({min(one['seconds']):.4f}–{max(one['seconds']):.4f})"
        against = f"{one['step_s'] / peer['step_s']:.2f}" if peer and not name.endswith(("2D", "residual")) else ""
        share = ""
        if "operations" in one and "matrix_flops" in machine:
            share = f"{one['operations'] / one['step_s'] / machine['matrix_flops']:.0%}"
        hours = one["step_s"] * PAPER_STEPS / 3600
        peak = f"{one['peak_gb']:.2f} | {_calibrated(one, machine)}"
        lines.append(f"| {name} | {spread} | {against} | {peak} | {share} | {hours:.1f} |")
    return lines


def _shares(results: Found, found: Found, machine: dict[str, Any]) -> list[str]:
    profiled = {name.removeprefix("shares "): one for name, one in results.items() if name.startswith("shares ")}
    if not profiled:
        return []
    first = next(iter(profiled.values()))
    lines = ["", "## Where a step's time goes", "", "Milliseconds by kind of kernel, by the kernels' names.", ""]
    lines += [f"| | {' | '.join(profiled)} |", "|---|" + "--:|" * len(profiled)]
    for kind in first["kinds_ms"]:
        lines.append(f"| {kind} | " + " | ".join(f"{one['kinds_ms'][kind]:.1f}" for one in profiled.values()) + " |")
    for key, words in (("nothing_ran_ms", "no kernel ran"), ("step_ms", "a step, profiled")):
        lines.append(f"| {words} | " + " | ".join(f"{one[key]:.1f}" for one in profiled.values()) + " |")
    lines += ["", *(f"- {one['ms']:.2f} ms {one['kind']}: `{one['kernel']}`" for one in first["longest"][:10])]
    return lines


def _training(results: Found, found: Found, machine: dict[str, Any]) -> list[str]:
    rows = {name: results[name] for name in ("fit", "fit, all cards") if "patches_per_s" in results.get(name, {})}
    lines = ["", "## A real training", "", "Second of two epochs.", ""] if rows else []
    if rows:
        heads = "peak GB | of the plan's figure | driver's peak MB"
        lines += [f"| | cards | patches/s | a step, s | waiting for data | {heads} |"]
        lines += ["|---|--:|--:|--:|--:|--:|--:|--:|"]
    for name, one in rows.items():
        peak = "" if one["peak_gb"] is None else f"{one['peak_gb']:.2f}"
        driver = _mb(found[name])
        lines.append(
            f"| {name} | {one.get('cards', 1)} | {one['patches_per_s']:.1f} | {one['step_s']:.3f} | "
            f"{one['data_wait_share']:.1%} | {peak} | {_calibrated(one, machine)} | {driver} |"
        )
    return lines


def _scans(results: Found, found: Found, machine: dict[str, Any]) -> list[str]:
    rows = {name: one for name, one in results.items() if name.startswith("segment")}
    lines = []
    if rows:
        lines = [
            "",
            "## New scans",
            "",
            "Seconds a scan, loading the model included; labels of a network that has hardly",
        ]
        lines += ["learnt: noise. The driver's peak holds other programs' memory on the card since the start, too.", ""]
        lines += ["| | scans | first, wall / CPU s | warm, wall / CPU s | card busy | driver's peak MB |"]
        lines += ["|---|--:|--:|--:|--:|--:|"]
    for name, one in rows.items():
        times = " | ".join(f"{one[key]['wall_s']:.1f} / {one[key]['cpu_s']:.1f}" for key in ("first", "warm"))
        busy = one["warm"].get("busy")
        shown = "" if busy is None else f"{busy:.0%}"
        lines.append(f"| {name} | {one['scans']} | {times} | {shown} | {_mb(found[name])} |")
    if "validate" in results:
        one = results["validate"]
        said = f"`validate`: {one['seconds']:.1f} s for {one['scans']} whole scan, both siblings, loading included"
        lines += ["", f"{said}; driver's peak {_mb(found['validate']) or '–'} MB."]
    return lines


def _cards(results: Found, found: Found, machine: dict[str, Any]) -> list[str]:
    one = results.get("cards")
    if one is None:
        return []
    return [
        "",
        "## Between cards",
        "",
        f"{one['backend']}, {one['cards']} process(es): both siblings' gradients ({one['gradients_mb']:.1f} MB) "
        f"{1e3 * one['gradients_s']:.2f} ms, {one['bus_gb_per_s']:.1f} GB/s a card; a message of 64 bytes "
        f"{one['message_us']:.0f} µs.",
    ]


def _calibrated(one: dict[str, Any], machine: dict[str, Any]) -> str:
    """Measured peak over what ``plan`` and ``fit --dry-run`` say; nothing on a CPU, whose peak is the process's."""
    if not machine.get("cards") or one.get("peak_gb") is None or "predicted_gb" not in one:
        return ""
    return f"{one['peak_gb'] / one['predicted_gb']:.2f} × {one['predicted_gb']:.2f}"


def _mb(part: dict[str, Any]) -> str:
    peak = part.get("driver_peak_mb")
    return "" if peak is None else f"{peak:.0f}"
