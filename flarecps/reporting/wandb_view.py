"""A layout saved to a wandb project as a view that everybody who may see the project can choose."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from flarecps.errors import ConfigError
from flarecps.metric_names import EPOCH
from flarecps.reporting.dashboard_layout import Panel, Section

VIEW = "flarecps"  # its name, and what its address ends with: saved again, it replaces itself
INTERNAL_NAME = f"nw-{VIEW}-v"  # as wandb keeps a view whose address says nw=VIEW
SMOOTHING = {"smoothing_type": "exponentialTimeWeighted", "smoothing_factor": 0.6, "smoothing_show_original": True}
PATIENCE = {"x_graphql_retry_max": 1, "x_graphql_timeout_seconds": 10.0}  # someone waits; wandb's own is for trainings
REFUSED = re.compile(r"invalid credentials|API key|\b40[13]\b")
LONGEST = 200  # characters of wandb's own words


def save_view(entity: str, project: str, sections: Sequence[Section]) -> str:
    """Save the view ``VIEW`` of a wandb project, or replace its panels; its address.

    Which server, and by which key, is wandb's to know (WANDB_BASE_URL, WANDB_API_KEY, 'wandb login'). What was set in
    the browser for the view's runs (colours, filters) stays. Nothing is left on this machine.

    Raises ConfigError in one line: a package is missing, no key, a key that is refused, no such entity or project, a
    server that can't be reached or does not take the view.
    """
    address = os.environ.get("WANDB_BASE_URL") or "https://wandb.ai"
    if not re.match("https?://", address):
        raise ConfigError(f"WANDB_BASE_URL {address}: expected an address such as https://wandb.example.org")
    wandb, workspaces = _packages()
    panels = [_section(workspaces, section) for section in sections]
    settings = workspaces.WorkspaceSettings(x_axis=EPOCH, group_by_prefix="first")
    server = address
    try:
        with _wandb_of_its_own(wandb) as server:
            view = _former(workspaces, entity, project)
            if view is None:
                view = workspaces.Workspace(entity=entity, project=project)
                view._internal_name = INTERNAL_NAME  # else each saving makes another view
            view.name, view.sections, view.settings = VIEW, panels, settings
            view.save()
            return str(view.url)
    except wandb.errors.UsageError as error:
        raise ConfigError(
            f"not logged in to wandb at {server}: 'wandb login --host {server}', or set WANDB_API_KEY"
        ) from error
    except Exception as error:  # wandb's, its service's and the network's errors have no common base
        raise ConfigError(_said(error, server, f"{entity}/{project}")) from error


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        import wandb
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ConfigError(
            f"a saved view needs the package {(error.name or 'wandb-workspaces').replace('_', '-')}: "
            "pip install wandb-workspaces (in a checkout: pip install '.[dashboard]')"
        ) from error
    return wandb, workspaces


@contextmanager
def _wandb_of_its_own(wandb: Any) -> Iterator[str]:
    """The address of wandb's server, while a service of wandb's runs that asks nothing and leaves no file behind."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        cache = os.environ.setdefault("WANDB_CACHE_DIR", place)  # its service's log
        try:
            yield str(wandb.setup(wandb.Settings(silent=True, **PATIENCE)).settings.base_url).rstrip("/")
        finally:
            with suppress(Exception, SystemExit):  # the service may be gone: wandb exits as it did
                wandb.teardown()
            if cache == place:
                del os.environ["WANDB_CACHE_DIR"]


def _former(workspaces: Any, entity: str, project: str) -> Any:
    """The view as it was saved before; None where it was not. ValueError where the project is not there.

    Of the address its package reads only what comes after the server's name.
    """
    try:
        return workspaces.Workspace.from_url(f"https://wandb.ai/{entity}/{project}?nw={VIEW}")
    except ValueError as error:
        if "not found in project" in str(error):
            return None
        raise


def _section(workspaces: Any, section: Section) -> Any:
    return workspaces.Section(
        name=section.name,
        is_open=section.is_open,
        panels=[_panel(panel) for panel in section.panels],
        panel_settings=workspaces.SectionPanelSettings(x_axis=EPOCH),
        layout_settings=workspaces.SectionLayoutSettings(columns=3, rows=-(-len(section.panels) // 3)),
    )


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as parts

    if panel.kind == "picture":
        return parts.MediaBrowser(title=panel.title, media_keys=list(panel.metrics), num_columns=1)
    if panel.kind == "table":
        return parts.WeavePanelSummaryTable(table_name=panel.metrics[0])
    return parts.LinePlot(
        title=panel.title,
        x=EPOCH,
        y=list(panel.metrics),
        metric_regex=panel.pattern or None,
        range_y=(0, 1) if panel.is_share else (None, None),
        **(SMOOTHING if panel.smoothed else {"smoothing_type": "none"}),
    )


def _said(error: Exception, server: str, path: str) -> str:
    """wandb's error in a line, with the cure that its words suggest."""
    words = " ".join(str(error.__cause__ or error).split())
    reason = words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"
    if REFUSED.search(words):
        return f"wandb at {server} refuses this key ({reason}); 'wandb login --relogin --host {server}' stores another"
    if "giving up" in words or "respond" in words:
        return f"wandb at {server} can't be reached ({reason}); check the network, or WANDB_BASE_URL for another server"
    if re.search("Project .* not found", words):
        return (
            f"{path}: wandb at {server} has no such project, or not for this key; expected ENTITY/PROJECT as in the "
            "address of its page (the first training that is logged online makes it)"
        )
    return f"wandb at {server} did not save the view of {path}: {reason}"
