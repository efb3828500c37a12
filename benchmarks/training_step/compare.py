"""The CPS step against nnU-Net v2's: time and peak memory at the same patches in the same precision.

    export FLARECPS_PEER_PYTHON=.peers/bin/python
    python benchmarks/training_step/compare.py OUT --device cuda --precision bf16
    python benchmarks/training_step/compare.py OUT --device cpu --patch 32 48 32 --stages 5

One step of cross pseudo supervision sends 2 + 2 patches through two siblings: 8 patch passes. Four steps of a single
nnU-Net at batch 2 are as many. Both sides run as processes of their own, alternately; first they are given the same
weights, images and labels and must find the same logits and loss. Settings of ours that `--variants` names (compile,
channels-last, fused and their combinations with '+') and the peer's (peer:compile) are measured beside the plain
ones.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from flarecps.networks import NETWORKS
from flarecps.networks.cost import network_cost

HERE = Path(__file__).resolve().parent
FEATURES = [32, 64, 128, 256, 320, 320]  # the paper's network in 3D
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
CLASSES = 14
NETWORKS_OF_A_STEP, STREAMS = 2, 2
PASSES = 3  # of the network's work: forward, and two products of the same size backward
PAPER_HOURS, PAPER_GPUS, PAPER_STEPS = 97, 8, 1000 * 250
TOLERANCE = 1e-5


def main() -> None:
    """Check that both sides compute the same, run them alternately, write OUT/training_step.json, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--patch", type=int, nargs=3, default=[112, 160, 128])
    parser.add_argument(
        "--batch", type=int, default=2, help="labelled patches, as many unlabelled, and nnU-Net's batch"
    )
    parser.add_argument("--stages", type=int, default=6, help="of the paper's network; fewer for small patches")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="PlainUNet")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="measured steps a round, after 2 that do not count")
    parser.add_argument(
        "--variants",
        nargs="*",
        default=["fast", "fast+padded", "fast+compile", "fast+in-turn", "compile", "peer:compile"],
    )
    options = parser.parse_args()
    peer = os.environ.get("FLARECPS_PEER_PYTHON")
    if not peer:
        sys.exit("FLARECPS_PEER_PYTHON is not set: `make peers` installs nnU-Net and prints the line that sets it")
    spec = {"network": options.network, "arguments": arguments_of(options.network, options.stages)}
    result: dict[str, Any] = {"settings": vars(options) | {"out": options.out.name}, "spec": spec}
    result["agreement"] = agreement(peer, spec, options.patch)
    print(f"same weights, images and labels: {json.dumps(result['agreement'])}", flush=True)
    if max(result["agreement"].values()) > TOLERANCE:
        sys.exit(f"the two sides do not compute the same (more than {TOLERANCE} apart)")
    result["runs"] = alternate(peer, spec, options)
    result["summary"] = summary(result["runs"])
    result["floor"] = floor(spec, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "training_step.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n" + report(result))


def arguments_of(network: str, stages: int) -> dict[str, Any]:
    """What builds the paper's network, or the residual-encoder one of the same topology."""
    with torch.device("meta"):
        built: Any = NETWORKS[network](1, CLASSES, FEATURES[:stages], STRIDES[:stages], [[3, 3, 3]] * stages)
    arguments: dict[str, Any] = built.arguments
    return arguments


def agreement(peer: str, spec: dict[str, Any], patch: list[int]) -> dict[str, float]:
    """How far logits and loss are apart, given the same weights, images and labels."""
    stride = [2**5, 2**5, 2**5]  # the smallest patch of all topologies here, doubled
    small = [min(edge, 2 * step) for edge, step in zip(patch, stride, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder, "exchange.pt"), Path(folder, "answer.pt")
        patch_words = ["--patch", *map(str, small)]
        call(sys.executable, "ours.py", "exchange", question, "--spec", json.dumps(spec), *patch_words)
        call(peer, "peer.py", "check", question, answer)
        ours, theirs = (torch.load(file, weights_only=True) for file in (question, answer))
    scales = zip(ours["logits"], theirs["logits"], strict=True)
    return {
        "largest difference of a logit, relative to the largest logit": max(
            float((one - other).abs().max() / other.abs().max()) for one, other in scales
        ),
        "difference of the loss": abs(float(ours["loss"] - theirs["loss"])),
    }


def alternate(peer: str, spec: dict[str, Any], options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every variant's runs, one of each in every round."""
    words = ["--spec", json.dumps(spec), "--patch", *options.patch, "--batch", options.batch]
    words += ["--device", options.device, "--precision", options.precision]
    runs: dict[str, list[dict[str, Any]]] = {}
    for number in range(options.rounds):
        for variant in ["flarecps", "peer", *options.variants]:
            theirs = variant.startswith("peer")
            switches = [f"--{switch}" for switch in variant.replace("peer", "").strip(":").split("+") if switch]
            switches = [] if variant == "flarecps" else switches
            count = ["--blocks" if theirs else "--steps", options.steps]
            python, script = (peer, "peer.py") if theirs else (sys.executable, "ours.py")
            run = json.loads(call(python, script, "measure", *words, *count, *switches).splitlines()[-1])
            runs.setdefault(variant, []).append(run)
            seconds, peak = statistics.median(run["seconds"]), run["peak_gb"]
            print(f"round {number + 1}: {variant}: {seconds:.3f} s, peak {peak:.2f} GB", flush=True)
    return runs


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Median seconds of all steps and the highest peak, by variant; a block of four steps counts as the peer's one."""
    found = {}
    for variant, of in runs.items():
        seconds = [one for run in of for one in run["seconds"]]
        found[variant] = {
            "seconds": statistics.median(seconds),
            "shortest": min(seconds),
            "longest": max(seconds),
            "peak_gb": max(run["peak_gb"] for run in of),
        }
    for one in found.values():
        one["time_against_peer"] = one["seconds"] / found["peer"]["seconds"]
    return found


def floor(spec: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The step's floating-point operations, what the device reaches, and the time that no step can undercut."""
    with torch.device("meta"):
        network = NETWORKS[spec["network"]](**spec["arguments"])
    cost = network_cost(network, spec["arguments"]["in_channels"], options.patch)
    operations = 2 * cost.macs * PASSES * options.batch * STREAMS * NETWORKS_OF_A_STEP
    words = ["--spec", json.dumps(spec), "--patch", *options.patch, "--batch", options.batch]
    words += ["--device", options.device, "--precision", options.precision]
    reached = json.loads(call(sys.executable, "ours.py", "rate", *words).splitlines()[-1])
    return {"operations": operations, **reached, "seconds": operations / reached["matrix_flops"]}


def report(result: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    lines = [
        "| | seconds (shortest–longest) | against nnU-Net | peak GB | share of the matrix rate |",
        "|---|--:|--:|--:|--:|",
    ]
    bound, rows = result["floor"], result["summary"]
    for variant, one in rows.items():
        name = {"flarecps": "one CPS step", "peer": "four nnU-Net steps"}.get(variant, variant)
        spread = f"{one['seconds']:.3f} ({one['shortest']:.3f}–{one['longest']:.3f})"
        utilisation = bound["seconds"] / one["seconds"]
        lines.append(
            f"| {name} | {spread} | {one['time_against_peer']:.2f} | {one['peak_gb']:.2f} | {utilisation:.0%} |"
        )
    step, peer = rows["flarecps"], rows["peer"]
    hours = step["seconds"] * PAPER_STEPS / 3600
    lines += [
        "",
        f"- Peak memory against four nnU-Net steps' worth ({4 * peer['peak_gb']:.2f} GB): "
        f"{step['peak_gb'] / (4 * peer['peak_gb']):.2f}",
        f"- Floor: {bound['operations'] / 1e12:.2f} TFLOP at {bound['matrix_flops'] / 1e12:.3g} TFLOP/s "
        f"({bound['device']}, product of matrices) = {bound['seconds']:.3f} s; the largest convolution reaches "
        f"{bound['convolution_flops'] / 1e12:.3g} TFLOP/s",
    ]
    if result["settings"]["patch"] == [112, 160, 128]:
        lines.append(
            f"- 1000 × 250 such steps: {hours:.1f} h on this one device, data aside; the paper took {PAPER_HOURS} h on "
            f"{PAPER_GPUS} A100 and does not say whether its batch is per GPU"
        )
    return "\n".join(lines)


def call(python: str, script: str, *words: object) -> str:
    """What the script prints; its errors come through."""
    command = [python, str(HERE / script), *map(str, words)]
    one_thread = {"OMP_NUM_THREADS": "1"}  # on a CPU, seconds are those of the process, all threads together
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | one_thread).stdout


if __name__ == "__main__":
    main()
