"""Command lines and configs from before methods were classes: their keys become ``model.method`` before parsing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flarecps.errors import ConfigError
from flarecps.method_config import CROSS_PSEUDO, MOVED, SUPERVISED, SWITCH, takes, with_method

CONFIG = ("--config", "-c")
METHOD = "--model.method"


def current_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line without former keys, and for each place that had some, in words, what to write there now.

    ``words`` as they are, and nothing to say, where there are none. A config that has former keys is handed on as YAML
    text; the file stays as it is. Of two places that name the method the last counts, as for every option.
    """
    options = list(_options(words))
    contents = {place: read_config(value) for place, (name, value) in enumerate(options) if name in CONFIG and value}
    class_path = _method(options, contents)
    found: list[str] = []
    said: list[str] = []
    for place, (name, value) in enumerate(options):
        key, _, rest = name.removeprefix("--model.").partition(".")
        model = contents.get(place, {}).get("model")
        if isinstance(model, Mapping) and (former := [one for one in (SWITCH, *MOVED) if one in model]):
            new = with_method(model, class_path)
            found.append(f"{CONFIG[0]}={OmegaConf.to_yaml(OmegaConf.create({**contents[place], 'model': new}))}")
            names = ", ".join(f"model.{one}" for one in former)
            said.append(f"{value}: {names} are now model.method: {json.dumps(new['method'])}")
        elif name.startswith("--model.") and key == SWITCH:
            found.append(f"{METHOD}={SUPERVISED if _is_false(value) else CROSS_PSEUDO}")
            said.append(f"{name} {value} is now {METHOD} {found[-1].partition('=')[2]}")
        elif name.startswith("--model.") and key in MOVED:
            now = f"{METHOD}.init_args.{key}{'.' if rest else ''}{rest}"
            if takes(class_path, key):
                found.append(now if value is None else f"{now}={value}")
                said.append(f"{name} is now {now}")
            else:
                said.append(f"{name} has no effect with {class_path} and is left out; drop it")
        else:
            found += [name] if value is None else [f"{name}={value}"] if name.startswith("--") else [name, value]
    return (found, said) if said else (list(words), [])


def _options(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Each option with its value; a word that is no option, or an option without a value, stands alone."""
    rest = list(words)
    while rest:
        name, sign, value = rest.pop(0).partition("=")
        if not name.startswith("-"):
            yield name + sign + value, None
        elif sign:
            yield name, value
        elif name in CONFIG or name.startswith("--model."):
            yield name, rest.pop(0) if rest else None
        else:
            yield name, None


def _method(options: Sequence[tuple[str, str | None]], contents: Mapping[int, dict[str, Any]]) -> str:
    """The class of the method that a training with these options has."""
    class_path = CROSS_PSEUDO
    for place, (name, value) in enumerate(options):
        model = contents.get(place, {}).get("model")
        if isinstance(model, Mapping) and (SWITCH in model or model.get("method")):
            class_path = with_method(model)["method"].get("class_path", class_path)
        elif name == f"--model.{SWITCH}":
            class_path = SUPERVISED if _is_false(value) else CROSS_PSEUDO
        elif name in (METHOD, f"{METHOD}.class_path") and value and not value.lstrip().startswith("{"):
            class_path = value
    return class_path


def read_config(config: str) -> dict[str, Any]:
    """A config's content, from its file or its text; empty for what is none, about which the parser will complain.

    Raises ConfigError for a file that is not UTF-8, about which the parser has no words.
    """
    try:
        Path(config).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{config}: not UTF-8 text; save the config as UTF-8") from None
    except (OSError, ValueError):  # no file: text, or about which the parser will complain
        pass
    try:
        content = OmegaConf.load(config) if Path(config).is_file() else OmegaConf.create(config)
        plain = OmegaConf.to_container(content, resolve=False)
    except Exception:  # unreadable, or no YAML: many kinds, and the parser names the file and the line
        return {}
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _is_false(value: str | None) -> bool:
    return str(value).lower() == "false"
