"""Triton's kernels become machine code for the cards that are meant, without one; where Triton is installed."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="Triton is not installed (pip install triton)"
    ),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets (TRITON_INTERPRET)"),
]
POINTERS = {
    "*bf16": ("x", "y", "gradient", "out", "logits"),
    "*u8": ("labels", "joined", "trusted"),
    "*fp32": (
        "means", "squares", "mean", "inverse", "weight", "bias", "products", "sums",
        "entropies", "of_entropy", "of_overlap", "of_predicted",
    ),
    "fp32": ("eps", "slope"),
}  # fmt: skip
KINDS = {name: kind for kind, names in POINTERS.items() for name in names}  # all other arguments are numbers
TILE = {"BLOCK_ROWS": 128, "BLOCK_CHANNELS": 32}
CLASSES = {"BLOCK_VOXELS": 128, "BLOCK_CLASSES": 16}
KERNELS: list[tuple[str, str, dict[str, Any]]] = [
    *(("norm_triton", name, TILE) for name in ("_moments", "_applied", "_gradient_sums", "_input_gradient")),
    ("norm_triton", "_merged", {"BLOCK_STRETCHES": 256, "BLOCK_CHANNELS": 16}),
    *(
        ("class_sums_triton", name, CLASSES | {"HAS_JOINED": whole, "HAS_TRUSTED": whole})
        for name in ("_summed", "_differentiated")
        for whole in (False, True)
    ),
]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("module", "name", "constants"), KERNELS, ids=lambda one: one if isinstance(one, str) else "")
def test_a_kernel_becomes_machine_code(
    module: str, name: str, constants: dict[str, Any], capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an A100 and an H100: what ptxas, which is part of Triton, refuses would stop the first run there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(importlib.import_module(f"flarecps.kernels.{module}"), name)
    names = kernel.arg_names
    signature = {one: "constexpr" if one in constants else KINDS.get(one, "i32") for one in names}
    source = ASTSource(kernel, signature, {(names.index(one),): value for one, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    assert f"sm_{capability}" in compiled.asm["ptx"]
    assert "atom" not in compiled.asm["ptx"], "sums are merged in a fixed order"
