"""What ``fit`` answers before Lightning is imported: help, misspelt names, wrong paths; and configs by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from stores import CONFIGS

from flarecps.cli import configs
from flarecps.cli.main import LIGHTNING_COMMANDS, main
from flarecps.cli.signatures import CLASSES, known_options
from flarecps.cli.training_options import check, given_settings, help_text

HEAVY = {"torch", "lightning", "torchio", "SimpleITK", "scipy"}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """As much of a case store as the checks look at."""
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "store.json").write_text("{}")
    (folder / "splits.json").write_text(json.dumps({"labelled": ["a"], "unlabelled": ["b"], "test": []}))
    return folder


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    assert main(words) == 2
    said = capsys.readouterr()
    assert not said.out
    (line,) = said.err.splitlines()
    return line


@pytest.mark.parametrize("columns", ["0", "1", "40", "-5", "abc"])
def test_help_fits_no_terminal_too_narrow(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert "--trainer.max_epochs" in help_text("fit")


def test_nothing_heavy_is_imported_for_an_answer(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom flarecps.cli.main import main\n"
        "for words in (['fit', '--help'], ['fit', '--data.stor', 'x'], ['fit', '--data.store', 'nowhere'],\n"
        "              ['test', '--config', 'nowhere'], ['configs']):\n    main(words)\n"
        f"sys.exit(bool({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 3


@pytest.mark.parametrize("part", CLASSES)
def test_options_read_from_source_are_the_classes_own(part: str) -> None:
    import inspect

    from flarecps.data.datamodule import ScanDataModule
    from flarecps.training.module import SegmentationModule

    owner = {"data": ScanDataModule, "model": SegmentationModule}[part]
    assert set(known_options(part)) == set(inspect.signature(owner.__init__).parameters) - {"self"}
    assert all(text for _, text in known_options(part).values()), "each with its explanation"


def test_lightnings_options_are_found() -> None:
    assert {"max_epochs", "precision", "default_root_dir", "callbacks"} <= set(known_options("trainer"))


@pytest.mark.parametrize("command", LIGHTNING_COMMANDS)
def test_help_names_every_option_of_ours(command: str) -> None:
    text = help_text(command)
    for part in CLASSES:
        for name in set(known_options(part)) - {"plan", "predict_input"}:
            assert f"--{part}.{name} " in text
    assert ("--overwrite" in text) == (command == "fit")
    assert ("--data.predict_input" in text) == (command == "predict")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.stor", "x"], "no option --data.stor; did you mean --data.store?"),
        (["--workers", "3"], "no option --workers; did you mean --data.workers?"),
        (["--ckpt-path", "last"], "no option --ckpt-path; did you mean --ckpt_path?"),
        (["--trainer.max_epoch", "3"], "no option --trainer.max_epoch; did you mean --trainer.max_epochs?"),
        (["--model.clipnorm=3"], "no option --model.clipnorm; did you mean --model.clip_norm?"),
        (["store"], "unexpected 'store'"),
        ([], "fit needs --data.store STORE"),
        (["--data.store", "nowhere"], "nowhere: no such case store; 'flarecps preprocess DATASET PLAN --out nowhere'"),
        (["--config", "flare22"], "flare22: no such config file, nor a config's name; did you mean flare22_"),
        (["--config", "nowhere/a.yaml"], "nowhere/a.yaml: no such config file"),
        (["--config", "flare22_3d"], "stores/flare22: no such case store"),
        (["--data.store", "STORE", "--data.split", "ten"], "no split 'ten'; it has default"),
        (["--data.store", "STORE", "--ckpt_path", "a.ckpt"], "a.ckpt: no such checkpoint"),
        (["--data.store", "STORE", "--ckpt_path", "last"], "no such checkpoint"),
        (["--data.store", "STORE", "--init", "a.ckpt"], "a.ckpt: no such checkpoint to start from"),
        (["--data.store", "STORE", "--trainer.max_epochs", "-2"], "trainer.max_epochs is -2"),
        (["--data.store", "STORE", "--trainer.default_root_dir", "STORE/run"], "holds checkpoints already"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    words: list[str], message: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "run" / "checkpoints").mkdir(parents=True)
    (store / "run" / "checkpoints" / "last.ckpt").touch()
    assert message in refused(["fit", *(word.replace("STORE", str(store)) for word in words)], capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dat: {store: x}", "no setting dat; did you mean data?"),
        ("data: {store: x, patch_voxel: [3]}", "no setting data.patch_voxel; did you mean data.patch_voxels?"),
        ("trainer: {max_epoch: 3}", "no setting trainer.max_epoch; did you mean trainer.max_epochs?"),
        ("data: [", "can't be read as YAML"),
        ("- 3", "holds no settings"),
    ],
)
def test_a_configs_mistakes_name_the_config(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.yaml").write_text(text)
    line = refused(["fit", "--config", str(tmp_path / "my.yaml")], capsys)
    assert line.startswith(f"flarecps fit: {tmp_path / 'my.yaml'}: ")
    assert message in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.method.init_args.rmap.start", "3"], "no setting model.method.init_args.rmap; did you mean ramp?"),
        (["--model.method.init_args.ramp.strt", "3"], "model.method.init_args.ramp.strt; did you mean start?"),
        (["--model.topology", "{featurs: [3]}"], "no setting model.topology.featurs; did you mean features?"),
        (["--model.topology.stride", "[1]"], "no setting model.topology.stride; did you mean strides?"),
        (["--model.method", "flarecps.methods.Supervise"], "did you mean flarecps.methods.Supervised?"),
        (["--config", "data: {augmentation: {noise_chance: 1, blu: 2}}"], "no setting data.augmentation."),
        (
            ["--config", "{model: {network: {class_path: flarecps.networks.PlainUnet}}}"],
            "did you mean flarecps.networks.PlainUNet?",
        ),
        (
            ["--config", "{model: {method: {init_args: {loss: {class_path: flarecps.losses.DiceCrossEntropy, "
             "init_args: {batch_dise: 1}}}}}}"],
            "no setting model.method.init_args.loss.init_args.batch_dise; did you mean batch_dice?",
        ),
    ],
)  # fmt: skip
def test_deeper_settings_are_checked_by_their_classes(
    words: list[str], message: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(["fit", "--data.store", str(store), *words], capsys)


def test_what_is_right_passes(store: Path, tmp_path: Path) -> None:
    """Every config of ours, classes of somebody else's, short names, former keys, lists and references."""
    for path in CONFIGS.glob("*.yaml"):
        split = ["--data.split", "default"]
        check("fit", ["--config", path.stem, "--data.store", str(store), *split, "--trainer.default_root_dir", "new"])
    for words in (
        ["--model.method", "Supervised"],
        ["--model.method", "my_lab.MeanTeacher", "--model.method.init_args.decay", "0.9"],
        ["--model.network", "my_lab.nets.MyUNet"],
        ["--model.scheduler.init_args.total_iters", "7"],
        ["--model.cross_pseudo_supervision", "false"],
        ["--model.ramp.start", "2"],
        ["--trainer.callbacks+", "my_lab.Callback"],
        ["--trainer.callbacks", "[{class_path: my.Callback, init_args: {epoch: 1}}]"],
        ["--data.transforms", "[{class_path: torchio.RandomFlip}]"],
        ["--data.augmentation", "false"],
        ["--trainer.max_epochs=-1", "--seed_everything=3", "--dry-run"],
        ["--config", "data: {seed: '${seed_everything}'}", "--trainer.logger=false"],
        ["--ckpt_path", "auto", "--weights_only", "true"],
        ["--print_config"],
    ):
        check("fit", ["--data.store", str(store), "--trainer.default_root_dir", str(tmp_path / "new"), *words])


def test_settings_of_configs_and_options_are_put_together(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {store: one, fold: 0}\nseed_everything: 3\n")
    words = [
        "--config",
        str(tmp_path / "a.yaml"),
        "--data.store=two",
        "--model.topology.features",
        "[1, 2]",
        "--dry-run",
    ]
    assert given_settings(words) == {
        "data.store": "two", "data.fold": 0, "seed_everything": 3, "model.topology.features": "[1, 2]",
        "dry_run": "true",
    }  # fmt: skip


# -- configs by name


def test_configs_are_listed_and_copied_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    listed = capsys.readouterr().out.splitlines()
    end = listed.index("")
    for folder, lines in ((CONFIGS, listed[1:end]), (CONFIGS / "studies", listed[end + 2 :])):
        assert [line.split()[0] for line in lines] == sorted(path.stem for path in folder.glob("*.yaml"))
        assert all(len(line.split()) > 5 for line in lines)
    assert main(["configs", "--copy", "kbp_3d", "la_3d.yaml", "--out", str(tmp_path / "mine")]) == 0
    assert "next: flarecps fit --config" in capsys.readouterr().out.splitlines()[-1]
    for name in ("kbp_3d", "la_3d"):
        assert (tmp_path / "mine" / f"{name}.yaml").read_bytes() == (CONFIGS / f"{name}.yaml").read_bytes()
    assert main(["configs", "--copy", "kbp_3d", "--out", str(tmp_path / "mine")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert configs.found_config("kbp_3d") == str(CONFIGS / "kbp_3d.yaml")
    for text in ("data: {fold: 0}", "data:\n  store: " + "x" * 5000):
        assert configs.found_config(text) == text
    Path("kbp_3d").write_text("data: {fold: 0}")
    assert configs.found_config("kbp_3d") == "kbp_3d"


def test_an_installed_package_finds_its_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel's data lie below the environment, the user's folder or the target, not beside the package."""
    place = tmp_path / "share" / "flarecps"
    (place / "configs").mkdir(parents=True)
    (place / "configs" / "mine.yaml").write_text("# one line\ndata: {fold: 0}\n")
    monkeypatch.setattr(configs, "PLACES", (tmp_path / "empty", place))
    assert configs.preset_names() == ["mine"]
    assert yaml.safe_load(configs.config_path("mine").read_text()) == {"data": {"fold": 0}}
