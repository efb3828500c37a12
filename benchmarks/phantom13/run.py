"""CPS against its supervised control on synthetic CT of real anatomy: 13 organs, 2D and 3D, split by patient.

    python benchmarks/phantom13/run.py LABEL_MAPS OUT [--size small|full] [--dimensions 3 2] [--seeds 0 1 2]
        [--methods supervised supervised_long cps]

LABEL_MAPS is a folder with FLARE22's 50 label maps. Every stage is a flarecps command, printed and left out when its
result stands, so an interrupted run goes on, and more seeds or dimensions can be added later. OUT/results holds what is
worth keeping: scores of every run, the comparison, pictures. README.md has the protocol.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf

from flarecps.errors import DatasetError
from flarecps.experiments.runner import run_experiment
from flarecps.experiments.stages import Stage, command_stage, store_stages, training_stages

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
METHODS = {"supervised": "control", "supervised_long": "longer control", "cps": "CPS"}  # the baseline comes first


@dataclass(frozen=True)
class Size:
    """Which scans, configs and planning words; ``device`` words for trainings."""

    phantom: str
    labelled: int
    unlabelled: int
    test: int
    configs: str  # {dimensions} is 3d or 2d
    planning: dict[int, tuple[str, ...]]


SIZES = {
    "small": Size("small", 8, 26, 16, "phantom_{dimensions}", {3: ("--spacing", "[10, 10, 10]"), 2: ()}),
    "full": Size("full", 8, 26, 16, "phantom13_{dimensions}", {3: ("--gpu-memory", "24"), 2: ("--gpu-memory", "24")}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--dimensions", type=int, nargs="+", choices=[3, 2], default=[3, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--workers", type=int, default=2, help="processes that make and preprocess scans")
    parser.add_argument("--stages", nargs="+", help="only these, * and ? allowed")
    options = parser.parse_args()
    run_experiment(stages(options), options.out.resolve() / "stages", options.stages)


def stages(options: argparse.Namespace) -> list[Stage]:
    """Phantom, check of the split, then for each dimension plan, store, trainings, label maps, scores, comparison."""
    out, size = options.out.resolve(), SIZES[options.size]
    data, pool = out / "data", ("--workers", options.workers)
    words = ("phantom", data, "--labelled", size.labelled, "--unlabelled", size.unlabelled, "--test", size.test)
    words += ("--size", size.phantom, "--seed", 13, "--anatomy", options.label_maps.resolve(), *pool)
    found = [
        command_stage("phantom", words, data / "dataset.json"),
        Stage("split", action=partial(check_split, data), description="no test patient is among those trained on",
              after=("phantom",)),
    ]  # fmt: skip
    for dimensions in options.dimensions:
        found += of_dimensions(dimensions, size, out, options.seeds, pool, options.methods)
    return found


def of_dimensions(
    dimensions: int, size: Size, out: Path, seeds: list[int], pool: tuple[object, ...], methods: list[str]
) -> list[Stage]:
    """All stages of 2D or of 3D."""
    kind, data = f"{dimensions}d", out / "data"
    plan, store = out / f"plan_{kind}.json", out / f"store_{kind}"
    words = ("--dimensions", dimensions, *size.planning[dimensions])
    found = store_stages(data, plan, store, words, pool, after=["split"], suffix=f"_{kind}")
    scored = []
    for seed in seeds:
        for method in methods:
            name = f"{kind}_{method}_{seed}"
            run, path = out / "runs" / name, config(size, kind, method)
            words = ("fit", "--config", path, "--data.store", store, "--trainer.default_root_dir", run)
            words += ("--seed_everything", seed, "--trainer.enable_progress_bar", "false")
            words += longer(config(size, kind, "cps")) if method.endswith("_long") else ()
            found += training_stages(name, words, path, run, data, f"preprocess_{kind}")
            scored.append(f"score_{name}")
    compared = out / "results" / kind
    sides = []
    titles = {method: title for method, title in METHODS.items() if method in methods}
    for method, title in titles.items():
        tables = [out / "runs" / f"{kind}_{method}_{seed}" / "scores" / "scores.csv" for seed in seeds]
        sides.append(f"{title}={','.join(map(str, tables))}")
    found.append(command_stage(f"compare_{kind}", ("compare", *sides, "--out", compared), compared, *scored))
    pictures = [
        f"{title}={out / 'runs' / f'{kind}_{method}_{seeds[0]}' / 'labels'}" for method, title in titles.items()
    ]
    drawn = out / f"figures_{kind}"
    words = ("figures", *pictures, "--references", data / "labelsTs", "--images", data / "imagesTs", "--out", drawn)
    found.append(command_stage(f"figures_{kind}", (*words, "--workers", 1), drawn, *scored))
    keep = partial(keep_results, out, kind, seeds, methods, compared, drawn)
    found.append(Stage(f"keep_{kind}", after=(f"compare_{kind}", f"figures_{kind}"), action=keep, always=True,
                       description=f"scores, curves and pictures into {compared}"))  # fmt: skip
    return found


def config(size: Size, kind: str, method: str) -> Path:
    """The config of a method."""
    return CONFIGS / f"{size.configs.format(dimensions=kind)}{'' if method == 'cps' else '_supervised'}.yaml"


def longer(cps: Path) -> tuple[str, ...]:
    """What lets a control compute as much as CPS by the config ``cps``, which pays 2 a step, with λ 4; a control 1."""
    settings = OmegaConf.load(cps)
    epochs, without = settings.trainer.max_epochs, settings.model.method.init_args.ramp.start + 1
    equal = str(2 * without + 4 * (epochs - without))
    return ("--trainer.max_epochs", equal, "--model.scheduler.init_args.total_iters", equal)


def check_split(data: Path) -> None:
    """Raise DatasetError when a test case was built from a label map that a training case was built from."""
    sources = json.loads((data / "phantom.json").read_text())["sources"]
    tested = {source for name, source in sources.items() if name.startswith("test_")}
    trained = {source for name, source in sources.items() if not name.startswith("test_")}
    if shared := sorted(tested & trained):
        raise DatasetError(f"{data}: {len(shared)} patients are in training and test, first {shared[0]}")
    print(f"{len(trained)} patients in training, {len(tested)} others in test")


def keep_results(out: Path, kind: str, seeds: list[int], methods: list[str], compared: Path, drawn: Path) -> None:
    """Scores, curves and environment of every run, and the pictures, beside the comparison."""
    for seed in seeds:
        for method in methods:
            run, kept = out / "runs" / f"{kind}_{method}_{seed}", compared / f"{method}_{seed}"
            kept.mkdir(parents=True, exist_ok=True)
            for source in (run / "scores" / "scores.csv", run / "csv" / "metrics.csv"):
                shutil.copyfile(source, kept / source.name)
    for name in ("cases.png", "boxes.png"):
        shutil.copyfile(drawn / name, compared / name)
    shutil.copyfile(out / "data" / "phantom.json", out / "results" / "phantom.json")


if __name__ == "__main__":
    main()
