"""The commands, one file each."""

import shlex
from typing import Any

PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}  # how rich prints sentences and paths


def next_command(*words: object) -> str:
    """The line with which a command ends: what one would type next. Words in capitals are to be filled in.

    >>> next_command("fit", "--data.store", "my store")
    "next: flarecps fit --data.store 'my store'"
    """
    return f"next: flarecps {shlex.join(map(str, words))}"
