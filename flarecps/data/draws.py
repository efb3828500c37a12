"""A draw is an address: where every training patch comes from, without a generator's state to keep.

``(seed, epoch, stream, index)`` decides case, location and every augmentation number of one patch. Patch j of global
batch b has index ``b * B + j`` (B: the global batch of the stream), so that there is one sequence of global batches
for any number of workers or ranks, and a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flarecps.errors import ConfigError
from flarecps.typing import Triple

Stream = Literal["labelled", "unlabelled", "validation", "pseudo_labelled"]
# never renumber
_STREAM_NUMBER: dict[Stream, int] = {"labelled": 0, "unlabelled": 1, "validation": 2, "pseudo_labelled": 3}


@dataclass(frozen=True)
class Draw:
    """The address of one training patch."""

    seed: int
    epoch: int
    stream: Stream
    index: int

    def generator(self) -> np.random.Generator:
        """A fresh generator that depends on the address alone.

        >>> address = Draw(seed=1, epoch=0, stream="labelled", index=5)
        >>> address.generator().random() == address.generator().random()
        True
        """
        address = (self.seed, self.epoch, _STREAM_NUMBER[self.stream], self.index)
        return np.random.default_rng(np.random.SeedSequence(address))


@dataclass(frozen=True)
class DrawSequence:
    """All draws of one stream that one rank makes, epoch after epoch.

    ``batch``: patches of a global batch; rank r of ``ranks`` takes every ``ranks``-th of them, from the r-th on.
    """

    seed: int
    stream: Stream
    batch: int
    iterations: int  # global batches per epoch
    rank: int = 0
    ranks: int = 1

    @property
    def share(self) -> int:
        """Patches of a global batch that this rank takes."""
        return len(range(self.rank, self.batch, self.ranks))

    def starting_at(self, epoch: int, iteration: int) -> Iterator[Draw]:
        """This rank's draws from global batch ``iteration`` of ``epoch`` on; they never end."""
        while True:
            for batch_number in range(iteration, self.iterations):
                for place in range(self.rank, self.batch, self.ranks):
                    yield Draw(self.seed, epoch, self.stream, batch_number * self.batch + place)
            epoch, iteration = epoch + 1, 0


def check_ranks(global_batch: Mapping[str, int], ranks: int) -> None:
    """Nothing when every rank gets equally many patches of each kind.

    Raises ConfigError otherwise, with the numbers of processes that would do.
    """
    if all(size % ranks == 0 for size in global_batch.values()):
        return
    common = math.gcd(*global_batch.values())
    fitting = [str(count) for count in range(1, common + 1) if common % count == 0]
    batch = ", ".join(f"{name}: {size}" for name, size in global_batch.items())
    raise ConfigError(
        f"global_batch ({batch}) can't be shared equally by {ranks} processes; it can by {' or '.join(fitting)}: "
        f"change trainer.devices × trainer.num_nodes, or global_batch"
    )


def is_forced_foreground(index: int, batch: int, foreground_share: float) -> bool:
    """Whether the patch at this index must lie on a labelled structure: the last ones of every global batch.

    With a share of 0.33 (nnU-Net's rule) that is 1 patch of 2, 1 of 4, 3 of 8 and 4 of 12; with 0.75 it is 3 of 4.

    >>> [sum(is_forced_foreground(j, batch, 0.33) for j in range(batch)) for batch in (2, 4, 8, 12)]
    [1, 1, 3, 4]
    """
    return index % batch >= round(batch * (1 - foreground_share))


def choose_case(generator: np.random.Generator, names: Sequence[str], weights: Sequence[float] | None = None) -> str:
    """One of ``names``, independently of other draws (nnU-Net's way: with replacement).

    Uniformly, or in proportion to ``weights`` (at least one of them above 0; one of 0 is never drawn).
    """
    if weights is not None:
        upto = np.cumsum(weights, dtype=np.float64)
        return names[int(np.searchsorted(upto, generator.random() * upto[-1], side="right"))]
    return names[int(generator.integers(len(names)))]


def choose_lower(
    generator: np.random.Generator, shape: Triple, patch: Triple, samples: Mapping[int, np.ndarray] | None = None
) -> Triple:
    """The first voxel (slice, row, column) of a patch in a scan of ``shape`` voxels, as in nnU-Net.

    Without ``samples`` the patch lies anywhere inside the scan, uniformly. With ``samples`` (voxels (n, 3) by label
    id), one of the labels present is drawn uniformly, then one of its voxels, and the patch is centred on it: it
    never starts before the scan's first voxel, but may reach beyond its last one. No samples at all: as without. On
    an axis where the scan is smaller than the patch, the scan lies in the patch's middle (the lower corner is
    negative) unless a drawn voxel moves it.
    """
    lowest = np.array([min(0, -((size - extent) // 2)) for size, extent in zip(patch, shape, strict=True)])
    room = np.maximum(np.array(shape) - np.array(patch), 0)
    present = sorted(label for label, voxels in (samples or {}).items() if label != 0 and len(voxels))
    if samples is None or not present:
        lower = lowest + generator.integers(room + 1)
    else:
        voxels = samples[present[int(generator.integers(len(present)))]]
        voxel = np.asarray(voxels[int(generator.integers(len(voxels)))], dtype=np.int64)
        lower = np.maximum(voxel - np.array(patch) // 2, lowest)
    return int(lower[0]), int(lower[1]), int(lower[2])
