"""The loss on two processes with half of the batch each against one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from flarecps.losses import class_sums, dice_cross_entropy, soft_dice
from flarecps.losses.ranks import rank_count, sum_over_ranks

RANKS, BATCH, CLASSES = 2, 4, 4
ANNOTATED = {
    "all": None,
    "given": torch.ones(BATCH, CLASSES, dtype=torch.bool),
    # ranks 0 and 1 take samples 0, 2 and 1, 3: everything is annotated on rank 0, little on rank 1
    "unequal": torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1], [1, 0, 1, 0]], dtype=torch.bool),
    "none": torch.tensor([[1, 0, 0, 0]] * BATCH, dtype=torch.bool),
}
COUNTED = {
    "all": None,
    # 3 % of rank 0's voxels and 80 % of rank 1's
    "voxels": torch.rand(BATCH, 4, 5, 6, generator=torch.Generator().manual_seed(2))
    < torch.tensor([0.03, 0.8, 0.03, 0.8]).view(BATCH, 1, 1, 1),
    "patches": torch.tensor([True, False, True, False]).view(BATCH, 1, 1, 1),  # none of rank 1's
    "one patch": torch.tensor([False, True, False, False]).view(BATCH, 1, 1, 1),
    "nothing": torch.zeros(BATCH, 1, 1, 1, dtype=torch.bool),
}
CASES = [(batch_dice, annotated, "all") for batch_dice in (True, False) for annotated in ANNOTATED]
CASES += [(batch_dice, "all", counted) for batch_dice in (True, False) for counted in list(COUNTED)[1:]]
CASES += [(batch_dice, "unequal", "voxels") for batch_dice in (True, False)]


def problem(annotated: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights of a linear network, its inputs and the labels (none of them of an unannotated class)."""
    generator = torch.Generator().manual_seed(11)
    weights = torch.randn(CLASSES, 3, generator=generator)
    inputs = torch.randn(BATCH, 3, 4, 5, 6, generator=generator)
    labels = torch.randint(0, CLASSES, (BATCH, 4, 5, 6), generator=generator)
    labels[0][labels[0] == 2] = 0
    if annotated is not None:
        for sample, known in enumerate(annotated):
            labels[sample][~known[labels[sample]]] = 0
    return weights, inputs, labels


def loss_and_gradient(
    batch_dice: bool, known_name: str, counted_name: str, rank: int = 0, ranks: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """What one rank computes from every ``ranks``-th sample."""
    annotated, counted = ANNOTATED[known_name], COUNTED[counted_name]
    weights, inputs, labels = problem(annotated)
    weights.requires_grad_()
    logits = torch.einsum("kc,bc...->bk...", weights, inputs[rank::ranks])
    known = None if annotated is None else annotated[rank::ranks]
    mask = None if counted is None else counted[rank::ranks]
    loss = dice_cross_entropy(logits, labels[rank::ranks], batch_dice, known, mask)
    loss.backward()
    assert weights.grad is not None
    return loss.detach(), weights.grad


def compute_share(rank: int, folder: str) -> None:
    """One process's work: everything it found, written to ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    found = {str(case): loss_and_gradient(*case, rank, RANKS) for case in CASES}
    _, inputs, labels = problem(None)
    sums = class_sums(inputs[rank::RANKS], labels[rank::RANKS] % 3)
    dice = soft_dice(sums.overlap, sums.predicted, sums.present, batch_dice=True)
    torch.save({"losses": found, "dice": dice, "ranks": rank_count()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(compute_share, args=(str(folder),), nprocs=RANKS)  # type: ignore[attr-defined]
    return [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_average_over_ranks_is_the_whole_batch(shares: list[dict], case: tuple[bool, str, str]) -> None:
    """DDP averages gradients, so the average of the ranks' gradients must be the whole batch's."""
    loss, gradient = loss_and_gradient(*case)
    found = [share["losses"][str(case)] for share in shares]
    torch.testing.assert_close(torch.stack([one[0] for one in found]).mean(0), loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.stack([one[1] for one in found]).mean(0), gradient, rtol=1e-5, atol=1e-6)


def test_batch_dice_is_the_same_on_every_rank(shares: list[dict]) -> None:
    _, inputs, labels = problem(None)
    sums = class_sums(inputs, labels % 3)
    whole = soft_dice(sums.overlap, sums.predicted, sums.present, batch_dice=True)
    assert torch.equal(shares[0]["dice"], shares[1]["dice"])
    torch.testing.assert_close(shares[0]["dice"], whole)
    assert [share["ranks"] for share in shares] == [RANKS, RANKS]


def test_one_process_sums_nothing() -> None:
    values = torch.tensor([1.0, 2.0])
    assert rank_count() == 1
    assert sum_over_ranks(values) is values
