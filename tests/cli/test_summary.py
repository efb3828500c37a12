"""``flarecps summary``: the numbers of a config, and of the checkpoint it trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from stores import CONFIGS, TinyStores, fit

from flarecps.cli.main import main


def test_summary_of_a_config_and_of_its_checkpoint(
    tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = fit("phantom_3d.yaml", tiny_stores, tmp_path / "run", epochs=1)
    capsys.readouterr()
    assert main(["summary", str(run / "checkpoints" / "last.ckpt")]) == 0
    of_checkpoint = capsys.readouterr().out
    assert "2 × PlainUNet (3D)" in of_checkpoint
    assert "after 1 epochs" in of_checkpoint

    settings = yaml.safe_load((CONFIGS / "phantom_3d.yaml").read_text())
    settings["data"] |= {"store": str(tiny_stores.three), "patch_voxels": [16, 16, 16]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["summary", "--config", str(tmp_path / "config.yaml")]) == 0
    of_config = capsys.readouterr().out
    for quantity in ("parameters, each", "MACs, one forward pass", "patch (slice", "memory of a step"):
        (ours,) = (line for line in of_checkpoint.splitlines() if quantity in line)
        assert ours in of_config


def test_the_papers_numbers_come_from_its_config(
    tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table 2: 30.79 M parameters and 585.43 G."""
    monkeypatch.setenv("COLUMNS", "200")
    settings = yaml.safe_load((CONFIGS / "flare22_3d.yaml").read_text())
    settings["data"] |= {"store": str(tiny_stores.three), "fold": "all"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["summary", "--config", str(tmp_path / "config.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "30.79 M" in shown
    assert "585.43 G" in shown


def test_summary_wants_one_of_both() -> None:
    assert main(["summary"]) == 2
