"""Several processes: provably equal weights, exact means over unequal shares, and an end when one of them fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import Callback, LightningModule, Trainer
from stores import TinyStores, fit_words
from tiny_training import batches, module_of, trained

from flarecps.training.callbacks.ranks_in_sync import RanksInSync
from flarecps.training.callbacks.validation_results import PatchScores
from flarecps.training.ranks import digest, leave_group
from flarecps.training.validation import OrganScores, organ_dsc

LABELS = {"background": 0, "liver": 1, "spleen": 2}
NO_HANG_S = 300.0  # enough for two processes to start and fail; waiting for a lost rank would take half an hour


class Drift(Callback):
    """Changes one bit of one weight of rank 1 in epoch 1."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 1 and trainer.current_epoch == 1:
            with torch.no_grad():
                weight = next(pl_module.siblings[1].parameters()).view(-1)
                weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf, dtype=weight.dtype))


class FailingRank(Callback):
    """Raises on rank 1 in epoch 1, while rank 0 goes on to its next all-reduce."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 1 and trainer.current_epoch == 1:
            raise RuntimeError("the cosmic ray of rank 1")


def test_ranks_stay_in_sync(tmp_path: Path) -> None:
    trained(module_of(3), batches(3), tmp_path, epochs=3, ranks=2, callbacks=[RanksInSync()])


def test_one_bit_that_differs_on_one_rank_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="epoch 1: the weights of rank 1 are not those of rank 0"):
        trained(module_of(3), batches(3), tmp_path, epochs=3, ranks=2, callbacks=[Drift(), RanksInSync()])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_digest_sees_every_bit_and_the_order(dtype: torch.dtype) -> None:
    weights = [torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).to(dtype), torch.ones(3, dtype=dtype)]
    plain = digest(weights)
    assert digest([weight.clone() for weight in weights]) == plain
    for tensor in range(2):
        other = [weight.clone() for weight in weights]
        flat = other[tensor].view(-1)
        flat[1] = -flat[1]
        assert digest(other) != plain
    assert digest(weights[::-1]) != plain


# -- unequal shares


def case(number: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Labels of a scan by three sources, and the reference."""
    generator = torch.Generator().manual_seed(number)
    shape = (3 + number, 4, 5)
    names = ("sibling_1", "sibling_2", "average")
    return {name: torch.randint(0, 3, shape, generator=generator) for name in names}, torch.randint(
        0, 3 if number else 2, shape, generator=generator
    )


def patch(number: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Logits of two siblings, labels and annotated classes of a validation patch."""
    generator = torch.Generator().manual_seed(number)
    logits = [torch.randn(1, 3, 6, 5, generator=generator) for _ in range(2)]
    labels = torch.randint(0, 3, (1, 6, 5), generator=generator)
    annotated = torch.ones(1, 3, dtype=torch.bool)
    if number == 2:
        annotated[0, 1] = False
        labels[labels == 1] = 0
    return logits, labels, annotated


def scores_of(numbers: list[int]) -> dict[str, Any]:
    organs, patches = OrganScores(LABELS, 2), PatchScores(LABELS, 3, 2)
    for number in numbers:
        organs.update(organ_dsc(*case(number), organs.organs))
        patches.update(*patch(number))
    return {"organs": organs.compute(), "patches": patches.compute()}


def score_share(rank: int, folder: str) -> None:
    """Rank 0 has cases 0, 1, 2, and rank 1 has case 3."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(scores_of([[0, 1, 2], [3]][rank]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_unequal_shares_give_the_exact_mean(tmp_path: Path) -> None:
    mp.start_processes(score_share, args=(str(tmp_path),), nprocs=2, start_method="fork")  # type: ignore[attr-defined]
    shared = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert shared[0] == shared[1]
    whole = scores_of([0, 1, 2, 3])
    for kind in ("organs", "patches"):
        assert shared[0][kind] == pytest.approx(whole[kind], rel=1e-12)
    liver = [_dsc(*(array == 1 for array in (case(n)[0]["average"], case(n)[1]))) for n in range(4)]
    assert whole["organs"][("average", "liver")] == pytest.approx(sum(liver) / 4)


def _dsc(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))


def test_patch_scores_are_those_of_one_batch() -> None:
    """Against the training loss over all patches together, and DSC counted by hand; class 1 is unknown in patch 2."""
    from flarecps.losses import dice_cross_entropy

    found = scores_of([0, 1, 2, 3])["patches"]
    parts = [patch(number) for number in range(4)]
    labels, annotated = (torch.cat([part[i] for part in parts]) for i in (1, 2))
    for sibling in range(2):
        logits = torch.cat([part[0][sibling] for part in parts])
        known = [number for number in range(4) if annotated[number, 1]]
        hard = logits.argmax(1)
        liver = _dsc(hard[known] == 1, labels[known] == 1)
        assert found[f"validation_patches/dsc/sibling_{sibling + 1}/liver"] == pytest.approx(liver)
        spleen = _dsc(hard == 2, labels == 2)
        assert found[f"validation_patches/dsc/sibling_{sibling + 1}/spleen"] == pytest.approx(spleen)
        assert found[f"validation_patches/dsc/sibling_{sibling + 1}/mean"] == pytest.approx((liver + spleen) / 2)
        loss = float(dice_cross_entropy(logits, labels, batch_dice=True, annotated=annotated))
        assert found[f"validation_patches/loss/sibling_{sibling + 1}"] == pytest.approx(loss, rel=1e-5)


# -- the end


def test_a_failing_rank_ends_the_job_with_its_message(tiny_stores: TinyStores, tmp_path: Path) -> None:
    """At the command line, where the second process is Lightning's to start: no rank waits for the one that is gone."""
    more = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.global_batch", "{labelled: 2, unlabelled: 2}"]
    more += ["--trainer.callbacks", "[{class_path: test_ranks.FailingRank}]"]
    words = fit_words("phantom_3d.yaml", tiny_stores, tmp_path / "run", *more, epochs=1000)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", "flarecps", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=NO_HANG_S,
    )
    assert done.returncode != 0
    assert "the cosmic ray of rank 1" in done.stderr


def test_a_gloo_group_is_left_and_without_one_nothing_happens(tmp_path: Path) -> None:
    leave_group()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    leave_group()
    assert not dist.is_initialized()
