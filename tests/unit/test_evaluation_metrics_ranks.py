"""The torchmetrics classes on two processes with unequal numbers of scans against one process with all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import Metric

from flarecps.anatomy import organs_of
from flarecps.evaluation.metrics import (
    AverageSurfaceDistance,
    DiceScore,
    HausdorffDistance95,
    NormalisedSurfaceDice,
    RelativeVolumeError,
    VolumeError,
)

ORGANS = organs_of({"liver": 1, "aorta": 2, "thing": 3})
KINDS: tuple[type[Metric], ...] = (
    AverageSurfaceDistance, DiceScore, HausdorffDistance95, NormalisedSurfaceDice, RelativeVolumeError, VolumeError,
)  # fmt: skip
SHARES = {"four and one": ([0, 1, 2, 3], [4]), "all and none": ([0, 1, 2, 3, 4], [])}


def values_of(numbers: list[int]) -> dict[str, torch.Tensor]:
    """What this process's metrics say after the scans of these numbers."""
    found = {}
    for kind in KINDS:
        metric = kind(organs=ORGANS)
        for number in numbers:
            generator = torch.Generator().manual_seed(number)
            prediction, reference = (torch.randint(0, 4 if number % 2 else 3, (4, 6, 7), generator=generator)
                                     for _ in range(2))  # fmt: skip
            metric.update(prediction, reference, (2.0, 1.0, 1.0))
        found[kind.__name__] = metric.compute()
    return found


def work(rank: int, folder: str) -> None:
    """One process's share, written to ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save({name: values_of(shares[rank]) for name, shares in SHARES.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*was called before the ``update``")  # a rank without scans, on purpose
def test_unequal_shares_give_the_whole(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]  # torch's stubs lack it
    whole = values_of([0, 1, 2, 3, 4])
    assert all(values.isfinite().all() for values in whole.values())
    for rank in range(2):
        for share, found in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            for name, values in found.items():
                torch.testing.assert_close(values, whole[name], rtol=1e-14, atol=0, msg=f"{share}, {name}")
