"""The console that every command prints by: what a file's name or content holds is shown, and obeyed by no terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment
from rich.text import Text

from flarecps.errors import visible


class Console(rich.console.Console):
    """rich's console; control characters in what it is given are printed as escapes ("\\x1b")."""

    def on_broken_pipe(self) -> None:
        """Nobody reads on, as after ``head``: the error goes on to `main`, which knows the exit code."""
        raise

    def render_str(self, text: str, **options: Any) -> Text:
        """rich's text of a string, which is made visible before it is laid out."""
        return super().render_str(visible(text), **options)

    def render(self, *args: Any, **options: Any) -> Iterable[Segment]:
        """rich's segments of something printable, their text made visible; rich's own control codes are kept."""
        for segment in super().render(*args, **options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))
