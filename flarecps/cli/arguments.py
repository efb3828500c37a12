"""A command line from a typed function: its signature says which words are positional, its docstring explains them.

The rule, so that ``def plan(dataset: Path, *, out: Path, gpu_memory_gb: float = 8.0)`` reads
``flarecps plan DATASET --out OUT [--gpu-memory GB]``:

- a parameter without default is positional; a keyword-only one (after ``*``) is an option that must be given;
- a parameter with default is an option; a positional-only one (before ``/``) is positional and may be left out;
- a positional list takes one or more words;
- a unit at the end of a name (``_gb``, ``_mm``) becomes the option's placeholder; underscores become dashes;
- a bool is ``--name`` and ``--no-name``;
- an optional list of words is an option that takes one or more of them (a list of numbers is written ``[0,1]``);
- ``*command`` takes the words after ``--`` as they are.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from docstring_parser import parse
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter

from flarecps.errors import ConfigError, did_you_mean, visible
from flarecps.verbosity import EXPLAINED
from flarecps.volumes.links import place_of

_UNITS = ("gb", "mb", "mm", "ml", "hu", "s")
_PLACEHOLDERS = {str: "TEXT", int: "N", float: "X", Path: "PATH"}


# What must be there already, by parameter: a wrong path is answered before anything heavy is imported. (A plan that may
# be left out is one to be written, by ``import``.)
_LABEL_MAPS = "no such folder or file; expected label maps (NIfTI, NRRD, MHA)"
_INPUTS = {
    "dataset": "no such folder; expected a data set",
    "plan": "no such plan file; 'flarecps plan DATASET --out PLAN' writes one",
    "checkpoint": "no such checkpoint file; 'flarecps fit' writes RUN/checkpoints/last.ckpt",
    "input": "no such file or folder; expected a scan, a DICOM series or a folder of scans",
    "images": "no such folder; expected the scans that were segmented",
    "predictions": _LABEL_MAPS,
    "references": _LABEL_MAPS,
    "labels": "no such file or folder; expected label maps, or the dataset.json that names them",
    "runs": "no such run folder; 'flarecps fit' makes one (--trainer.default_root_dir)",
    "like": "no such run folder; 'flarecps fit' makes one (--trainer.default_root_dir)",
    "folder": "no such folder; expected a model folder of nnU-Net v2",
    "source": "no such folder; expected a data set to convert",
    "data": "no such folder; expected the FLARE22 data",
    "anatomy": "no such folder; expected label maps of real anatomy",
}


_MISFIT = re.compile(r'Parser key "(\w+)": .*\b[Vv]alue: (.*)$')  # of jsonargparse's


def _expected(hint: Any, value: str) -> str:
    """What an argument of a type may be, and the likeliest word; nothing where its parser says it well enough."""
    kinds = [hint, *get_args(hint)]
    choices = [str(one) for kind in kinds if get_origin(kind) is Literal for one in get_args(kind)]
    if choices:
        return f"{', '.join(choices[:-1])} or {choices[-1]}".removeprefix(" or ") + did_you_mean(value, choices)
    lists = any(get_origin(kind) is list for kind in kinds)
    numbers = {int: "a whole number", float: "a number"}
    return 'a list such as "[1, 2, 3]"' if lists else next((numbers[kind] for kind in kinds if kind in numbers), "")


class _OneLine(ArgumentParser):
    """A parser whose complaint is one line, as every other error of the program."""

    hints: Mapping[str, Any] = {}  # by name of what is given

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        words = " ".join(message.split())
        if (found := _MISFIT.match(words)) and (expected := _expected(self.hints.get(found[1]), found[2])):
            option = next((one for one in self._actions if one.dest == found[1] and one.option_strings), None)
            words = f"{option.option_strings[0] if option else found[1].upper()} {found[2]}: expected {expected}"
        print(visible(f"{self.prog}: {words} ({self.prog} --help)"), file=sys.stderr)
        raise SystemExit(2)


class _PlainHelp(DefaultHelpFormatter):
    """Help lines for people: the explanation, then the default; no Python types."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.required and action.option_strings:
            return f"{text} (required)"
        help_itself = isinstance(action, argparse._HelpAction)  # which has no public name
        if not action.option_strings or action.default in (None, argparse.SUPPRESS) or help_itself:
            return text
        default = action.default
        if isinstance(action, ActionYesNo):
            default = "yes" if default else "no"
        return f"{text} (default: {default})"


def call_with_arguments(function: Callable[..., int | None], words: Sequence[str], prog: str) -> int | None:
    """What ``function`` returns when called with the parsed ``words``.

    Raises SystemExit: 0 after ``--help``, 2 with usage and message when the words do not fit.
    """
    parser, names = _parser(function, prog)
    parameters = inspect.signature(function).parameters.values()
    rest: Sequence[str] = []
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters) and "--" in words:
        place = words.index("--")
        words, rest = words[:place], words[place + 1 :]
    words = [_dashes(word) for word in words]
    known = [option for action in parser._actions for option in action.option_strings]  # which has no public name
    positional = [action.dest.upper() for action in parser._actions if not action.option_strings]
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in known:
            parser.error(f"no option {option}{did_you_mean(option, [*known, *positional])}")
    given = vars(parser.parse_args(words))
    arguments: list[Any] = []
    options = {}
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            arguments += rest
            continue
        value = given[names[parameter.name]]
        for path in value if isinstance(value, list) else [value]:
            is_input = parameter.name in _INPUTS and (parameter.name, parameter.default) != ("plan", None)
            if is_input and isinstance(path, Path) and path != parameter.default and not place_of(path).exists():
                raise ConfigError(f"{path}: {_INPUTS[parameter.name]}")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            arguments.append(value)
        else:
            options[parameter.name] = value
    return function(*arguments, **options)


def option_names(function: Callable[..., Any]) -> list[str]:
    """The long options of ``function``'s command line, in the order of its help."""
    parser, _ = _parser(function, "")
    options = [one for action in parser._actions for one in action.option_strings]  # which has no public name
    return [one for one in options if one.startswith("--") and not one.endswith("+")]


def _parser(function: Callable[..., Any], prog: str) -> tuple[_OneLine, dict[str, str]]:
    """The parser of ``function``, and for each parameter the name under which the parser keeps its value."""
    documentation = parse(inspect.getdoc(function) or "")
    explained = {one.arg_name: " ".join((one.description or "").split()) for one in documentation.params}
    parser = _OneLine(prog=prog, description=documentation.description, formatter_class=_PlainHelp, allow_abbrev=False)
    hints = get_type_hints(function)
    names = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            own = parser.format_usage().removeprefix("usage: ").strip()
            parser.usage = f"{own} [OPTIONS] -- {parameter.name.upper()} ...".replace("[-h] ", "")
            continue
        stem, _, unit = parameter.name.rpartition("_")
        has_unit = bool(stem) and unit in _UNITS
        name = names[parameter.name] = stem if has_unit else parameter.name.rstrip("_")  # from_ is --from
        explanation = explained.get(parameter.name) or name.replace("_", " ")
        _add(parser, parameter, hints[parameter.name], name, explanation, unit.upper() if has_unit else None)
    parser.hints = {names[name]: hints[name] for name in names}
    for option, explanation in EXPLAINED.items():
        parser.add_argument(option, action="store_true", help=explanation, default=argparse.SUPPRESS)
    return parser, names


def _add(
    parser: ArgumentParser, parameter: inspect.Parameter, hint: Any, name: str, explanation: str, unit: str | None
) -> None:
    required = parameter.default is parameter.empty
    details: dict[str, Any] = {"help": explanation}
    if hint is not bool:
        details["type"] = hint
    if not required:
        details["default"] = parameter.default
    if parameter.kind is parameter.POSITIONAL_ONLY or (required and parameter.kind is not parameter.KEYWORD_ONLY):
        if get_origin(hint) is list:
            details |= {"type": hint.__args__[0], "nargs": "+" if required else "*"}
        elif not required:
            details["nargs"] = "?"
        parser.add_argument(name, metavar=name.upper(), **details)
        return
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind in _PLACEHOLDERS]
    if list[str] in get_args(hint):
        details |= {"type": str, "nargs": "+", "metavar": _PLACEHOLDERS[str]}
    elif hint is bool:
        details["action"] = ActionYesNo(yes_prefix="", no_prefix="no-")
    elif unit is not None or kinds:
        details["metavar"] = unit or _PLACEHOLDERS[kinds[0]]
    parser.add_argument("--" + name.replace("_", "-"), required=required, **details)


def _dashes(word: str) -> str:
    """An option as the parser spells it: ``--gpu_memory=8`` is ``--gpu-memory=8``."""
    if not word.startswith("--"):
        return word
    option, equals, value = word.partition("=")
    return option.replace("_", "-") + equals + value
