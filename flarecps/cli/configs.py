"""``flarecps configs``: the training configs that come with the program, by name."""

from __future__ import annotations

import os.path  # whose isfile takes text that is too long for a path
import shutil
from collections.abc import Mapping
from pathlib import Path

from flarecps.errors import ConfigError, did_you_mean, visible
from flarecps.installed_files import PLACES


def configs(*, copy: list[str] | None = None, out: Path | None = None) -> None:
    """List the configs and study protocols that come with flarecps, each with a line; or copy configs to change them.

    'flarecps fit --config NAME' takes a config's name as well as a file of yours, 'flarecps study --protocol NAME' a
    protocol's.

    Args:
        copy: names of configs to copy into --out
        out: folder for the copies; made if needed
    """
    if (copy is None) != (out is None):
        raise ConfigError("--copy NAME ... and --out FOLDER belong together")
    if copy is None or out is None:
        files = {name: config_path(name) for name in preset_names()}
        lines = ["configs, for flarecps fit --config NAME --data.store STORE:", *_listed(files)]
        lines += ["", "protocols, for flarecps study DATASET --out OUT --protocol NAME:", *_listed(study_protocols())]
        print(visible("\n".join(lines)))
        return
    copies = {out / found.name: found for found in map(config_path, copy)}
    for target in copies:
        if target.exists():
            raise ConfigError(f"{target}: is there already; remove it or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    for target, found in copies.items():
        shutil.copyfile(found, target)
        print(visible(f"written: {target}"))
    print(visible(f"next: flarecps fit --config {next(iter(copies))} --data.store STORE"))


def preset_names() -> list[str]:
    """The names of the configs that come with flarecps; raises ConfigError where they are missing."""
    for place in PLACES:
        if found := sorted(path.stem for path in (place / "configs").glob("*.yaml")):
            return found
    raise ConfigError("the configs that come with flarecps are missing; install it again")


def study_protocols() -> dict[str, Path]:
    """The files of the study protocols that come with flarecps, by name."""
    found = [path for place in PLACES for path in (place / "configs" / "studies").glob("*.yaml")]
    return {path.stem: path for path in sorted(found)}


def config_path(name: str) -> Path:
    """Where the config called ``name``, with or without ``.yaml``, lies; ConfigError where there is none."""
    stem = name.removesuffix(".yaml")
    for place in PLACES:
        if (path := place / "configs" / f"{stem}.yaml").is_file():
            return path
    advice = did_you_mean(stem, preset_names()) or "; 'flarecps configs' lists those that come with flarecps"
    raise ConfigError(f"{name}: no such config file, nor a config's name{advice}")


def found_config(given: str) -> str:
    """What ``--config`` names: a file as it is, else the file of a config that comes with flarecps.

    YAML text (with a colon or a brace) is handed on. Raises ConfigError for a file or name that is not there.
    """
    if os.path.isfile(given) or any(sign in given for sign in ":{\n"):
        return given
    if os.path.isdir(given) and given not in preset_names():
        raise ConfigError(
            f"--config {given}: is a folder; expected a YAML file, or a name that 'flarecps configs' lists"
        )
    return str(config_path(given))


def _listed(files: Mapping[str, Path]) -> list[str]:
    width = max(map(len, files), default=0)
    return [f"  {name:<{width}}  {_first_line(path)}" for name, path in files.items()]


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").partition("; all else")[0]
