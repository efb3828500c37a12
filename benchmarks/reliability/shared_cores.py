"""A training step on two threads beside a program that keeps one of two cores busy: threads that spin, or sleep.

    python benchmarks/reliability/shared_cores.py [--rounds 3]

Each round runs both policies in processes of their own, alternately, with and without the neighbour, on the same two
cores. Printed: the median of a step's seconds, of every policy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from flarecps.cli.main import WAITING

STEPS = """
import time, torch
torch.set_num_threads(2)
from flarecps.networks import PlainUNet
network = PlainUNet(1, 3, (8, 16, 32), ((1,) * 3, (2,) * 3, (2,) * 3), ((3,) * 3,) * 3)
images, seconds = torch.randn(2, 1, 16, 16, 16), []
for step in range(5):
    begun = time.perf_counter()
    sum(scale.square().mean() for scale in network(images)).backward()
    seconds.append(time.perf_counter() - begun)
print(sorted(seconds)[2])
"""
BUSY = "while True: pass"


def step_seconds(settings: dict[str, str], cores: set[int], neighbours: int) -> float:
    """The median step of a process with ``settings`` on ``cores``, beside so many busy processes on one of them."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    beside = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(neighbours)]
    try:
        for process in beside:
            os.sched_setaffinity(process.pid, {max(cores)})
        done = subprocess.run(
            [sys.executable, "-c", STEPS],
            env=clean | settings,
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        return float(done.stdout)
    finally:
        for process in beside:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spins", help="measure GOMP_SPINCOUNT with this number, too")
    options = parser.parse_args()
    rounds = options.rounds
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    policies = {"spinning (OpenMP's default)": {}, "waiting (flarecps)": dict(WAITING)}
    if options.spins:
        policies[f"spinning {options.spins} times"] = {"GOMP_SPINCOUNT": options.spins}
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for neighbours in (0, 1):
            for name, settings in policies.items():
                found.setdefault((name, neighbours), []).append(step_seconds(settings, cores, neighbours))
    for (name, neighbours), seconds in found.items():
        print(f"{name}, {neighbours} neighbours: {statistics.median(seconds):.3f} s a step (of {rounds})")


if __name__ == "__main__":
    main()
