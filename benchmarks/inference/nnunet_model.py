"""A flarecps checkpoint as a model that both sides load: FOLDER/ours.ckpt, and weights and plans for nnU-Net v2.

python nnunet_model.py CHECKPOINT FOLDER [--classes 14]

With more classes than the checkpoint has, the new ones' rows of the output layer are means of background's and the
first structure's: their logits lie between those two, so they are never the highest and labels stay the same, while
every class costs what a real one costs. Biases that nnU-Net v2's network has and ours has not are zeros there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flarecps.checkpoint import ENTRY, model_entry, read_checkpoint
from flarecps.interop.nnunet_plans import nnunet_dataset_json, plan_to_nnunet
from flarecps.interop.nnunet_weights import nnunet_state_dict
from flarecps.networks.unet import PlainUNet
from flarecps.planning.plan import Plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    model = read_checkpoint(options.checkpoint)
    plan, network = with_classes(model.plan, model.siblings[0].network, options.classes or model.plan.class_count)
    state = {f"siblings.0.{key}": value for key, value in network.state_dict().items()}
    entry = model_entry(plan, torch.nn.ModuleList([network]), model.epoch)
    torch.save({"state_dict": state, ENTRY: entry}, options.folder / "ours.ckpt")
    torch.save(nnunet_state_dict(network), options.folder / "nnunet.pth")
    plans = plan_to_nnunet(plan, network)
    plans["image_reader_writer"] = "NibabelIOWithReorient"  # the reader of the figures
    (options.folder / "plans.json").write_text(json.dumps(plans, indent=1))
    (options.folder / "dataset.json").write_text(json.dumps(nnunet_dataset_json(plan)))


def with_classes(plan: Plan, network: Any, classes: int) -> tuple[Plan, PlainUNet]:
    """The plan and network with more classes, none of the new ones ever the highest."""
    extra = range(plan.class_count, classes)
    wider = PlainUNet(**(network.arguments | {"classes": classes}))
    state = dict(network.state_dict())
    for key in [key for key in state if key.startswith("heads.")]:
        low, high = state[key][0], state[key][1]
        shares = torch.linspace(0.3, 0.7, max(len(extra), 1))
        state[key] = torch.cat([state[key], *(torch.lerp(low, high, share)[None] for share in shares[: len(extra)])])
    wider.load_state_dict(state)
    return replace(plan, labels=plan.labels | {f"structure {label}": label for label in extra}), wider


if __name__ == "__main__":
    main()
