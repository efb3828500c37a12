"""`flarecps dashboard`: what wandb-workspaces sends to a stand-in for wandb's server, and every refusal in one line."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb_server import WandbServer, wandb_server

from flarecps.cli.main import main
from flarecps.reporting.dashboard_layout import Panel, layout

NAME = "nw-flarecps-v"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """wandb's server at WANDB_BASE_URL, somebody's key, and a home folder without one."""
    pytest.importorskip("wandb_workspaces", reason="needs the extra dashboard: pip install wandb-workspaces")
    import wandb

    def stop() -> None:
        with contextlib.suppress(ConnectionError):  # of another test's, which may be dead
            wandb.teardown()

    stop()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    (tmp_path / "home").mkdir()
    with wandb_server() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.address)
        yield found
    stop()


def sections(server: WandbServer) -> list[dict[str, Any]]:
    return json.loads(server.views[NAME]["spec"])["section"]["panelBankConfig"]["sections"]


def test_a_view_is_saved_once_and_then_replaced(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert main(["dashboard", "someone/flarecps"]) == 0
    out, err = capsys.readouterr()
    assert out == f"saved: 22 panels in 6 sections: {server.address}/someone/flarecps?nw=flarecps\n"
    assert err == ""
    sent = server.views[NAME]
    assert (sent["entityName"], sent["projectName"], sent["displayName"]) == ("someone", "flarecps", "flarecps")
    assert "id" not in sent
    settings = json.loads(sent["spec"])["section"]["settings"]
    assert (settings["xAxis"], settings["shouldAutoGeneratePanels"]) == ("epoch", False)

    expected = layout()
    assert [(one["name"], one["isOpen"]) for one in sections(server)] == [(one.name, one.is_open) for one in expected]
    for saved, section in zip(sections(server), expected, strict=True):
        assert len(saved["panels"]) == len(section.panels)
        flow = saved["flowConfig"]
        assert flow["columnsPerPage"] * flow["rowsPerPage"] >= len(section.panels), "no second page"
        for panel, wanted in zip(saved["panels"], section.panels, strict=True):
            check_panel(panel, wanted)

    assert main(["dashboard", "someone/flarecps"]) == 0
    assert list(server.views) == [NAME]
    assert server.views[NAME]["id"] == "V1", "the same view"
    assert [one["name"] for one in sections(server)] == [one.name for one in expected]
    assert server.unknown == []
    assert not list(here.iterdir())
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def check_panel(panel: dict[str, Any], wanted: Panel) -> None:
    config = panel["config"]
    if wanted.kind == "table":
        assert panel["viewType"] == "Weave"
        assert f'"{wanted.metrics[0]}"' in json.dumps(config)
        return
    assert panel["viewType"] == "Run History Line Plot"
    assert (config["chartTitle"], config["xAxis"]) == (wanted.title, "epoch")
    assert tuple(config["metrics"]) == wanted.metrics
    assert config.get("metricRegex", "") == wanted.pattern
    assert config.get("useMetricRegex", False) == bool(wanted.pattern)
    assert (config.get("yAxisMin"), config.get("yAxisMax")) == ((0, 1) if wanted.is_share else (None, None))
    assert (config.get("smoothingWeight", 0) > 0) == wanted.smoothed


def test_a_view_like_a_run_has_its_pictures(server: WandbServer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for place in ("csv", "overlays/case_1", "overlays/case_2"):
        (run / place).mkdir(parents=True)
        (run / place / "epoch_0001.jpg").touch()
    (run / "validation.csv").touch()
    (run / "csv" / "metrics.csv").write_text("epoch,train/loss,validation/dsc/average/liver\n1,0.5,0.25\n")
    assert main(["dashboard", "someone/flarecps", "--like", str(run)]) == 0
    learning, good, pictures = sections(server)
    assert [panel["config"]["metrics"] for panel in learning["panels"]] == [["train/loss"]]
    assert [panel["config"]["metrics"] for panel in good["panels"]] == [["validation/dsc/average/liver"]]
    first, second, table = pictures["panels"]
    assert [one["viewType"] for one in (first, second)] == ["Media Browser"] * 2
    assert [one["config"]["mediaKeys"] for one in (first, second)] == [["overlays/case_1"], ["overlays/case_2"]]
    assert table["viewType"] == "Weave"


@pytest.mark.parametrize(
    ("variable", "value", "project", "said"),
    [
        ("WANDB_API_KEY", None, "someone/flarecps", "not logged in to wandb at http://127.0.0.1"),
        ("WANDB_API_KEY", "short", "someone/flarecps", "refuses this key"),
        ("WANDB_BASE_URL", "http://127.0.0.1:9", "someone/flarecps", "wandb at http://127.0.0.1:9 can't be reached"),
        ("WANDB_BASE_URL", "wandb.my.org", "someone/flarecps", "WANDB_BASE_URL wandb.my.org: expected an address"),
        ("WANDB_MODE", "offline", "nobody/flarecps", "nobody/flarecps: wandb at http://127.0.0.1"),
        ("WANDB_MODE", "online", "someone/nothing", "has no such project"),
        ("WANDB_MODE", "online", "flarecps", "expected ENTITY/PROJECT"),
    ],
)
def test_what_fails_is_said_in_one_line(
    variable: str, value: str | None, project: str, said: str,
    server: WandbServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    assert main(["dashboard", project]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
    assert server.views == {}


def test_a_key_that_may_not_write_is_said(server: WandbServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.views_refused = "permission denied"
    assert main(["dashboard", "someone/flarecps"]) == 2
    assert "did not save the view of someone/flarecps" in (err := capsys.readouterr().err)
    assert "permission denied" in err


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb_workspaces"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(["dashboard", "someone/flarecps"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "pip install wandb-workspaces" in err
