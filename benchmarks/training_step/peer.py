"""The other side of `compare.py`: nnU-Net v2's network, loss and optimiser. Runs in the peers' environment.

    python peer.py check EXCHANGE.pt ANSWER.pt [EXCHANGE.pt ANSWER.pt ...]
    python peer.py measure --patch 112 160 128 --batch 2 --device cuda --precision bf16

`check` computes with nnU-Net's classes what `ours.py exchange` computed with ours. `measure` prints one line of JSON:
time and peak memory of training steps of a single network, made as nnU-Net's trainer makes them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

STEPS_A_BLOCK = 4  # as many patch passes as one step of CPS with as many unlabelled as labelled patches


def main() -> None:
    """Answer an exchange, or print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["check", "measure"])
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--spec", type=json.loads, default={}, help="the network: class and topology, as JSON")
    parser.add_argument("--patch", type=int, nargs="+")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["32", "bf16", "16"], default="32")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if options.what == "check":
        for exchange, answer in zip(options.files[::2], options.files[1::2], strict=True):
            torch.save(check(torch.load(exchange, weights_only=True)), answer)
    else:
        print(json.dumps(measure(options)))


def check(given: dict[str, Any]) -> dict[str, Any]:
    """Parameter count, logits at every scale and, where labels are given, the loss, with the weights of the other
    side."""
    network = build(given["network"], given["arguments"]).to(given["images"].dtype)
    parameters = dict(network.named_parameters(remove_duplicate=False))
    left = {id(parameter): name for name, parameter in network.named_parameters()}
    with torch.no_grad():
        for name, value in given["weights"].items():
            parameters[name].copy_(value)
            del left[id(parameters[name])]
        for name in left.values():  # biases that the paper's network has not
            if not name.endswith(".bias") or name.split(".")[1] not in ("transpconvs", "seg_layers"):
                raise SystemExit(f"no weights were given for {name}")
            parameters[name].zero_()
    answer: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in network.parameters())}
    with torch.no_grad():
        answer["logits"] = network(given["images"])
        if given.get("labels"):
            answer["loss"] = loss_of(len(answer["logits"]), given["batch_dice"])(answer["logits"], given["labels"])
    return answer


def build(name: str, arguments: dict[str, Any]) -> nn.Module:
    """nnU-Net's network of this topology, as its plans describe it."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    stages, dimensions = len(arguments["features"]), len(arguments["kernels"][0])
    convolution, norm = {2: (nn.Conv2d, nn.InstanceNorm2d), 3: (nn.Conv3d, nn.InstanceNorm3d)}[dimensions]
    if name == "PlainUNet":
        kind, encoder, decoder = PlainConvUNet, "n_conv_per_stage", arguments["convolutions"]
        depth = [arguments["convolutions"]] * stages
    else:
        kind, encoder, decoder = ResidualEncoderUNet, "n_blocks_per_stage", arguments["decoder_convolutions"]
        depth = arguments["blocks_per_stage"]
    return kind(
        arguments["in_channels"],
        stages,
        arguments["features"],
        convolution,
        arguments["kernels"],
        arguments["strides"],
        num_classes=arguments["classes"],
        n_conv_per_stage_decoder=[decoder] * (stages - 1),
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **{encoder: depth},
    )


def loss_of(scales: int, batch_dice: bool) -> Any:
    """nnU-Net's Dice + cross-entropy with deep supervision, as its trainer builds it for one GPU."""
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
    weights = np.array([1 / 2**scale for scale in range(scales)])
    weights[-1] = 0
    return DeepSupervisionWrapper(loss, weights / weights.sum())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of blocks of four steps, and peak memory."""
    torch.backends.cudnn.benchmark = True  # as nnU-Net's run_training sets it
    torch.manual_seed(0)
    device = torch.device(options.device)
    network = build(options.spec["network"], options.spec["arguments"]).to(device).train()
    batches = [random_batch(network, options, device) for _ in range(STEPS_A_BLOCK)]
    loss = loss_of(len(batches[0][1]), batch_dice=True)
    step = torch.compile(network) if options.compile else network
    if options.compile:
        loss.loss.dc = torch.compile(loss.loss.dc)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, weight_decay=3e-5, momentum=0.99, nesterov=True)
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "16")
    dtype = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}[options.precision]
    seconds, losses = [], []
    resident = resident_gb()
    for block in range(options.warm_up + options.blocks):
        start = now(device)
        for images, targets in batches:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext():
                value = loss(step(images), targets)
            scaler.scale(value).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), 12)
            scaler.step(optimizer)
            scaler.update()
            losses.append(value.detach().cpu().item())
        if block >= options.warm_up:
            seconds.append(now(device) - start)
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else highest_gb() - resident
    return {
        "side": "nnunetv2",
        "seconds": seconds,
        "peak_gb": peak,
        "loss": losses[-1],
        "torch": torch.__version__,
        "steps": STEPS_A_BLOCK,
    }


def random_batch(network: nn.Module, options: argparse.Namespace, device: torch.device) -> tuple[Any, list[Any]]:
    """Images of noise, and labels of every scale."""
    arguments = options.spec["arguments"]
    images = torch.randn(options.batch, arguments["in_channels"], *options.patch, device=device)
    size, sizes = np.array(options.patch), []
    for stride in arguments["strides"][:-1]:
        size = size // np.array(stride)
        sizes.append(tuple(int(edge) for edge in size))
    return images, [
        torch.randint(0, arguments["classes"], (options.batch, 1, *edges), device=device).float() for edges in sizes
    ]


def now(device: torch.device) -> float:
    """The time when everything asked for so far is done; on a CPU this process's own, whatever runs beside it."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def resident_gb() -> float:
    """Main memory this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def highest_gb() -> float:
    """The most main memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
