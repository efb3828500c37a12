"""What ``import flarecps`` offers, and what it costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import flarecps

HEAVY = ("torch", "numpy", "lightning", "torchio", "SimpleITK", "nibabel", "scipy", "matplotlib")


def test_importing_the_package_loads_no_library() -> None:
    code = f"import sys, flarecps; dir(flarecps); print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(set(flarecps.__all__) - {"__version__"}))
def test_everything_offered_is_the_rooms_own(name: str) -> None:
    found = getattr(flarecps, name)
    assert found is getattr(importlib.import_module(found.__module__), name)
    assert name in dir(flarecps)


def test_type_checkers_are_told_of_the_same_names() -> None:
    """The imports under TYPE_CHECKING, the table of homes and ``__all__`` say one thing."""
    (block,) = (one for one in ast.parse(Path(flarecps.__file__).read_text()).body if isinstance(one, ast.If))
    told = {
        (alias.name, (one.module or "").removeprefix("flarecps."))
        for one in block.body
        if isinstance(one, ast.ImportFrom)
        for alias in one.names
    }
    assert told == set(flarecps._HOMES.items())
    assert {name for name, _ in told} == set(flarecps.__all__) - {"__version__"}


def test_another_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'segmenter'; it offers"):
        _ = flarecps.segmenter
    with pytest.raises(ImportError):
        exec("from flarecps import Segmentor")
