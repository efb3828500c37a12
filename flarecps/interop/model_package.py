"""A trained model as a folder to hand on: weights alone, what is written beside them, and checksums of it all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from flarecps.atomic import partial_path, write_text
from flarecps.checkpoint import ENTRY, TrainedModel, Trusted, inference_prefixes, load_plain, read_checkpoint
from flarecps.errors import CheckpointError, ConfigError, WriteError
from flarecps.preprocessing.checksums import CHECKSUMS, sha256
from flarecps.torch_files import save


def write_package(
    folder: Path,
    checkpoints: Mapping[str, Path],
    write_beside: Callable[[Path, dict[str, TrainedModel]], None],
    trusted: Trusted = (),
) -> None:
    """Write ``folder``, a new one (else ConfigError), which appears whole or not at all.

    ``checkpoints`` come by the names that their weights get there. ``write_beside`` writes further files into the
    folder that it is given, told what the written weights are. ``trusted`` is as in ``read_checkpoint``.
    """
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder}: exists already; name another folder, or remove it first")
    partial = partial_path(folder)
    try:
        partial.mkdir(parents=True)
        models = {}
        for name, path in checkpoints.items():
            save(inference_content(path), partial / name)
            models[name] = read_checkpoint(partial / name, trusted)
        write_beside(partial, models)
        sums = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(partial.iterdir()))
        write_text(partial / CHECKSUMS, sums)
        os.rename(partial, folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ConfigError(f"{folder}: something else has taken this name; name another folder") from error
        raise WriteError(error.errno, error.strerror or str(error), str(folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def inference_content(path: Path) -> dict[str, object]:
    """What ``read_checkpoint`` needs of a checkpoint, and no more: the networks that inference may use, and the plan.

    No optimiser, no scheduler, no other network's weights, and no path of the machine that it was trained on.
    """
    content = load_plain(path)
    try:
        used = inference_prefixes(content)
        # a copy: a tensor that is a view of more would be written with all of it
        weights = {key: value.clone() for key, value in content["state_dict"].items() if key.startswith(used)}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path}: its plan and its weights do not fit together ({error})") from error
    return {"state_dict": weights, ENTRY: content[ENTRY]}
