"""Between cards: how long the gradients of both siblings take, and a message that is too small to."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from bench import Bench


def cards(bench: Bench) -> dict[str, Any]:
    """All-reduces between all cards (in a rehearsal two processes): of both siblings' gradients, and of 64 bytes."""
    count = 2 if bench.tiny else torch.cuda.device_count()
    size = 2**16 if bench.tiny else 2 * 30_790_000
    with tempfile.TemporaryDirectory() as folder:
        context: Any = torch.multiprocessing.start_processes
        start = "fork" if bench.tiny else "spawn"  # CUDA wants processes that are begun anew
        context(_all_reduced, args=(folder, count, size, bench.device), nprocs=count, start_method=start)
        seconds = json.loads(Path(folder, "found.json").read_text())
    wire = 2 * (count - 1) / count * 4 * size
    return {
        "cards": count,
        "backend": "gloo" if bench.tiny else "nccl",
        "gradients_mb": 4 * size / 1e6,
        "gradients_s": seconds["large"],
        "bus_gb_per_s": wire / seconds["large"] / 1e9,
        "message_us": 1e6 * seconds["small"],
    }


def _all_reduced(rank: int, folder: str, count: int, size: int, device: str) -> None:
    place = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(place)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    found = {}
    for name, numel in (("large", size), ("small", 16)):
        tensor = torch.ones(numel, device=place)
        for _ in range(3):
            dist.all_reduce(tensor)
        _synchronised(place)
        began = time.perf_counter()
        for _ in range(10):
            dist.all_reduce(tensor)
        _synchronised(place)
        found[name] = (time.perf_counter() - began) / 10
    if not rank:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _synchronised(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
