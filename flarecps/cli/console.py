"""The console that every command prints by: what a file's name or content holds is shown, and obeyed by no terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

from flarecps.errors import visible


class Console(rich.console.Console):
    """rich's console; control characters in what it is given are printed as escapes ("\\x1b")."""

    def render(self, *args: Any, **options: Any) -> Iterable[Segment]:
        """rich's segments of something printable, their text made visible; rich's own control codes are kept."""
        for segment in super().render(*args, **options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))
