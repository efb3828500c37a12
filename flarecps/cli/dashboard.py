"""``flarecps dashboard``: the charts of a wandb project in sections for reading, as a saved view."""

from __future__ import annotations

import re
from pathlib import Path


def dashboard(project: str, /, *, like: Path | None = None) -> None:
    """Save a view of a wandb project's charts, "flarecps": is it learning, how good is it, are the pseudo-labels sound.

    Once per project: it shows every run, past and to come, and everybody who may see the project can choose it. Given
    again, the command puts the view's panels back as they were. Server and key are wandb's (WANDB_BASE_URL, 'wandb
    login').

    Args:
        project: ENTITY/PROJECT, as in the address of the project's page.
        like: folder of a run such as those of the project: the view then has its pictures, names its organs, and leaves
            out what it does not log.
    """
    from flarecps.cli import PLAIN
    from flarecps.cli.console import Console
    from flarecps.errors import ConfigError
    from flarecps.reporting.dashboard_layout import layout, logged_names
    from flarecps.reporting.wandb_view import save_view

    if not re.fullmatch(r"[^/?#%:\\\s]+/[^/?#%:\\\s][^/?#%:\\]*", project):
        raise ConfigError(f"{project}: expected ENTITY/PROJECT, as in the address of the project's page")
    entity, _, name = project.partition("/")
    sections = layout(None if like is None else logged_names(like))
    address = save_view(entity, name, sections)
    panels = sum(len(section.panels) for section in sections)
    Console().print(f"saved: {panels} panels in {len(sections)} sections: {address}", **PLAIN)
