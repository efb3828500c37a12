"""``flarecps import``: a trained model of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from flarecps.errors import visible


def import_model(
    folder: Path,
    out: Path,
    *,
    from_: Literal["nnunet"],
    folds: list[str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    plan: Path | None = None,
) -> int:
    """Make a checkpoint of this program from a model that nnU-Net v2 trained.

    The checkpoint is for 'flarecps segment' and for 'flarecps fit --init'. It keeps nnU-Net's conventions: CT is
    clipped before it is resampled, and voxels are taken in the order of the file unless the model's reader reorients.
    Nothing in the folder is trusted: files that hold more than tensors, plain types and NumPy scalars are refused.

    Args:
        folder: a model folder of nnU-Net v2, such as nnUNetTrainer__nnUNetPlans__3d_fullres
        out: the .ckpt file to write
        from_: the program that trained it
        folds: one fold, for sibling 1, or two, for siblings 1 and 2; by default the first that is there
        checkpoint: the file of a fold to take, such as checkpoint_best.pth
        plan: also write the model's plan to this .json file, for 'flarecps preprocess'
    """
    from flarecps.errors import PlanError
    from flarecps.interop.nnunet_import import import_from_nnunet
    from flarecps.planning.plan import write_plan

    if plan is not None and plan.suffix != ".json":
        raise PlanError(f"--plan {plan}: expected the name of a .json file to write")
    imported = import_from_nnunet(folder, out, folds, checkpoint)
    if plan is not None:
        plan.parent.mkdir(parents=True, exist_ok=True)
        write_plan(plan, imported.plan)
    found = imported.plan
    kind = type(imported.networks[0]).__name__
    folds_of = " and ".join(imported.folds)
    lines = [f"{out}: fold {folds_of}, {found.dimensions}D {kind}, {found.class_count - 1} structures"]
    if imported.other_folds:
        left = ", ".join(imported.other_folds)
        lines.append(f"left out: fold {left} (import each into a file, segment takes several)")
    axes = f" --mirror-axes '{list(imported.mirror_axes)}'" if imported.mirror_axes else ""
    lines.append(f"as nnU-Net segments: flarecps segment {out} SCANS LABELS --step 0.5 --accumulate logits{axes}")
    print(visible("\n".join(lines)))
    return 0
