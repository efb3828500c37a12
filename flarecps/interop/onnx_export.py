"""A sibling's network as an ONNX file: a normalised patch in, logits at full resolution out."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from flarecps import __version__
from flarecps.atomic import atomic_path
from flarecps.checkpoint import FinestScale, TrainedModel
from flarecps.errors import CheckpointError, ConfigError
from flarecps.planning.plan import Plan, plan_to_json

INPUT, OUTPUT = "patch", "logits"
OPSET = 18
TOLERANCE = 1e-4  # largest difference between ONNX Runtime and PyTorch, as a share of the largest logit
CHECKED_BATCHES = (1, 3)
KEPT = ("labels", "channels", "spacing_mm", "axis_order", "patch_voxels", "intensity", "conventions", "dimensions")


def export_to_onnx(model: TrainedModel, out: Path | str, sibling: Literal["1", "2"] = "1") -> float:
    """Write the network and return how far ONNX Runtime's logits are from PyTorch's, as a share of the largest.

    The file's input ``patch`` is (batch, channel, *patch), float32 and normalised by the plan; its output ``logits``
    (batch, class, *patch). The batch is free, the patch is the plan's. The plan's essentials are metadata, each a JSON
    text. Nothing is written when the difference exceeds 1e-4. Raises CheckpointError for that, a wrong name, a file
    that exists or a sibling that does not; ConfigError when the packages of the extra ``onnx`` are missing.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it, and says so less clearly
    except ImportError as error:
        raise ConfigError(
            f"--to onnx needs the package {error.name}: pip install onnx onnxruntime onnxscript"
        ) from error
    onnxruntime.disable_telemetry_events()  # nothing is told to anybody
    out = Path(out)
    if out.suffix != ".onnx":
        raise CheckpointError(f"{out}: expected the name of an .onnx file to write")
    if out.exists():
        raise CheckpointError(f"{out}: exists already; name another file, or remove it first")
    number = int(sibling) - 1
    if number >= len(model.siblings):
        raise CheckpointError(f"{model.path}: holds one network; use --sibling 1")
    network = model.siblings[number]
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as partial:
        onnx_model = _converted(network, model.plan)
        onnx.helper.set_model_props(onnx_model, _onnx_metadata(model.plan, sibling))
        onnx.save_model(onnx_model, partial)
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        difference = max(_difference(session, network, model.plan, batch) for batch in CHECKED_BATCHES)
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"{out}: not written: ONNX Runtime's logits differ from PyTorch's by {difference:.1e} of the largest, "
                f"expected at most {TOLERANCE:g}; another version of onnxruntime may do better"
            )
    return difference


def _onnx_metadata(plan: Plan, sibling: str) -> dict[str, str]:
    """What whoever runs the file must know, each entry a JSON text; spatial numbers are in network order."""
    content = plan_to_json(plan)
    kept = {f"flarecps.{name}": json.dumps(content[name]) for name in KEPT if name in content}
    return kept | {"flarecps.version": json.dumps(__version__), "flarecps.sibling": json.dumps(int(sibling))}


def _converted(network: FinestScale, plan: Plan) -> Any:
    """The ONNX model, with a batch of any size."""
    example = torch.zeros(2, len(plan.channels), *plan.patch_voxels)  # a batch of 1 would be taken for a constant
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own innards
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            network.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _difference(session: Any, network: FinestScale, plan: Plan, batch: int) -> float:
    generator = torch.Generator().manual_seed(batch)
    patch = torch.randn(batch, len(plan.channels), *plan.patch_voxels, generator=generator)
    with torch.no_grad():
        expected = network(patch).numpy()
    (found,) = session.run([OUTPUT], {INPUT: patch.numpy()})
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())
