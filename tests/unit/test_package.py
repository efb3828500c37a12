"""What ``import flarecps`` offers, and what it costs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flarecps

ROOT = Path(__file__).resolve().parents[2]
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


def python_outside_of_the_package() -> Iterator[tuple[str, str]]:
    """What users copy or run: benchmarks, notebooks, and the code blocks of README and docs."""
    for path in sorted(ROOT.glob("benchmarks/**/*.py")):
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield str(path.relative_to(ROOT)), "\n".join(code)
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))):
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)):
            yield f"{path.relative_to(ROOT)}, block {number}", block


@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in python_outside_of_the_package()])
def test_what_is_imported_from_the_package_exists(code: str) -> None:
    for statement in ast.walk(ast.parse(code)):
        if not isinstance(statement, ast.ImportFrom) or not (statement.module or "").startswith("flarecps"):
            continue
        module = importlib.import_module(statement.module or "")
        for alias in statement.names:
            is_module = hasattr(module, "__path__") and importlib.util.find_spec(f"{module.__name__}.{alias.name}")
            assert is_module or hasattr(module, alias.name), f"{statement.module} has no {alias.name}"
