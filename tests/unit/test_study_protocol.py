"""Protocols as files: what they say, what they refuse, and that they say what benchmarks/ did."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from flarecps.cli.configs import config_path
from flarecps.datasets.catalogue import Catalogue
from flarecps.datasets.splits import Split
from flarecps.errors import ConfigError
from flarecps.experiments.study.cost import TOTAL, Costs, scaled
from flarecps.experiments.study.drafting import draft, only_arms
from flarecps.experiments.study.protocol import Protocol
from flarecps.experiments.study.protocol_file import protocol_text, read_protocol
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


def in_plans(control: str, cps: str, **more: Any) -> dict[str, Any]:
    return {"control": {"plan": control, **more}, "cps": SMALL["arms"]["cps"] | {"plan": cps}}


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
    assert all(costs.total(arm.name) > 0 for arm in found.arms if not arm.predictions)


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
        student, teacher = (costs.recipe(name).epochs for name in ("self", found.arm("self").teachers))
        assert student >= teacher  # shorter students were worse than their teachers on kbp
        half = Costs(scaled(found, {"control": 50, "cps": 50}, costs), config_path)
        assert half.recipe("cps").method.weight(17) == pytest.approx(costs.recipe("cps").method.weight(34), abs=0.02)
        assert half.total("control_long") == pytest.approx(costs.total("control_long") / 2, rel=0.02)


def settings_of(words: Any) -> dict[str, Any]:
    """The settings that words of ``fit`` give, by name, as YAML reads their values; the last of a name counts."""
    found, rest = {}, list(map(str, words))[1:]
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        found[name] = yaml.safe_load(value if equals else rest.pop(0))
    return found


OLD_NAMES = r"--model\.(?=ramp|pseudo_labels|cps_on_labelled)"  # of settings that are the method's today
KEPT = REPOSITORY / "benchmarks" / "results" / "kbp"


def stages_on(protocol: Protocol, tmp_path: Path) -> StudyStages:
    catalogue = Catalogue(tmp_path, "any", {"background": 0}, ("CT",), (), ())
    splits = StudySplits(catalogue, {name: Split(()) for name in protocol.judged.splits}, {})
    return StudyStages(protocol, Costs(protocol, config_path), splits, tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("study", "kept", "least"),
    [("kbp", KEPT, 45), ("kbp_screen", KEPT / "screen", 6), ("kbp_confirm", KEPT / "confirm", 15)],
)
def test_kbps_kept_trainings_are_the_protocols(study: str, kept: Path, least: int, tmp_path: Path) -> None:
    """Setting by setting, by the command that each kept record names; what a record leaves out is in its config."""
    protocol = read_protocol(REPOSITORY / "configs" / "studies" / f"{study}.yaml")
    made = stages_on(protocol, tmp_path)
    trained = {stage.name: stage for stage in made.judged_stages() if stage.name.startswith("train_")}
    records = sorted(kept.glob("runs/*/*/seed_*/run.json"))
    assert len(records) >= least
    for path in records:
        labels, arm, seed = path.parts[-4:-1]
        stage = trained[f"train_{labels}.{arm}.fold_0.{seed}"]
        command = json.loads(path.read_text(encoding="utf-8"))["command"]
        if "'" not in command:  # early records
            command = re.sub(OLD_NAMES, "--model.method.init_args.", re.sub(r"(\{[^}]*\})", r"'\1'", command))
        theirs = settings_of(shlex.split(command)[1:])
        ours = settings_of(stage.words)
        configs = [Path(str(one.pop("config"))).stem for one in (ours, theirs)]
        assert configs[0] == configs[1]
        stores = [Path(str(one.pop("data.store"))).name for one in (ours, theirs)]
        assert stores[0] == stores[1]
        for one in (ours, theirs):
            one.pop("trainer.default_root_dir")
        assert ("data.pseudo_labels" in ours) == ("data.pseudo_labels" in theirs) == bool(protocol.arm(arm).teachers)
        of_config = {"data.fold": "all", "trainer.max_epochs": 40, TOTAL: 40, "data.unlabelled": False}
        for name in {*ours, *theirs} - {"data.pseudo_labels"}:
            if not name.startswith("trainer.callbacks"):  # checkpoints kept, not a setting of the training
                assert ours.get(name, of_config.get(name)) == theirs.get(name, of_config.get(name)), (path, name)


def test_the_confirming_trainings_are_the_screens(tmp_path: Path) -> None:
    """With ten labels, so that they need not be trained again: setting by setting, for every seed."""
    folder, words = REPOSITORY / "configs" / "studies", []
    for name in ("kbp_confirm", "kbp_screen"):
        made = stages_on(read_protocol(folder / f"{name}.yaml"), tmp_path)
        words.append({stage.name: settings_of(stage.words) for stage in made.judged_stages()
                      if stage.name.startswith("train_10_labelled")})  # fmt: skip
    confirming, screened = words
    assert len(confirming) == 3 * 9
    assert confirming == {name: screened[name] for name in confirming}


def test_every_plan_has_a_store_and_its_arms_are_trained_on_it(tmp_path: Path) -> None:
    arms = in_plans("2d", "3d") | {
        "two": {"average_of": "control"},
        "self": {"plan": "3d", "teachers": "control", "settings": {"model.method": "flarecps.methods.SelfTraining"}},
    }
    path = written(tmp_path, plan={"spacing": "[3, 1, 1]"}, plans={"2d": {"dimensions": 2}, "3d": {}}, arms=arms)
    protocol = read_protocol(path)
    path.write_text(protocol_text(protocol), encoding="utf-8")
    assert read_protocol(path) == protocol
    made = stages_on(protocol, tmp_path)
    stages = {stage.name: stage for stage in (*made.before_training(), *made.judged_stages())}
    planned = {name: stage.words for name, stage in stages.items() if stage.words[:1] == ("plan",)}
    assert [*planned] == ["plan_2d_global", "plan_3d_global"]
    own = [words[4 : words.index("--intensity")] for words in planned.values()]
    assert own == [("--spacing", "[3, 1, 1]", "--dimensions", "2"), ("--spacing", "[3, 1, 1]")]
    for name, plan in (("control", "2d"), ("cps", "3d"), ("self", "3d")):
        train = stages[f"train_all.{name}.fold_0.seed_0"]
        assert f"--data.store={made.out}/store_{plan}_global" in train.words
    label = stages["label_all.self.fold_0.seed_0"]
    assert label.words[3:5] == (f"{made.out}/store_3d_global", label.outputs[0].__fspath__())
    assert label.words[-2:] == ("--teacher-store", f"{made.out}/store_2d_global")
    assert "preprocess_3d_global" in label.after
    assert made.costs.ratio("two", "control") == 2
    assert [made.costs.ratio(name, "control") for name in ("cps", "self")] == [None, None]


def test_neighbours_teach_in_the_screen(tmp_path: Path) -> None:
    made = stages_on(read_protocol(REPOSITORY / "configs" / "studies" / "kbp_screen.yaml"), tmp_path)
    found = made.trained(Cell("self_long", "10_labelled", 0, 2))
    label = next(stage for stage in found if stage.words[0] == "pseudo-label")
    assert ["seed_2" in label.words[1], "seed_0" in label.words[2]] == [True, True]
    assert all("control_long" in word for word in label.words[1:3])


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
        ({"seeds": 10**6}, "at most 100"),
        ({"seeds": True}, "a whole number"),
        ({"seeds": "two"}, "a whole number"),
        ({"judged": {"by": "folds", "folds": -3}}, "at least 2"),
        ({"judged": {"by": "folds", "learning_curve": [0.5, 0.5]}}, "different shares"),
        ({"judged": {"by": "folds", "learning_curve": 0.5}}, "a list of 1 numbers"),
        ({"judged": {"by": "test", "splits": ["../../x"]}, "post_processing": ["none"]}, "holds a slash"),
        ({"judged": {"by": "test", "splits": ["a\nb"]}, "post_processing": ["none"]}, "holds a control character"),
        ({"judged": {"by": "test", "splits": ["a", "a"]}, "post_processing": ["none"]}, "each of them once"),
        ({"post_processing": []}, "is empty"),
        ({"arms": SMALL["arms"] | {"cps.2": {}}}, "its name is no plain one"),
        ({"arms": SMALL["arms"] | {"a b": {}}}, "its name is no plain one"),
        ({"arms": SMALL["arms"] | {"[red]": {}}}, "its name is no plain one"),
        ({"arms": SMALL["arms"] | {"-x": {}}}, "its name is no plain one"),
        ({"arms": SMALL["arms"] | {"x" * 61: {}}}, "its name is no plain one"),
        ({"arms": SMALL["arms"] | {"x": {"title": "a\nb"}}}, "expected a line"),
        ({"arms": SMALL["arms"] | {"x": {"title": "\x1b[2J"}}}, "'title' is '\\x1b[2J'"),
        ({"arms": SMALL["arms"] | {"x": {"title": "x" * 201}}}, "at most 200"),
        ({"arms": SMALL["arms"] | {"x": {"title": 3}}}, "'arms.x.title' is 3"),
        ({"arms": SMALL["arms"] | {"x": {"title": "cps"}}}, "two arms are called 'cps'"),
        ({"arms": SMALL["arms"] | {"x": {"siblings": ["1", "1"]}}}, "each of them once"),
        ({"arms": SMALL["arms"] | {"x": {"settings": {"trainer.default_root_dir": "/"}}}}, "which the study decides"),
        ({"arms": SMALL["arms"] | {"x": {"settings": {"trainer": {"max_epochs": 3}}}}}, "by its dotted name"),
        ({"settings": {"config": "other.yaml"}}, "by its dotted name"),
        ({"settings": {"dry-run": True}}, "by its dotted name"),
        ({"settings": {"data.store": "other"}}, "which the study decides"),
        ({"settings": [1]}, "expected an object"),
        ({"plan": {"out": "/plan.json"}}, "which the study decides"),
        ({"segment": {"sibling": "2"}}, "which the study decides"),
        ({"without": "case_01"}, "a list of texts"),
        ({"plans": {"2d": {"out": "/plan.json"}}, "arms": in_plans("2d", "2d")}, "which the study decides"),
        ({"plans": {"../2d": {}}, "arms": in_plans("../2d", "../2d")}, "plan '../2d': its name is no plain one"),
        ({"plans": {"2d": {}}}, "arm 'control': 'plan' is '', which is no plan"),
        ({"plans": {"2d": {}}, "arms": in_plans("2d", "2D")}, "did you mean 2d?"),
        ({"arms": in_plans("2d", "2d")}, "'plan' is '2d', which is no plan"),
        ({"plans": {"2d": {}, "3d": {}}, "arms": in_plans("2d", "3d", compute_of="cps")}, "another plan can't"),
        ({"plans": {"2d": {}}, "arms": in_plans("2d", "2d") | {"two": {"average_of": "cps", "plan": "2d"}}},
         "has no training"),
        ({"checkpoint": "best"}, "'checkpoint' is best"),
        ({"checkpoint": "first"}, "'last' or 'best'"),
        ({"scoring": "lenient"}, "'strict' or 'official'"),
        ({"judged": {"by": "test", "splits": ["a"]}, "settings": {"data.fold": "all"}}, "hold out a fifth"),
        ({"judged": {"by": "test", "splits": ["a"]}, "settings": {"data.fold": 5}}, "hold out a fifth"),
        ({"judged": {"by": "test", "splits": ["a"]}, "settings": {"data.fold": True}}, "hold out a fifth"),
        ({"settings": {"data.fold": 0}, "arms": SMALL["arms"] | {"x": {"settings": {"data.fold": 1}}}}, "remove one"),
        ({"judged": {"by": "test", "splits": ["a"]}, "settings": {"data.fold": 0},
          "arms": SMALL["arms"] | {"theirs": {"predictions": "x"}}}, "on which no post-processing is determined"),
        ({"plans": [1]}, "expected an object"),
        ({"arms": SMALL["arms"] | {"theirs": {"predictions": "x", "config": "y"}}}, "so it is not trained"),
        ({"arms": SMALL["arms"] | {"theirs": {"predictions": "x", "siblings": ["2"]}}}, "so it is not trained"),
        ({"arms": SMALL["arms"] | {"theirs": {"predictions": "x/{sed}"}}}, "{labels}, {fold} and {seed} may stand"),
        ({"arms": SMALL["arms"] | {"theirs": {"predictions": "x/{seed:>99999999}"}}}, "{seed} may stand"),
        ({"arms": SMALL["arms"] | {"theirs": {"predictions": "x\ny"}}}, "{seed} may stand"),
        ({"arms": SMALL["arms"] | {"theirs": {"predictions": 3}}}, "'arms.theirs.predictions' is 3"),
        ({"arms": SMALL["arms"] | {"theirs": {"predictions": "x"}, "two": {"average_of": "theirs"}}},
         "'average_of' is 'theirs'; expected another arm with a training"),
        ({"arms": SMALL["arms"] | {"theirs": {"predictions": "x"}, "long": {"compute_of": "theirs"}}},
         "'compute_of' is 'theirs'; expected another arm with a training"),
        ({"judged": {"by": "test", "splits": ["a", "b"]}, "post_processing": ["none"],
          "arms": SMALL["arms"] | {"theirs": {"predictions": "x/{seed}"}}}, "the same for a, b; expected {labels}"),
        ({"plans": {"2d": 3}}, "expected an object"),
        ({"remarks": [{"a": 1}]}, "a list of texts"),
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
        (
            {"settings": {"model.method": "os.system", "model.method.init_args.command": "true"}},
            "is no flarecps.methods",
        ),
        ({"settings": {"trainer.max_epochs": 10**15}}, "at most 100000"),
        ({"settings": {"trainer.max_epochs": -1}}, "at least 1"),
        ({"settings": {"trainer.max_epochs": 1e6}}, "a whole number"),
        ({"settings": {"data.global_batch": {"labelled": 0}}}, "expected patches by kind"),
        ({"compute_of": "cps", "share": 1e-9}, "is not one epoch; give it more"),
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


def test_a_share_beyond_measure_ends_at_the_most_epochs(tmp_path: Path) -> None:
    arms = SMALL["arms"] | {"long": {"compute_of": "cps", "share": 1e300}}
    assert Costs(read_protocol(written(tmp_path, arms=arms)), config_path).recipe("long").epochs == 100_000


def test_epochs_of_equal_compute_are_counted_down_to(tmp_path: Path) -> None:
    """Against a search from above, one by one."""
    found = draft(5, 2, 300, 50, True)
    costs = Costs(found, config_path)
    recipe = costs.recipe("cps")
    for share in (0.001, 0.3, 0.77, 1.0, 2.5):
        left, first = share * recipe.cost(), recipe.cost(1)
        epochs = round(left / first)
        while epochs > 1 and recipe.cost(epochs) > left + first / 2:
            epochs -= 1
        assert recipe.affordable(left) == epochs
    assert recipe.affordable(-5.0) == 0


def test_some_arms_bring_what_they_need() -> None:
    found = only_arms(draft(5, 1, 10, 5, True), ["control_two"])
    assert [(arm.name, bool(arm.siblings)) for arm in found.arms] == [
        ("control_long", True), ("control_half", False), ("control_two", True), ("cps", False)]  # fmt: skip
    assert found.primary.method == "control_two"
    with pytest.raises(ConfigError, match="did you mean cps"):
        only_arms(found, ["csp"])
    with pytest.raises(ConfigError, match="only the baseline"):
        only_arms(found, ["control_long"])
