"""Every command that README, the documentation, configs, job scripts and notebooks name exists with these options."""

from __future__ import annotations

import ast
import io
import re
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest

from flarecps.cli.main import COMMANDS, LIGHTNING_COMMANDS, main
from flarecps.verbosity import EXPLAINED

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    {
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "Makefile")),
        *(path for name in ("docs/*.md", "docker/*", "slurm/*", "configs/*.yaml") for path in REPOSITORY.glob(name)),
        *(path for name in ("notebooks/*.ipynb", "benchmarks/**/*.md") for path in REPOSITORY.glob(name)),
    }
)
OPTION = re.compile(r"(?<![\w-])--[a-zA-Z][\w.-]*")
NAME = re.compile(rf"flarecps (postprocess (?:determine|apply)|{'|'.join(COMMANDS)})\b([^\n`|;]*)")
NESTED = re.compile(r"--(model|data|trainer)\.\w+\.")  # of a class that a config names: no help lists them


@cache
def options(command: str) -> frozenset[str]:
    """The options of a command's help."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")  # or an option is broken at its hyphens
        with redirect_stdout(printed), pytest.raises(SystemExit, match="0"):
            main([*command.split(), "--help-all" if command in LIGHTNING_COMMANDS else "--help"])
    return frozenset(OPTION.findall(printed.getvalue())) | {
        "--help-all",
        *(EXPLAINED if command in LIGHTNING_COMMANDS else ()),
    }


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Each command with its options; what follows ``--`` or ``&&`` is another program's."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = []
    for name, rest in NAME.findall(joined):
        own = re.sub(r'"[^"]*"', "", re.split(r" -- |&&|#", rest)[0])  # a quoted value is another program's, too
        found.append((name, [option.rstrip(".") for option in OPTION.findall(own) if not NESTED.match(option)]))
    return found


def test_documents_name_only_what_there_is() -> None:
    wrong, seen = [], 0
    for path in DOCUMENTS:
        if not path.is_file():
            continue
        for command, named in commands(path.read_text(encoding="utf-8")):
            asked = "fit" if command in LIGHTNING_COMMANDS else command
            for option in named:
                seen += 1
                if option not in options(asked):
                    wrong.append(f"{path.relative_to(REPOSITORY)}: flarecps {command} has no {option}")
    assert not wrong
    assert seen > 100


def test_the_next_commands_that_are_printed_exist() -> None:
    """Every ``next_command("fit", ..., "--data.store", ...)`` of the program, read from its source."""
    wrong, seen = [], 0
    for path in (REPOSITORY / "flarecps" / "cli").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "next_command":
                words = [str(one.value) for one in ast.walk(call) if isinstance(one, ast.Constant)]
                if words and words[0] in COMMANDS:
                    seen += 1
                    named = {one for one in words if one.startswith("--")} - options(words[0])
                    wrong += [f"{path.name}: {words[0]} {one}" for one in named]
    assert not wrong
    assert seen >= 8
