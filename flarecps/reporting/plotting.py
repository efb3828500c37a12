"""What all figures share: colours, axes, legends, and their way into a page, a file or a notebook.

Every figure is a plain ``Figure`` with an Agg canvas: pyplot's global state is never touched, so reports can be
made inside a training process.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from flarecps.atomic import atomic_path

# Charts are drawn in these colours; in the page each becomes a CSS variable with a light and a dark value.
TEXT = "#1b2126"
MUTED = "#6b747c"
GRID = "#d9dde1"
RUN_COLOURS = ("#0f6cbd", "#c2570c", "#1a7f5a", "#8250b8", "#a8326e", "#7a6a00", "#0a7c86", "#5b5f66")
THEME = {TEXT: "--ink", MUTED: "--quiet", GRID: "--rule"} | {c: f"--run-{i}" for i, c in enumerate(RUN_COLOURS)}
# Scans are looked at on black, whatever the theme of the page.
DARK_BACKGROUND, DARK_TEXT, DARK_MUTED = "#0c0f12", "#e8ebee", "#9aa3ab"
CHARACTER_INCHES = 0.0085  # width of an average letter, per point of its size


def run_colour(index: int) -> str:
    """The colour of the run at ``index`` in every chart (they repeat after eight)."""
    return RUN_COLOURS[index % len(RUN_COLOURS)]


def literal_text(text: str) -> str:
    """``text`` as matplotlib prints it letter by letter: no ``$`` formulas, no legend entry hidden by ``_``."""
    shown = text.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def shortened(text: str, most: int) -> str:
    """``text`` in at most ``most`` letters, its middle left out where it is longer: both ends tell cases apart.

    >>> shortened("FLARE22_Tr_0001", 9), shortened("liver", 9)
    ('FLAR…0001', 'liver')
    """
    if len(text) <= most:
        return text
    kept = max(most - 1, 2)
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def letters_within(inches: float, points: float = 8.5) -> int:
    """How many letters of a size fit into a length."""
    return int(inches / CHARACTER_INCHES / points)


def new_figure(width_inches: float, height_inches: float, facecolor: str = "none") -> Figure:
    """An empty figure with its own Agg canvas."""
    figure = Figure(figsize=(width_inches, height_inches), facecolor=facecolor)
    FigureCanvasAgg(figure)
    return figure


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float, **settings: Any) -> Axes:
    """New axes whose place and size are given in inches from the figure's lower left corner."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up), **settings)


def text_at(figure: Figure, left: float, bottom: float, text: str, **style: Any) -> None:
    """``text`` (letter by letter) at a place in inches from the figure's lower left corner."""
    across, up = figure.get_size_inches()
    figure.text(left / across, bottom / up, literal_text(text), **style)


def style_axes(axes: Axes, grid: Literal["x", "y", "both"] = "y") -> None:
    """Give a chart the house's look: no box, quiet ticks, rules behind the data for ``grid`` (y, x or both)."""
    axes.set_facecolor("none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=8.5, length=3, width=0.8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(MUTED)
        label.set_fontsize(9)


def logarithmic(axis: Axis) -> None:
    """Ticks of a logarithmic ``axis`` at 1, 2, 5, 10, …, in plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def name_rows(axes: Axes, names: Sequence[str], height: float = 1.0) -> None:
    """Rows of ``height`` from the top downwards, named at the left."""
    axes.set_ylim(height * len(names), 0)
    axes.set_yticks([(row + 0.5) * height for row in range(len(names))])
    axes.set_yticklabels(list(names), fontsize=9.5, color=TEXT, parse_math=False)


def inline_svg(figure: Figure, alt: str, name: str) -> Markup:
    """``figure`` as an ``<svg>`` element for HTML: real text, theme colours as CSS variables, no outside address.

    ``alt`` is for who can't see it; ids inside the picture are made from ``name``, which is unique in the page.
    """
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", facecolor="none")
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns(:\w+)?|version|width|height)="[^"]*"', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    for colour, variable in THEME.items():
        svg = svg.replace(colour, f"var({variable})")
    width = figure.get_figwidth() * 96
    head = f'<svg role="img" aria-label="{html.escape(alt, quote=True)}" style="width:{width:.0f}px"'
    return Markup(head + svg[len("<svg") :].rstrip())


def png_bytes(figure: Figure, dots_per_inch: float) -> bytes:
    """``figure`` as PNG, its own background kept."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dots_per_inch, facecolor=figure.get_facecolor())
    return stream.getvalue()


def jpeg_bytes(figure: Figure, dots_per_inch: float, quality: int = 88) -> bytes:
    """``figure`` as JPEG: a quarter of PNG's size for slices of scans."""
    stream = io.BytesIO()
    settings = {"quality": quality}
    figure.savefig(stream, format="jpeg", dpi=dots_per_inch, facecolor=figure.get_facecolor(), pil_kwargs=settings)
    return stream.getvalue()


def write_png(path: Path | str, figure: Figure, dots_per_inch: float = 150) -> None:
    """Write ``figure`` to ``path`` atomically; a chart, which has no background of its own, on white."""
    with atomic_path(path) as partial:
        partial.write_bytes(png_bytes(on_white(figure), dots_per_inch))


def on_white(figure: Figure) -> Figure:
    """``figure``, on white if it has no background of its own."""
    if to_rgba(figure.get_facecolor())[3] == 0:
        figure.set_facecolor("white")
    return figure


def method_legend(figure: Figure, names: Sequence[str], top_inches: float) -> None:
    """A line of colours and names of the methods (or runs), ``top_inches`` below the upper edge; none for one."""
    if len(names) < 2:
        return
    entries = [Patch(facecolor=run_colour(index), label=literal_text(name)) for index, name in enumerate(names)]
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 1 - top_inches / figure.get_figheight())}
    style: dict[str, Any] = {"fontsize": 9.5, "labelcolor": TEXT, "columnspacing": 1.6, "borderpad": 0.0}
    figure.legend(handles=entries, ncols=len(entries), **place, **style, **_legend_style(1.0))


def legend_rows(figure_width_inches: float, entries: int) -> int:
    """How many lines a ``bottom_legend`` of so many entries takes."""
    return -(-entries // max(1, int(figure_width_inches / 1.6)))


def bottom_legend(figure: Figure, entries: Sequence[Artist], bottom_inches: float) -> None:
    """A legend on a dark figure, centred ``bottom_inches`` above its lower edge."""
    width, height = figure.get_size_inches()
    columns = -(-len(entries) // legend_rows(width, len(entries)))
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, bottom_inches / height)}
    style: dict[str, Any] = {"fontsize": 8.5, "labelcolor": DARK_TEXT, "columnspacing": 1.5}
    figure.legend(handles=entries, ncols=columns, **place, **style, **_legend_style(1.1))


def _legend_style(handle: float) -> dict[str, Any]:
    return {"frameon": False, "handlelength": handle, "handleheight": handle}


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """``content`` as an address that needs no second file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
