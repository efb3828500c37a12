"""Figures and tables as notebooks show them: what Jupyter asks of the last line of a cell."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from flarecps.reporting.plotting import on_white, png_bytes
from flarecps.reporting.tables import markdown_table


class NotebookFigure:
    """A figure that a notebook shows; charts, which have no background of their own, on white."""

    def __init__(self, figure: Figure, dots_per_inch: float = 80) -> None:
        self.figure = figure
        self.dots_per_inch = dots_per_inch

    def _repr_png_(self) -> bytes:
        return png_bytes(on_white(self.figure), self.dots_per_inch)


class NotebookMarkdown:
    """Markdown that a notebook shows as text and tables."""

    def __init__(self, markdown: str) -> None:
        self.markdown = markdown

    def _repr_markdown_(self) -> str:
        return self.markdown


def notebook_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> NotebookMarkdown:
    """A table that a notebook shows."""
    return NotebookMarkdown(markdown_table(header, [[str(cell) for cell in row] for row in rows]))
