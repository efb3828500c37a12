"""What a scan may cost: RAM, GPU memory, seconds; and words for them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from flarecps.errors import ConfigError

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Budget:
    """Limits for one scan; None where there is none.

    ``ram_bytes`` is the resident memory of the whole process, ``vram_bytes`` what the driver counts for it on the GPU,
    ``seconds`` the time from reading the scan to its result.
    """

    ram_bytes: int | None = None
    vram_bytes: int | None = None
    seconds: float | None = None

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return any(limit is not None for limit in (self.ram_bytes, self.vram_bytes, self.seconds))


UNLIMITED = Budget()
# FLARE22's tolerance: what costs less is not counted against a submission.
PRESETS = {"flare22": Budget(28 * UNITS["G"], 2048 * UNITS["M"], 216.0)}


def budget_of(
    preset: str | None = None, ram: str | None = None, vram: str | None = None, seconds: float | None = None
) -> Budget:
    """The budget called ``preset``, with its limits replaced by those given in words ("28G", "2048M").

    Raises ConfigError for another name, or a size that is none.
    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"budget '{preset}': expected {', '.join(PRESETS)}, or --max-ram, --max-vram, --max-seconds")
    budget = PRESETS[preset] if preset is not None else UNLIMITED
    if ram is not None:
        budget = replace(budget, ram_bytes=parse_bytes(ram, "max ram"))
    if vram is not None:
        budget = replace(budget, vram_bytes=parse_bytes(vram, "max vram"))
    if seconds is not None:
        if not seconds > 0:
            raise ConfigError(f"max seconds {seconds}: expected a time above 0, such as 216")
        budget = replace(budget, seconds=float(seconds))
    return budget


def parse_bytes(words: str, name: str = "size") -> int:
    """A memory size in bytes; K, M, G and T are powers of 1024.

    >>> parse_bytes("2G") == parse_bytes("2048M") == 2 * 1024**3
    True
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?)(?:i?B)?\s*", words, flags=re.IGNORECASE)
    if match is None or not float(match[1]) > 0:
        raise ConfigError(f"{name} '{words}': expected a number and a unit, such as 28G or 2048M")
    return int(float(match[1]) * UNITS[match[2].upper()])


def format_bytes(size: float) -> str:
    """A memory size for people.

    >>> format_bytes(3 * 1024**3), format_bytes(200 * 1024**2)
    ('3.0 GB', '200 MB')
    """
    return f"{size / UNITS['G']:.1f} GB" if size >= UNITS["G"] else f"{size / UNITS['M']:.0f} MB"
