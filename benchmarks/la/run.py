"""Methods against their supervised controls on Left Atrium 2018 (LGE-MR), by the semi-supervised literature's protocol.

    python benchmarks/la/run.py DATASET OUT [--labelled 8 16] [--seeds 0 1 2] [--networks plan small] [--steps 6000]
    timeout 540 python benchmarks/la/run.py DATASET OUT --stages '*_8_small_3000_control_0'     # a piece of it

DATASET is in nnU-Net v2's layout, 80 training and 20 test scans, with splits 4_labelled, 8_labelled, 16_labelled and
80_labelled in splits.json. Every stage is a flarecps command, printed and left out when its result stands; a training
that is stopped goes on from its last epoch, so the whole may be done in pieces of any length, on any machine to which
OUT is brought. ``--list`` says how far every training came, and its piece's command. OUT/table.md sets the numbers
beside the published ones.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from flarecps.atomic import write_text
from flarecps.evaluation.score_table import read_scores
from flarecps.experiments.runner import run_experiment
from flarecps.experiments.stages import Stage, StageRecords, command_stage, store_stages, training_stages
from flarecps.inference.postprocessing import Rules, write_rules
from flarecps.planning.plan import read_plan
from flarecps.reporting.tables import markdown_table

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"
ALL = 80  # labelled scans: nothing is left to be unlabelled
EPOCH = 250  # steps, in configs/la_3d.yaml
CPS_COST = 4  # of a step, in steps of the control: two networks, twice as many patches
# In the literature's size: 5.65 M parameters instead of 16.5 M.
NETWORKS = {"plan": (), "small": ("--model.topology.features", "[16, 32, 64, 128, 256]")}
POSTPROCESSED = {"scores": "no", "largest_scores": "largest piece"}  # folder of scores → in the table


@dataclass(frozen=True)
class Arm:
    """A way of training: its config, how many times the steps, and what differs, given the epochs."""

    title: str
    config: str = "la_3d_supervised.yaml"
    times: int = 1
    pastes: bool = False  # bidirectional copy-paste, on the control's config

    def words(self, steps: int) -> list[str]:
        """More words for fit."""
        epochs = max(1, self.times * steps // EPOCH)
        found = ["--trainer.max_epochs", epochs, "--model.scheduler.init_args.total_iters", epochs]
        if self.config == "la_3d.yaml":  # λ rises over half of the training, as in the config
            found += ["--model.method.init_args.ramp", f"{{final: 0.5, length: {max(1, epochs // 2)}, start: 0}}"]
        if self.pastes:
            loss = "--model.method.init_args.loss"
            found += ["--model.method=flarecps.methods.BidirectionalCopyPaste", "--data.unlabelled", "true",
                      f"{loss}=flarecps.losses.DiceCrossEntropy", f"{loss}.init_args.batch_dice=true",
                      f"--model.method.init_args.pretrained_epochs={epochs // 6}"]  # fmt: skip
        return [str(word) for word in found]


ARMS = {
    "control": Arm("flarecps supervised"),
    "control_long": Arm(f"flarecps supervised, equal compute to CPS ({CPS_COST} × the steps)", times=CPS_COST),
    "cps": Arm("flarecps CPS", "la_3d.yaml"),
    "copy_paste": Arm("flarecps BCP", pastes=True),
}


@dataclass(frozen=True)
class Run:
    """One training."""

    labelled: int
    network: str
    steps: int
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and stages."""
        return f"{self.labelled}_{self.network}_{self.steps}_{self.arm}_{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--labelled", type=int, nargs="+", choices=[4, 8, 16, ALL], default=[8, 16])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["plan"])
    parser.add_argument("--steps", type=int, nargs="+", default=[6000], help=f"of the control; multiples of {EPOCH}")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--spacing", help="instead of the plan's, such as '[1.25, 1.25, 1.25]', for a store of few MB")
    parser.add_argument("--workers", type=int, default=4, help="processes that preprocess")
    parser.add_argument("--fit-words", default="", help="more words for flarecps fit, in one word, to try things out")
    parser.add_argument("--stages", nargs="+", help="only these and what they need, * and ? allowed")
    parser.add_argument("--list", action="store_true", help="say how far each training came, and run nothing")
    options = parser.parse_args()
    found, folder = stages(options), options.out.resolve() / "stages"
    if options.list:
        list_pieces(found, folder)
    else:
        needed = ["plan", "preprocess", "rules"]
        run_experiment(found, folder, options.stages and [*needed, *options.stages, "table"])


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """All trainings asked for, the cheapest networks and steps first within a number of labels."""
    for labelled, network, steps, arm, seed in product(
        options.labelled, options.networks, options.steps, options.arms, options.seeds
    ):
        if labelled < ALL or arm == "control":
            yield Run(labelled, network, steps, arm, seed)


def stages(options: argparse.Namespace) -> list[Stage]:
    """Plan, store, and for every run training, label maps and scores, with and without the largest piece; the table."""
    out, data = options.out.resolve(), options.dataset.resolve()
    spacing = ("--spacing", options.spacing) if options.spacing else ()
    found = store_stages(data, out / "plan.json", out / "store", ("--split", "8_labelled", *spacing),
                         ("--workers", options.workers))  # fmt: skip
    rules = out / "largest.json"
    found.append(Stage("rules", (), (rules,), ("plan",), action=partial(keep_largest, out / "plan.json", rules),
                       description="largest.json: the largest piece of each organ"))  # fmt: skip
    all_runs = list(runs(options))
    for run in all_runs:
        found += one_run(run, out, data, rules, shlex.split(options.fit_words))
    table = Stage("table", (), (out / "table.md",), always=True, action=partial(write_table, out, all_runs),
                  description="table.md and table.csv: what is there, beside the published numbers")  # fmt: skip
    return [*found, table]


def keep_largest(plan: Path, rules: Path) -> None:
    """The rule of post-processing that is reported beside the plain labels; it is not chosen on anything."""
    labels = read_plan(plan).labels
    write_rules(rules, Rules(labels, largest=tuple(sorted(label for label in labels.values() if label))))


def one_run(run: Run, out: Path, data: Path, rules: Path, more: list[str]) -> list[Stage]:
    """Train, segment the test scans with sibling 1 of the last checkpoint, without mirroring, score, twice."""
    folder, arm = out / "runs" / run.name, ARMS[run.arm]
    config = CONFIGS / arm.config
    words = ("fit", "--config", config, "--data.store", out / "store", "--data.split", f"{run.labelled}_labelled",
             "--seed_everything", run.seed, "--trainer.default_root_dir", folder, *arm.words(run.steps),
             *NETWORKS[run.network], *more)  # fmt: skip
    apply = ("postprocess", "apply", folder / "labels", folder / "largest", "--rules", rules)
    score = ("score", folder / "largest", data / "labelsTs", "--protocol", "strict", "--out", folder / "largest_scores")
    return [
        *training_stages(run.name, words, config, folder, data, "preprocess", ("--step", "0.5")),
        command_stage(f"largest_{run.name}", apply, folder / "largest", f"segment_{run.name}", "rules"),
        command_stage(f"score_largest_{run.name}", score, folder / "largest_scores" / "scores.csv",
                      f"largest_{run.name}"),
    ]  # fmt: skip


def list_pieces(found: list[Stage], folder: Path) -> None:
    """A line for every training: how far it came, and the command of its piece."""
    records = StageRecords(found, folder)
    given = [word for word in sys.argv[1:] if word != "--list"]
    for stage in found:
        if stage.name.startswith("train_"):
            name = stage.name.removeprefix("train_")
            states = records.state(stage), records.state(records.stages[f"score_largest_{name}"])
            piece = shlex.join(["timeout", "540", "python", "benchmarks/la/run.py", *given, "--stages", f"*_{name}"])
            print(f"training {states[0]}, scores {states[1]}: {piece}")


def write_table(out: Path, all_runs: list[Run]) -> None:
    """Dice (%) by labels, network, steps and arm: published, and here with the SD over seeds, with both label maps."""
    published = json.loads((HERE / "published.json").read_text(encoding="utf-8"))["rows"]
    body = []
    for labelled in dict.fromkeys(run.labelled for run in all_runs):
        body += [[str(labelled), name, "published", "", "", f"{dice:.2f}", "–", "20"]
                 for name, dice in published[str(labelled)].items()]  # fmt: skip
        kinds = dict.fromkeys((run.network, run.steps, run.arm) for run in all_runs if run.labelled == labelled)
        for kind, (folder, pieces) in product(kinds, POSTPROCESSED.items()):
            network, steps, arm = kind
            alike = [run for run in all_runs if (run.labelled, (run.network, run.steps, run.arm)) == (labelled, kind)]
            tables = [out / "runs" / run.name / folder / "scores.csv" for run in alike]
            found = [read_scores(table) for table in tables if table.is_file()]
            if not found:
                continue
            dice = [100 * one.mean() for one in found]
            spread = f" ± {np.std(dice, ddof=1):.2f}" if len(dice) > 1 else ""
            cases = sorted({len(one.cases) for one in found})
            body.append([str(labelled), ARMS[arm].title, f"here, {network} network", str(steps), pieces,
                         f"{np.mean(dice):.2f}{spread}", str(len(dice)), " or ".join(map(str, cases))])  # fmt: skip
    heading = ["labelled", "method", "source", "steps", "post-processing", "Dice in % (± SD over seeds)", "trainings",
               "test scans"]  # fmt: skip
    write_text(out / "table.md", markdown_table(heading, body))
    write_text(out / "table.csv", "\n".join(",".join(f'"{cell}"' if "," in cell else cell for cell in line)
                                            for line in [heading, *body]) + "\n")  # fmt: skip


if __name__ == "__main__":
    main()
