"""What classes take, read from their source: nothing is imported, so that a command line is answered at once."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

from docstring_parser import parse

PACKAGE = Path(__file__).resolve().parents[1]
CLASSES = {"data": ("data/datamodule.py", "ScanDataModule"), "model": ("training/module.py", "SegmentationModule")}


@cache
def signature(file: Path, owner: str, function: str = "__init__") -> dict[str, tuple[str, str]]:
    """Each argument of a class's function: its default as it is written, "" without one, and its line of help.

    Of a class without that function, such as a dataclass, its annotated attributes. Empty where the file is not there
    or holds no such class: then nothing can be said of it.
    """
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return {}
    for one in tree.body:
        if isinstance(one, ast.ClassDef) and one.name == owner:
            explained = {arg.arg_name: arg.description or "" for arg in parse(ast.get_docstring(one) or "").params}
            return {name: (default, explained.get(name, "")) for name, default in _arguments(one, function).items()}
    return {}


def _arguments(owner: ast.ClassDef, function: str) -> dict[str, str]:
    fields = {}
    for part in owner.body:
        if isinstance(part, ast.FunctionDef) and part.name == function:
            if part.args.kwarg is not None:
                return {}
            named = [*part.args.args[1:], *part.args.kwonlyargs]
            defaults = [*part.args.defaults, *part.args.kw_defaults]
            written = ["" if value is None else ast.unparse(value) for value in defaults]
            written = [""] * (len(named) - len(written)) + written
            return {arg.arg: default for arg, default in zip(named, written, strict=True)}
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            fields[part.target.id] = "" if part.value is None else ast.unparse(part.value)
    return fields if any("dataclass" in ast.unparse(one) for one in owner.decorator_list) else {}


def known_options(part: str) -> dict[str, tuple[str, str]]:
    """The arguments of ``data``, ``model`` or ``trainer``; see ``signature``."""
    return signature(*((PACKAGE / CLASSES[part][0], CLASSES[part][1]) if part in CLASSES else (trainer(), "Trainer")))


def trainer() -> Path:
    """The file of Lightning's Trainer, which may not be there."""
    found = importlib.util.find_spec("lightning")  # finds the package and imports nothing
    return Path(found.origin if found and found.origin else "").parent / "pytorch" / "trainer" / "trainer.py"


@cache
def offered(module: str) -> dict[str, Path]:
    """The classes and functions that a package of this program offers, by name: the file each comes from.

    Empty for a module of another program.
    """
    first, *rest = module.split(".")
    folder = PACKAGE.joinpath(*rest)
    if first != PACKAGE.name or not (folder / "__init__.py").is_file():
        return {}
    found: dict[str, Path] = {}
    for one in ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(one, ast.ImportFrom) and one.module:
            file = PACKAGE.joinpath(*one.module.split(".")[1:]).with_suffix(".py")
            found |= {alias.asname or alias.name: file for alias in one.names}
    return found
