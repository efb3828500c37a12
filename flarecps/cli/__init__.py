"""The commands, one file each."""

from typing import Any

PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}  # how rich prints sentences and paths
