"""Pages: one self-contained HTML file each, of one skeleton (``base.html``)."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flarecps import __version__
from flarecps.reporting.plotting import RUN_COLOURS


def render_page(
    template: str, content: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None
) -> str:
    """The page made of ``template``, a file of this folder, as text. A name that it asks for must be in ``content``.

    Every page also knows ``version``, ``made`` (the time in words) and ``run_colours``.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    shared = {"version": __version__, "made": made, "run_colours": RUN_COLOURS}
    return environment.get_template(template).render(**shared, **content)
