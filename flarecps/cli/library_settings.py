"""How the libraries of a training behave: what configs may refer to, and which of their lines are no news here."""

from __future__ import annotations

import logging
import os
import warnings

import jsonargparse

from flarecps.verbosity import is_quiet, is_verbose


def set_up_libraries() -> None:
    """Let configs refer to their own values (``${...}``) across files and the command line; and leave out what
    libraries say on every start that is no news here, unless -v asks for it: each line says why.
    """
    jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    os.environ.setdefault("WANDB_SILENT", "true")
    if is_verbose():
        return
    if is_quiet():
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    told_otherwise = (
        "litlogger",  # an advertisement
        "PU available: ",  # GPU, TPU, HPU: what is trained on is said at the start
        "Seed set to ",  # config.yaml says it
        "`Trainer.fit` stopped: `max_epochs",  # the progress ends with its last epoch
        "estoring states from the checkpoint",  # 'resume from' says it; and "Restored all states"
        "estored all states from the checkpoint",
        "LOCAL_RANK: ",
    )
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
    ):
        logging.getLogger(name).addFilter(
            lambda record: not any(words in record.getMessage() for words in told_otherwise)
        )
    ignored = (
        ".*across ranks is zero.*",  # fold: all has no validation scans
        ".*LeafSpec.*is deprecated.*",  # inside Lightning: its issue
        ".*args parameter is intended to run.*",  # the words of sys.argv are handed on, they do not contradict it
        ".*srun. command is available on your system but is not used.*",  # a training need not be a job
        ".*Checkpoint directory .* exists and is not empty.*",  # a run that goes on; another's folder is refused
        ".*suggested max number of worker.*",  # who asks for more workers than cores gets them
        ".*recommended to use.*sync_dist=True.*",  # what is logged has been reduced already, and is equal on all ranks
    )
    for message in ignored:
        warnings.filterwarnings("ignore", message=message)
