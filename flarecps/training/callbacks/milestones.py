"""At which validations something is shown that is too large for every one of them."""

from __future__ import annotations

from lightning.pytorch import Trainer

MOST = 20  # times in a training, and at its last validation


def is_milestone(epoch: int, epochs: int, every: int = 1) -> bool:
    """Whether the validation after ``epoch`` of ``epochs`` is one of about ``MOST``, with one each ``every`` epochs.

    They lie evenly, at the same epochs however often the training is resumed; the last validation is one of them.

    >>> [epoch for epoch in range(1, 101) if is_milestone(epoch, 100)][:4]
    [5, 10, 15, 20]
    >>> [epoch for epoch in range(3, 10, 3) if is_milestone(epoch, 10, every=3)]
    [3, 6, 9]
    """
    stride = -(-epochs // MOST)
    return epoch // stride > (epoch - every) // stride or epoch + every > epochs


def at_milestone(trainer: Trainer) -> bool:
    """Whether the present validation of a training is a milestone."""
    every = trainer.check_val_every_n_epoch or 1
    return is_milestone(trainer.current_epoch + 1, trainer.max_epochs or 1, every)
