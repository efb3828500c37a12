"""Two gloo ranks: gradients are averaged in buckets while the backward pass runs, each sibling's once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from tiny_training import batches, crossed, module_of, trained
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook


class Order(Callback):
    """Writes down, on each rank, when a parameter's gradient was ready and when a bucket of them was sent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[list[list[Any]]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names = {parameter: name for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
        for parameter, name in names.items():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: self.steps[-1].append(["ready", [name]]))

        def send(state, bucket):  # DDP compares the annotations there are with classes, and finds text
            self.steps[-1].append(["sent", [names[one] for one in bucket.parameters()], bucket.buffer().nbytes])
            return allreduce_hook(None, bucket)

        trainer.model.register_comm_hook(None, send)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.steps.append([])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(self.steps))


@pytest.mark.parametrize("in_turn", [False, True])
def test_gradients_are_averaged_in_buckets_within_the_backward_pass(in_turn: bool, tmp_path: Path) -> None:
    module = module_of(3, method=crossed(siblings_in_turn=in_turn))
    sizes = {name: one.nbytes * 2 for name, one in module.named_parameters()}  # in double precision
    strategy = DDPStrategy(start_method="fork", bucket_cap_mb=0.005)  # a tiny network has several then
    trained(module, batches(3, count=3), tmp_path, ranks=2, strategy=strategy, callbacks=[Order(tmp_path)])
    for rank in range(2):
        steps = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(steps) == 3
        for number, step in enumerate(steps):
            ready = [entry[1][0] for entry in step if entry[0] == "ready"]
            sent = [entry for entry in step if entry[0] == "sent"]
            assert sorted(ready) == sorted(sizes), "each parameter's gradient is complete once"
            assert sorted(name for entry in sent for name in entry[1]) == sorted(sizes), "and is sent once"
            assert sum(entry[2] for entry in sent) == sum(sizes.values())
            if number:  # DDP begins with one bucket, and makes others in the order in which gradients came
                assert len(sent) > 3
                before_the_last_gradient = step[: max(i for i, entry in enumerate(step) if entry[0] == "ready")]
                early = [entry for entry in before_the_last_gradient if entry[0] == "sent"]
                assert len(early) >= len(sent) - 1, "all but the last bucket go while the backward pass runs"
                assert {name.split(".")[1] for entry in early for name in entry[1]} == {"0", "1"}
