"""The options of ``fit | validate | test | predict``: their help on one screen, and what is wrong with those given.

Lightning's parser knows all of them, but takes ten seconds to be there and complains at length. So help and the checks
of names and paths read the classes' signatures from their source, and import none of them.
"""

from __future__ import annotations

import os.path
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from flarecps.cli.configs import found_config
from flarecps.cli.former_keys import CONFIG
from flarecps.cli.main import LIGHTNING_COMMANDS
from flarecps.cli.signatures import PACKAGE, known_options, offered, signature, trainer
from flarecps.errors import CheckpointError, ConfigError, StoreError, did_you_mean
from flarecps.method_config import CROSS_PSEUDO, MOVED, SWITCH
from flarecps.verbosity import EXPLAINED
from flarecps.volumes.links import place_of

# What a setting without a class_path is.
IMPLIED = {
    "topology": ("planning/plan.py", "Topology"),
    "ramp": ("losses/ramps.py", "LinearRamp"),
    "augmentation": ("data/augmentation.py", "AugmentationSettings"),
}
HELP_WIDTH = 120  # where the terminal does not say
NARROWEST = 20  # column of explanations
# What Lightning reads in the environment as numbers, of processes and where they meet.
PROCESS_NUMBERS = (
    "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "JSM_NAMESPACE_RANK", "MASTER_PORT", "SLURM_PROCID",
    "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES",
)  # fmt: skip


class OwnOption(NamedTuple):
    """An option of this program's beside Lightning's: its type and default, and a line of help."""

    kind: Any
    default: Any
    help: str


OWN_OPTIONS: dict[str, OwnOption] = {
    "overwrite": OwnOption(bool, False, "start anew in a run folder that holds checkpoints"),
    "init": OwnOption(str | None, None, "start from the weights of this checkpoint; one network's become sibling 1's"),
    "init_siblings": OwnOption(list[int] | None, None, "siblings that start from --init, such as [2]; all it holds"),
    "pictures": OwnOption(int, 2, "validation cases whose segmentations are drawn during training; 0 for none"),
}
DRY_RUN = "take a few steps, print memory, step time and time to the end; write nothing"
OF_TRAINER = {
    "default_root_dir": "folder of this run; by default runs/ and the store's name",
    "max_epochs": "epochs; by default 1000 on a GPU and 100 on a CPU, or until --trainer.max_steps",
    "accelerator": "auto (a GPU if there is one), cpu or gpu",
    "devices": "GPUs to train on together; by default 1",
    "precision": "bf16-mixed or 32-true; by default what the card can do",
    "check_val_every_n_epoch": "epochs between validations of whole scans",
    "logger": "loggers instead of CSV and offline wandb; false for none",
}


def _top_level() -> set[str]:
    """What an option may begin with, or a config hold; empty where Lightning's source does not say."""
    found = {name for command in LIGHTNING_COMMANDS for name in signature(trainer(), "Trainer", command)}
    own = {"config", "print_config", "seed_everything", "dry_run", "dry-run", "trainer", "data", "model", "help"}
    return (found - {"model", "datamodule"}) | own | set(OWN_OPTIONS) if found else set()


# -- help


def help_text(command: str) -> str:
    """The project's own options of one of Lightning's commands, grouped, a line each."""
    fit = command == "fit"
    needs = "--data.store STORE" if fit else "--config RUN/config.yaml --ckpt_path last"
    run = {"config": "a config's name ('flarecps configs' lists them) or file; any class in it may run"}
    run["ckpt_path"] = "last, best, or a file: go on from it; auto: if there is one" if fit else "last, best, or a file"
    run["seed_everything"] = "decides weights, draws and augmentation (0)"
    if fit:
        run |= {name: _with_default(option.help, repr(option.default)) for name, option in OWN_OPTIONS.items()}
        run["dry-run"] = DRY_RUN
    rows = {"run": {f"--{name}": text for name, text in run.items()} | EXPLAINED}
    rows["machine and length"] = {f"--trainer.{name}": text for name, text in OF_TRAINER.items()}
    for part, title in (("data", "data"), ("model", "network and learning")):
        listed = {name: one for name, one in known_options(part).items() if name not in ("plan", "predict_input")}
        rows[title] = {f"--{part}.{name}": _with_default(_brief(text), value) for name, (value, text) in listed.items()}
    if command == "predict":
        rows["data"] = {"--data.predict_input": "a scan or a folder of scans", **rows["data"]}
    width = max(len(option) for group in rows.values() for option in group)
    room = max(shutil.get_terminal_size((HELP_WIDTH, 0)).columns - width - 4, NARROWEST)
    lines = [f"usage: flarecps {command} {needs} [OPTION VALUE ...]"]
    for title, group in rows.items():
        lines.append(f"{title}:")
        lines += [
            f"  {name:<{width}}  {textwrap.shorten(text, room, placeholder=' …')}" for name, text in group.items()
        ]
    return "\n".join(
        [
            *lines,
            f"flarecps {command} --help-all   all options, Lightning's too; what is left out, docs/training.md says",
        ]
    )


def _brief(explanation: str) -> str:
    """The first clause of an explanation."""
    text = " ".join(explanation.split())
    for end in (";", ". ", ": ", ", by default"):
        text = text.partition(end)[0]
    if text.count("{") > text.count("}"):  # an example was cut
        text = text[: text.rindex("{")].rstrip(" ,")
    return text.rstrip(".")


def _with_default(text: str, default: str) -> str:
    return (
        text if default in ("", "None") else f"{text} ({default.lower() if default in ('True', 'False') else default})"
    )


def fit_option_names() -> list[str]:
    """The options that may be typed after one of Lightning's commands."""
    parts = [f"--{part}.{name}" for part in ("data", "model", "trainer") for name in known_options(part)]
    top = sorted(_top_level() - {"data", "model", "trainer", "dry_run"})
    return [*(f"--{name}" for name in top), "--help-all", "--quiet", *(one for one in parts if one != "--model.plan")]


# -- what is given


def pairs(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Each option of a command line, without its dashes, and its value; ConfigError for a word that is neither."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, sign, value = word.partition("=")
        if not name.startswith("-"):
            raise ConfigError(
                f"unexpected {word!r}: settings are options, --NAME VALUE; a value with blanks needs quotes"
            )
        name = "config" if name == "-c" else name.lstrip("-").removesuffix("+")
        if sign:
            yield name, value
        else:
            yield name, rest.pop(0) if rest and not rest[0].startswith("--") else None


def given_settings(words: Sequence[str]) -> dict[str, Any]:
    """The settings that configs and options name, such as ``{"data.store": "store", "model.method": {...}}``.

    The later counts. Values of options are text, those of configs what YAML makes of them; settings below the second
    level are those of its value. Raises ConfigError for a word that is no option, and a config that can't be read.
    """
    found: dict[str, Any] = {}
    for name, value in pairs(words):
        if name == "config" and value is not None:
            for key, entry in config_entries(value).items():
                if key in ("trainer", "data", "model") and isinstance(entry, Mapping):
                    found |= {f"{key}.{inner}": one for inner, one in entry.items()}
                else:
                    found[key] = entry
        else:
            found[name.replace("-", "_")] = "true" if name == "dry-run" and value is None else value
    return found


def config_entries(config: str) -> dict[str, Any]:
    """The content of a config: a file, a name or text. ConfigError, with the line, where it can't be read."""
    found = found_config(config)
    is_file = os.path.isfile(found)
    try:
        content = OmegaConf.to_container(OmegaConf.load(found) if is_file else OmegaConf.create(found), resolve=False)
    except Exception as error:  # unreadable, or no YAML: many kinds
        raise ConfigError(f"{config if is_file else '--config'}: can't be read as YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{config}: holds no settings; expected lines such as 'data:' with 'store: STORE' below")
    return {str(key): value for key, value in content.items()}


def with_found_configs(words: Sequence[str]) -> list[str]:
    """A command line whose ``--config`` options name files, where they named configs that come with flarecps."""
    found = []
    for place, word in enumerate(words):
        name, sign, value = word.partition("=")
        if name in CONFIG and sign:
            word = f"{name}={found_config(value)}"
        elif place and words[place - 1] in CONFIG:
            word = found_config(word)
        found.append(word)
    return found


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether an option asks for the help of something, or for the config, instead of a training."""
    return any(word.partition("=")[0].split(".")[-1].lstrip("-") in ("h", "help", "print_config") for word in words)


def check(command: str, words: Sequence[str]) -> None:
    """Raise the error of a name that is not known, or of a path that is not there; say nothing where all is well.

    What only the classes themselves can tell (values, settings of a ``class_path``) is left to the parser.
    """
    given = list(pairs(words))
    for name, value in given:
        _check_name(name, "--", "")
        if name == "config":
            if value is None:
                raise ConfigError("--config: expected a file, or a name that 'flarecps configs' lists")
            for key, entry in config_entries(value).items():
                _check_name(key, "", f"{value}: ")
                for inner in entry if key in ("trainer", "data", "model") and isinstance(entry, Mapping) else ():
                    _check_name(f"{key}.{inner}", "", f"{value}: ")
    if not asks_for_help(words):
        settings = given_settings(words)
        tree = _tree(settings)
        for part in ("data", "model"):
            for name, value in tree.get(part, {}).items():
                _check_classes(value, f"{part}.{name}", name)
        _check_paths(command, settings)


def _tree(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a config nests them; the method's class where it is left to the default."""
    tree: dict[str, Any] = {}
    for name, value in given.items():
        *above, last = name.split(".")
        place = tree
        for one in above:
            if not isinstance(place.get(one), dict):
                place[one] = {"class_path": place[one]} if isinstance(place.get(one), str) else {}
            place = place[one]
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = config_entries(value)
        place[last] = (
            OmegaConf.to_container(OmegaConf.create(value), resolve=False) if isinstance(value, dict) else value
        )
    method = tree.get("model", {}).get("method")
    if isinstance(method, dict) and "init_args" in method:
        method.setdefault("class_path", CROSS_PSEUDO)
    return tree


def _check_classes(value: Any, where: str, name: str) -> None:
    """Raise ConfigError for a class of this program that is not there, or for an argument that it does not take."""
    if isinstance(value, str) and where.startswith("model.") and value.startswith(f"{PACKAGE.name}."):
        value = {"class_path": value}
    if not isinstance(value, Mapping):
        return
    class_path, takes, inside = value.get("class_path"), {}, value
    if isinstance(class_path, str):
        module, _, owner = class_path.rpartition(".")
        classes = offered(module) if module else {}
        if classes and owner not in classes:
            likely = did_you_mean(class_path, [f"{module}.{one}" for one in classes])
            raise ConfigError(f"{where}: there is no class {class_path}{likely}")
        takes = signature(classes[owner], owner) if owner in classes else {}
        inside, where = value.get("init_args") or {}, f"{where}.init_args"
    elif name in IMPLIED:
        takes = signature(PACKAGE / IMPLIED[name][0], IMPLIED[name][1])
    for key, one in inside.items():
        if takes and key not in takes:
            raise ConfigError(f"no setting {where}.{key}{did_you_mean(key, takes)}")
        _check_classes(one, f"{where}.{key}", key)


def _check_name(name: str, dashes: str, where: str) -> None:
    first, *rest = name.split(".")
    tops = _top_level()
    if first in ("trainer", "data", "model") and rest:
        known = {*known_options(first), *((SWITCH, *MOVED) if first == "model" else ())} - {"plan"}
        if len(known) > 2 and rest[0] not in {*known, "help"}:
            likely = did_you_mean(f"{dashes}{first}.{rest[0]}", [f"{dashes}{first}.{one}" for one in known])
            raise ConfigError(f"{where}no {'option' if dashes else 'setting'} {dashes}{first}.{rest[0]}{likely}")
    elif tops and first not in tops:
        every = [*tops, *(f"{part}.{one}" for part in ("trainer", "data", "model") for one in known_options(part))]
        likely = did_you_mean(name, every) or _of_a_part(name)
        likely = likely.replace("mean ", f"mean {dashes}")
        raise ConfigError(f"{where}no {'option' if dashes else 'setting'} {dashes}{name}{likely}")


def _of_a_part(name: str) -> str:
    """For ``workers``: that it is data's."""
    at = [f"{part}.{name}" for part in ("trainer", "data", "model") if name.replace("-", "_") in known_options(part)]
    return f"; did you mean {at[0]}?" if at else "; 'flarecps fit --help' lists them"


def _check_paths(command: str, given: Mapping[str, Any]) -> None:
    store = _path(given, "data.store")
    if given.get("data.store") is None:
        raise ConfigError(f"{command} needs --data.store STORE, a folder that 'flarecps preprocess' wrote")
    if store is not None and not (store / "store.json").is_file():
        what = "not a case store (no readable store.json)" if store.exists() else "no such case store"
        raise StoreError(f"{store}: {what}; 'flarecps preprocess DATASET PLAN --out {store}' makes one")
    scans = _path(given, "data.predict_input")
    if scans is not None and not place_of(scans).exists():
        raise ConfigError(f"data.predict_input: {scans} does not exist; expected a scan or a folder of scans")
    epochs = given.get("trainer.max_epochs")
    if str(epochs).lstrip("-").isdecimal() and int(str(epochs)) < -1:
        raise ConfigError(f"trainer.max_epochs is {epochs}; expected a number of epochs, or -1 for no end")
    _check_checkpoints(command, given, run_folder(given))
    if store is not None and isinstance(given.get("data.split"), str) and "${" not in given["data.split"]:
        _check_split(store, given["data.split"])


def run_folder(given: Mapping[str, Any]) -> Path | None:
    """Where a run with these settings goes: by default runs/ and its store's name; None where a reference decides."""
    store = _path(given, "data.store")
    if given.get("trainer.default_root_dir") is None:
        return None if store is None else Path("runs") / store.name
    return _path(given, "trainer.default_root_dir")


def taken(run: Path) -> ConfigError:
    """The error of a run folder that holds another training."""
    return ConfigError(
        f"{run}: this run folder holds checkpoints already; continue with --ckpt_path last, "
        "name another folder with --trainer.default_root_dir, or start anew with --overwrite true"
    )


def _check_checkpoints(command: str, given: Mapping[str, Any], run: Path | None) -> None:
    fit, resumed = command == "fit", _path(given, "ckpt_path")
    named = None if resumed is None or str(resumed) == "null" else str(resumed)
    held = None if run is None else sorted((run / "checkpoints").glob("*.ckpt"))
    dry_run, overwrite = (str(given.get(name)).lower() == "true" for name in ("dry_run", "overwrite"))
    if dry_run:
        return
    if named is None and not fit:
        raise ConfigError(f"{command} needs a checkpoint: --ckpt_path last or best (of this run), or a file's path")
    if named is None and held and not overwrite and run is not None:
        raise taken(run)
    if named in ("last", "best") and held == []:
        raise CheckpointError(f"{run}/checkpoints: no such checkpoint ({named}); leave --ckpt_path out to start anew")
    if named not in (None, "last", "best", "auto") and not Path(str(named)).exists():
        raise CheckpointError(f"{named}: no such checkpoint")
    start = _path(given, "init")
    if fit and start is not None and named is None and str(start) != "null" and not start.exists():
        raise CheckpointError(f"{start}: no such checkpoint to start from (--init)")


def _check_split(store: Path, name: str) -> None:
    from flarecps.datasets.splits import choose_split, read_splits
    from flarecps.errors import DatasetError

    try:
        choose_split(read_splits(store / "splits.json"), name, store)
    except DatasetError as error:
        raise ConfigError(f"{error} (data.split)") from None


def _path(given: Mapping[str, Any], name: str) -> Path | None:
    """The path that a setting names; None where it is not given, or refers to another value."""
    value = given.get(name)
    return Path(value) if isinstance(value, str) and value and "${" not in value else None


def answered(words: Sequence[str]) -> int | None:
    """0 after help, None where the command is to run; ``words`` begin with its name. Raises what ``check`` raises."""
    command, *rest = words
    for name in PROCESS_NUMBERS:
        if not os.environ.get(name, "0").strip().isdecimal():
            raise ConfigError(f"the environment's {name} is {os.environ[name]!r}: expected a whole number; unset it")
    if "--help" in rest or "-h" in rest:
        print(help_text(command))
        return 0
    if "--help-all" not in rest:
        check(command, rest)
    return None
