"""Protocols as files: what they say, what they refuse, and that they can say what benchmarks/kbp did."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from flarecps.cli.configs import config_path
from flarecps.datasets.catalogue import Catalogue
from flarecps.datasets.splits import Split
from flarecps.errors import ConfigError
from flarecps.experiments.study.cost import Costs, scaled
from flarecps.experiments.study.drafting import draft, only_arms
from flarecps.experiments.study.protocol import protocol_text, read_protocol
from flarecps.experiments.study.splits import StudySplits
from flarecps.experiments.study.stages import Cell, StudyStages

REPOSITORY = Path(__file__).resolve().parents[2]
STUDIES = sorted((REPOSITORY / "configs" / "studies").glob("*.yaml"))
SMALL: dict[str, Any] = {
    "primary": {"method": "cps", "baseline": "control"},
    "judged": {"by": "folds"},
    "settings": {"trainer.max_epochs": 4, "data.iterations_per_epoch": 2},
    "arms": {"control": {}, "cps": {"settings": {"model.method": "flarecps.methods.CrossPseudoSupervision"}}},
}

RAMP, CPS = "model.method.init_args.ramp", SMALL["arms"]["cps"]["settings"]


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "protocol.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes))
    return path


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_protocols_that_come_along_are_whole(path: Path, tmp_path: Path) -> None:
    found = read_protocol(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(protocol_text(found), encoding="utf-8")
    assert read_protocol(copy) == found
    costs = Costs(found, config_path)
    assert all(costs.total(arm.name) > 0 for arm in found.arms)


@pytest.mark.parametrize("unlabelled", [True, False])
def test_the_draft_is_fair(unlabelled: bool, tmp_path: Path) -> None:
    found = draft(5, 2, 100, 50, unlabelled)
    copy = tmp_path / "copy.yaml"
    copy.write_text(protocol_text(found), encoding="utf-8")
    assert read_protocol(copy) == found
    costs = Costs(found, config_path)
    assert costs.recipe("control").epochs == 100
    equal = ["control_long", "control_two", *(["cps", "self"] if unlabelled else [])]
    totals = [costs.total(name) for name in equal]
    assert max(totals) <= 1.02 * min(totals)
    assert costs.reads_unlabelled("control_two") is False
    if unlabelled:
        assert costs.reads_unlabelled("self")
        assert costs.reads_unlabelled("cps")
        half = Costs(scaled(found, {"control": 50, "cps": 50}, costs), config_path)
        assert half.recipe("cps").method.weight(17) == pytest.approx(costs.recipe("cps").method.weight(34), abs=0.02)
        assert half.total("control_long") == pytest.approx(costs.total("control_long") / 2, rel=0.02)


def test_equal_compute_counts_as_kbps_protocol_does() -> None:
    kbp, old = read_protocol(REPOSITORY / "configs" / "studies" / "kbp.yaml"), kbp_module("protocol")
    assert Costs(kbp, config_path).recipe("control_long").epochs == old.LONG == old.equal_compute_epochs()


def kbp_module(name: str) -> ModuleType:
    folder = REPOSITORY / "benchmarks" / "kbp"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(f"kbp_{name}", folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(folder))


def settings_of(words: Any) -> dict[str, Any]:
    """The settings that words of ``fit`` give, by name, as YAML reads their values; the last of a name counts."""
    found, rest = {}, list(map(str, words))[1:]
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        found[name] = yaml.safe_load(value if equals else rest.pop(0))
    return found


@pytest.mark.parametrize(("study", "runs"), [("kbp", "ordered_runs"), ("kbp_screen", "screen_runs")])
def test_kbps_trainings_are_the_protocols(study: str, runs: str, tmp_path: Path) -> None:
    """Every training of benchmarks/kbp/run.py, setting by setting; "fold all" is in its configs."""
    old, protocol = kbp_module("run"), read_protocol(REPOSITORY / "configs" / "studies" / f"{study}.yaml")
    catalogue = Catalogue(tmp_path, "kbp", {"background": 0}, ("CT",), (), ())
    splits = StudySplits(catalogue, {name: Split(()) for name in protocol.judged.splits}, {})
    made = StudyStages(protocol, Costs(protocol, config_path), splits, tmp_path, tmp_path / "out")
    trained = {stage.name for stage in made.judged_stages() if stage.name.startswith("train_")}
    count = 0
    for run in getattr(old, runs)(3):
        labels = f"{run.labels}_labelled"
        arm = protocol.arm(run.arm.name)
        assert (arm.intensity, arm.siblings, arm.shown, arm.teachers) == (
            run.arm.intensity, run.arm.siblings, run.arm.title, run.arm.teachers)  # fmt: skip
        cell = Cell(arm.name, labels, 0, run.seed)
        assert f"train_{cell.name}" in trained
        ours = settings_of(made.trained(cell)[-1].words)
        theirs = settings_of(old.fit_words(run, made.store(arm.intensity), made.run(cell)))
        if run.labels == 142:
            theirs.pop("data.unlabelled")  # the controls' config says so already
        assert ours.pop("data.fold") == "all"
        for name in (
            "trainer.max_epochs",
            "model.scheduler.init_args.total_iters",
        ):  # said even where it is the config's
            theirs.setdefault(name, 40)
        theirs = {name: value for name, value in theirs.items() if not name.startswith("trainer.callbacks")}
        if arm.teachers:
            seeds = [stage.words for stage in made.trained(cell) if stage.words[0] == "pseudo-label"]
            assert [f"seed_{(run.seed + step) % 3}" in seeds[0][1 + step] for step in (0, 1)] == [True, True]
            ours.pop("data.pseudo_labels")
        assert Path(str(ours.pop("config"))).name == Path(str(theirs.pop("config"))).name
        assert ours == theirs
        count += 1
    assert count > 40


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"primari": {}}, "did you mean 'primary'?"),
        ({"judged": {"by": "fold"}}, "'folds' or 'test' or 'withheld'"),
        ({"judged": {True: "folds"}}, "'judged.by' is missing"),  # YAML's "on"
        ({"judged": {"by": "test"}}, "needs 'splits'"),
        ({"judged": {"by": "folds", "splits": ["default"]}}, "'splits' and 'scans' say nothing"),
        ({"judged": {"by": "folds", "learning_curve": [0.5, 1.5]}}, "between 0 and 1"),
        ({"primary": {"method": "csp", "baseline": "control"}}, "did you mean cps?"),
        ({"primary": {"method": "cps", "baseline": "cps"}}, "one arm; expected two"),
        ({"arms": {}}, "'arms' is empty"),
        ({"arms": SMALL["arms"] | {"cps": {"sibling": ["1"]}}}, "did you mean 'siblings'?"),
        ({"arms": SMALL["arms"] | {"cps": {"siblings": ["3"]}}}, "which is no sibling"),
        ({"arms": SMALL["arms"] | {"two": {"average_of": "control", "config": "x"}}}, "has no training"),
        ({"arms": SMALL["arms"] | {"two": {"average_of": "two"}}}, "another arm with a training of its own"),
        ({"arms": SMALL["arms"] | {"../x": {}}}, "its name"),
        ({"arms": 3}, "expected an object"),
        ({"post_processing": ["largst"]}, "did you mean largest?"),
        ({"judged": {"by": "test", "splits": ["a"]}}, "determined on held-out folds"),
        ({"seeds": 0}, "at least 1"),
    ],
)  # fmt: skip
def test_a_protocols_mistakes_are_told(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ConfigError) as error:
        read_protocol(path)
    assert str(path) in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"settings": {"model.method": "flarecps.methods.Superwised"}}, "can't be made"),
        ({"settings": {"model.method": "pathlib.Path"}}, "is no flarecps.methods.Method"),
        ({"settings": {"trainer.max_epochs": "many"}}, 'trainer.max_epochs is "many"'),
        ({"compute_of": "cps", "teachers": "cps"}, "expected an arm with epochs of its own"),
        ({"config": "phantom_3d_supervize"}, "no such config"),
        ({"settings": {"data.iterations_per_epoch": None}}, "data.iterations_per_epoch is null"),
        ({"settings": {"data.global_batch": [2]}}, "expected patches by kind"),
        ({"settings": CPS | {RAMP: 3}}, "can't be made"),
        ({"settings": CPS | {RAMP: {"start": "x"}}}, "can't be made"),
        ({"settings": CPS | {RAMP: {"length": [1]}}}, "can't be made"),
        ({"settings": CPS | {RAMP: {"end": 1}}}, "can't be made"),
    ],
)
def test_an_arm_that_cannot_be_trained_is_told(arm: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        Costs(read_protocol(written(tmp_path, arms=SMALL["arms"] | {"other": arm})), config_path).total("other")


def test_teachers_that_leave_nothing_for_the_student(tmp_path: Path) -> None:
    arms = SMALL["arms"] | {
        "long": {"settings": {"trainer.max_epochs": 50}},
        "student": {
            "settings": {"model.method": "flarecps.methods.SelfTraining"},
            "teachers": "long",
            "compute_of": "cps",
        },
    }
    with pytest.raises(ConfigError, match="nothing is left for the student"):
        Costs(read_protocol(written(tmp_path, arms=arms)), config_path).total("student")


def test_some_arms_bring_what_they_need() -> None:
    found = only_arms(draft(5, 1, 10, 5, True), ["control_two"])
    assert [(arm.name, bool(arm.siblings)) for arm in found.arms] == [
        ("control_long", True), ("control_half", False), ("control_two", True), ("cps", False)]  # fmt: skip
    assert found.primary.method == "control_two"
    with pytest.raises(ConfigError, match="did you mean cps"):
        only_arms(found, ["csp"])
    with pytest.raises(ConfigError, match="only the baseline"):
        only_arms(found, ["control_long"])
