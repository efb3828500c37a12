"""Figures on their way into a page or a file: inline SVG that follows the page's theme, PNG, data URIs.

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

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from flarecps.atomic import atomic_path

# Charts are drawn in these colours; in the page each becomes a CSS variable with a light and a dark value.
INK = "#1b2126"
QUIET = "#6b747c"
RULE = "#d9dde1"
RUN_COLOURS = ("#0f6cbd", "#c2570c", "#1a7f5a", "#8250b8", "#a8326e", "#7a6a00", "#0a7c86", "#5b5f66")
THEME = {INK: "--ink", QUIET: "--quiet", RULE: "--rule"} | {c: f"--run-{i}" for i, c in enumerate(RUN_COLOURS)}


def run_colour(index: int) -> str:
    """The colour of the run at ``index`` in every chart (they repeat after eight)."""
    return RUN_COLOURS[index % len(RUN_COLOURS)]


def plain(text: str) -> str:
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


def new_figure(width_inches: float, height_inches: float, facecolor: str = "none") -> Figure:
    """An empty figure with its own Agg canvas."""
    figure = Figure(figsize=(width_inches, height_inches), facecolor=facecolor)
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes) -> None:
    """Give a chart the house's look: no box, quiet ticks, horizontal rules behind the data."""
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)
    axes.tick_params(colors=QUIET, labelsize=8.5, length=3, width=0.8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(QUIET)
    axes.yaxis.label.set_color(QUIET)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)


def inline_svg(figure: Figure, alt: str, name: str) -> str:
    """``figure`` as an ``<svg>`` element for HTML: real text, theme colours as CSS variables, no outside address.

    Args:
        figure: a chart drawn in this module's colours.
        alt: what a reader who can't see the picture should know.
        name: unique in the page; the ids inside the picture are made from it.
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
    return head + svg[len("<svg") :].rstrip()


def png_bytes(figure: Figure, dots_per_inch: float) -> bytes:
    """``figure`` as PNG, its own background kept."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dots_per_inch, facecolor=figure.get_facecolor())
    return stream.getvalue()


def write_png(path: Path | str, figure: Figure, dots_per_inch: float = 150) -> None:
    """Write ``figure`` to ``path`` atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(png_bytes(figure, dots_per_inch))


def write_jpeg(path: Path | str, figure: Figure, dots_per_inch: float = 100) -> None:
    """Write ``figure`` to ``path`` atomically as JPEG: a quarter of PNG's size for slices of scans."""
    with atomic_path(path) as partial:
        figure.savefig(
            partial, format="jpeg", dpi=dots_per_inch, facecolor=figure.get_facecolor(), pil_kwargs={"quality": 88}
        )


def write_chart(path: Path | str, figure: Figure, dots_per_inch: float = 150) -> None:
    """Write a chart, which has no background of its own, on white to ``path`` atomically."""
    figure.set_facecolor("white")
    write_png(path, figure, dots_per_inch)


def method_legend(figure: Figure, names: Sequence[str], top_inches: float) -> None:
    """A line of colours and names of the methods (or runs), ``top_inches`` below the upper edge; none for one."""
    if len(names) < 2:
        return
    entries = [Patch(facecolor=run_colour(index), label=plain(name)) for index, name in enumerate(names)]
    figure.legend(
        handles=entries,
        loc="upper center",
        bbox_to_anchor=(0.5, 1 - top_inches / figure.get_figheight()),
        ncols=len(entries),
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
        handlelength=1.0,
        handleheight=1.0,
        borderpad=0.0,
        columnspacing=1.6,
    )


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """``content`` as an address that needs no second file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
