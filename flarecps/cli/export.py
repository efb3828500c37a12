"""``flarecps export``: a trained model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from flarecps.errors import visible


def export(
    checkpoint: Path,
    out: Path,
    *,
    to: Literal["nnunet", "onnx"],
    sibling: Literal["1", "2", "both"] = "1",
    mirror_axes: list[int] | None = None,
    trust: list[str] | None = None,
) -> int:
    """Write a trained model so that another program can run it.

    nnunet: a model folder of nnU-Net v2, for nnUNetv2_predict_from_modelfolder -m OUT and whatever else reads such a
    folder; it holds plans.json, dataset.json and fold_0/checkpoint_final.pth. What differs between the two programs
    is in docs/nnunet.md. onnx: the network alone, from patches to logits; spacing, intensities and labels are in the
    file's metadata. Needs the packages onnx, onnxruntime and onnxscript.

    Args:
        checkpoint: a .ckpt file written by 'flarecps fit'
        out: the folder to write (nnunet), or the .onnx file
        to: the program it is for
        sibling: which of the two networks; both become fold 0 and fold 1, which nnU-Net averages (nnunet only)
        mirror_axes: the patch's axes that nnU-Net may mirror at test time, such as "[0, 1, 2]": those that the training
            mirrored (data.mirror_axes); none by default
        trust: classes of your own networks that the checkpoint may name, such as my_lab.nets.MyUNet; their code runs.
            For onnx: nnU-Net knows its own networks only
    """
    from flarecps.checkpoint import read_checkpoint
    from flarecps.errors import ConfigError

    if to == "onnx":
        if sibling == "both" or mirror_axes:
            raise ConfigError("an ONNX file holds one network and no mirroring: leave --mirror-axes out, choose one")
        from flarecps.interop.onnx_export import export_to_onnx

        difference = export_to_onnx(read_checkpoint(checkpoint, trust or ()), out, sibling)
        said = f"{out}: sibling {sibling}; ONNX Runtime and PyTorch differ by at most {difference:.1e} of the logits"
        print(visible(said))
        return 0
    from flarecps.interop.nnunet_export import export_to_nnunet

    model = read_checkpoint(checkpoint, trust or ())
    written = export_to_nnunet(model, out, sibling, mirror_axes or ())
    for path in written:
        print(visible(str(path)))
    folds = " ".join(str(fold) for fold in range(len(written)))
    print(visible(f"nnUNetv2_predict_from_modelfolder -i SCANS -o LABELS -m {out} -f {folds}"))
    return 0
