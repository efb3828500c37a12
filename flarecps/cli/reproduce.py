"""``flarecps reproduce flare22``: the paper's experiment, stage by stage, and its tables beside the numbers found."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flarecps.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from flarecps.cli.flare22_data import Flare22
    from flarecps.cli.stages import Ledger, Stage

PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
RECORDS = "stages"  # folder of OUT
NEEDS = "needs "
FIT_SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "fit.sbatch"
TRAINING = "train_"  # how stages that can be submitted are called
KINDS = ("2d", "3d")
WITH_KINDS = ("plan", "preprocess", "fit", "segment")
NOT_ALL = 1  # exit code: a stage could not be done because another must come first


def reproduce(
    study: Literal["flare22"],
    *,
    data: Path,
    out: Path = Path("reproduction"),
    stages: list[str] | None = None,
    without: list[str] | None = None,
    dry_run: bool = False,
    submit: bool = False,
    sbatch: str = "",
    more: Path | None = None,
    checkpoint: Literal["best", "last"] = "best",
    eight_gpus: bool = False,
    validation_20: Path | None = None,
    other_counts: bool = False,
    workers: int = 2,
) -> int:
    """Run the paper's FLARE22 experiment and fill its Tables 2 to 6 and Figure 5 beside the paper's numbers.

    DATA is FLARE22 as its organisers ship it: FLARE22_LabeledCase50/, FLARE22_UnlabeledCase…/, a validation folder with
    images/ and perhaps labels/, and perhaps a test folder. Stages are flarecps commands, printed before they run: data,
    inspect, plan, preprocess, four trainings (2D and 3D, supervised and CPS), segmentation in the settings of each
    table, scores by the official protocol, comparison, tables. A stage whose result stands is left out, so the same
    command goes on after an interruption. OUT/tables.md can be made at any time (--stages tables): what is not there
    yet, or can't be known, is said in its cell.

    Args:
        study: flare22.
        data: folder of the FLARE22 data; nothing is written there.
        out: folder for everything; needs room for two case stores, 2D and 3D.
        stages: only these stages, by name; * and ? are allowed (train_3d_*).
        without: leave out these stages.
        dry_run: print the commands, and what is done already, and make nothing.
        submit: hand trainings to SLURM (sbatch slurm/fit.sbatch) instead of running them; call again when they end.
        sbatch: more options for sbatch, in one word, as --sbatch="--time=5-0 --partition=gpu".
        more: YAML file of words that are added to commands, by group (plan, preprocess, fit, segment, with or without
            _2d or _3d; inspect, postprocess, score, compare, figures), as {fit_3d [--trainer.devices, "2"]}; the tables
            list them.
        checkpoint: which of a training's checkpoints segments: best by the held-out fold, as the authors' code does,
            or last.
        eight_gpus: take Table 2's batch of 2 + 2 patches in 3D as each of 8 GPUs' (configs/flare22_3d_8gpu.yaml).
        validation_20: file with the names of the 20 cases of Tables 4 and 5, one a line; by default those with labels.
        other_counts: go on with other numbers of scans than the paper's 50 and 1000; the tables say so.
        workers: processes for inspect, plan and preprocess.
    """
    from rich.console import Console

    from flarecps.cli.demo import config_path
    from flarecps.cli.flare22_data import check_counts, released_20, roles_of
    from flarecps.cli.flare22_recipe import Settings, recipe
    from flarecps.cli.stages import Ledger, chosen, only_run
    from flarecps.datasets.catalogue import read_catalogue

    console, problems = Console(), Console(stderr=True)
    if out.resolve().is_relative_to(data.resolve()):
        raise ConfigError(f"--out {out}: lies in the data's folder, where nothing is written; name a folder elsewhere")
    found = roles_of(read_catalogue(data.resolve()))
    said = check_counts(found, other_counts)
    released, how = released_20(found, validation_20)
    out, words = out.resolve(), _read_more(more)

    def fill() -> None:
        notes = [f"data: {found.counts()}", *said, f"Tables 4 and 5: {how}", f"checkpoint: {checkpoint}",
                 "3D batch: 2 + 2 patches on each of 8 GPUs" if eight_gpus else "3D batch: 2 + 2 patches in all",
                 *(f"more words for {group}: {shlex.join(added)}" for group, added in words.items())]  # fmt: skip
        _write_tables(out, found, released, notes, ledger, eight_gpus)

    every = recipe(Settings(found, out, config_path, fill, words, checkpoint, eight_gpus, workers))
    ledger = Ledger(every, out / RECORDS)
    todo = chosen(every, stages, without)
    console.print(f"{data}: {found.counts()}", **PLAIN)
    for sentence in said:
        console.print(f"- {sentence}", style="yellow", **PLAIN)
    if dry_run:
        _show_plan(todo, ledger, submit, sbatch, console)
        return 0
    with only_run(ledger.folder) as descriptor:
        left = _run_all(todo, ledger, submit, sbatch, descriptor, console)
    for name, why in left.items():
        problems.print(f"not done: {name}: {why}", style="yellow", **PLAIN)
    submitted = any(ledger.record(stage).get("state") == "submitted" for stage in every)
    return NOT_ALL if not submitted and any(why.startswith(NEEDS) for why in left.values()) else 0


def _run_all(
    todo: Sequence[Stage], ledger: Ledger, submit: bool, sbatch: str, descriptor: int, console: Console
) -> dict[str, str]:
    """Do the stages that can be done; those that can't, with the reason."""
    from flarecps.cli.stages import do_stage

    left: dict[str, str] = {}
    for number, stage in enumerate(todo, start=1):
        state, heading = ledger.state(stage), f"[bold]{number}/{len(todo)}  {stage.name}[/]"
        if state == "done":
            console.print(f"{heading}  stands", highlight=False)
            continue
        missing = ledger.missing_before(stage)
        if state == "lacking" or missing:
            left[stage.name] = stage.lacking or f"{NEEDS}{', '.join(missing)} first"
            continue
        if ledger.record(stage).get("state") == "submitted":  # with whatever words: two jobs must not share a folder
            if still := _in_queue(ledger.record(stage).get("job", "")):
                left[stage.name] = still
                continue
            console.print(f"{stage.name}: its job is no longer in the queue and the training is not finished", **PLAIN)
        console.rule(heading, align="left")
        if submit and stage.name.startswith(TRAINING):
            left[stage.name] = _submit(stage, ledger, sbatch, console)
            continue
        console.print(stage.command, style="dim", **PLAIN)
        do_stage(ledger, stage, lambda words: _run(words, descriptor))
    return left


def _run(words: Sequence[str], descriptor: int) -> int:
    from flarecps.cli.stages import run_program

    return run_program(words, descriptor)


def _show_plan(todo: Sequence[Stage], ledger: Ledger, submit: bool, sbatch: str, console: Console) -> None:
    """Every stage as a command, with its state; makes nothing."""
    for stage in todo:
        state = ledger.state(stage)
        console.print(f"# {stage.name}: {stage.lacking or state}", style="bold", **PLAIN)
        line = stage.command
        if submit and stage.name.startswith(TRAINING):
            line = shlex.join(_sbatch_words(stage, sbatch))
        console.print(line, **PLAIN)


def _submit(stage: Stage, ledger: Ledger, sbatch: str, console: Console) -> str:
    """Submit a training and keep the job's number; what to say of it."""
    ledger.clear_stale(stage)
    words = _sbatch_words(stage, sbatch)
    console.print(shlex.join(words), style="dim", **PLAIN)
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        raise ConfigError("sbatch: not found; --submit works where SLURM's commands are at hand") from None
    if done.returncode:
        raise ConfigError(f"sbatch ended with exit code {done.returncode}: {done.stderr.strip()}")
    job = done.stdout.strip().split(";")[0]
    before = ledger.record(stage).get("starts", [])
    ledger.write(stage, "submitted", job=job, starts=[*before, f"job {job}"])
    return f"submitted as job {job}; call again when it has ended"


def _sbatch_words(stage: Stage, options: str) -> list[str]:
    """``sbatch [options] slurm/fit.sbatch --config C.yaml [overrides...]``; the user's options come last and win."""
    if not FIT_SCRIPT.is_file():
        raise ConfigError(f"{FIT_SCRIPT}: no such file; --submit needs a checkout of flarecps, not only the package")
    gpus = 8 if "_8gpu" in " ".join(stage.words) else 1
    own = [f"--job-name=flarecps-{stage.name}", f"--ntasks-per-node={gpus}", f"--gres=gpu:{gpus}"]
    return ["sbatch", "--parsable", *own, *shlex.split(options), str(FIT_SCRIPT), *stage.words[1:]]


def _in_queue(job: str) -> str:
    """What to say of a job that waits or runs; empty when the queue does not know it any more."""
    words = ["squeue", "--noheader", "--format=%T", f"--jobs={job}"]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return f"job {job} was submitted; squeue is not at hand here to ask for it"
    state = done.stdout.strip().lower()
    return f"job {job} is {state}" if state else ""


def _read_more(path: Path | None) -> dict[str, list[str]]:
    """Words to add to commands, by group. Raises ConfigError for another file."""
    from omegaconf import OmegaConf

    from flarecps.cli.flare22_recipe import GROUPS

    if path is None:
        return {}
    known = [*GROUPS, *(f"{group}_{kind}" for group in WITH_KINDS for kind in KINDS)]
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # OmegaConf and PyYAML raise many kinds
        raise ConfigError(f"{path}: not a YAML file that can be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected lists of words by group, as fit_3d: [--trainer.devices, '2']")
    for group, words in content.items():
        if group not in known:
            raise ConfigError(f"{path}: no group {group!r}; groups: {', '.join(known)}")
        if not isinstance(words, list):
            raise ConfigError(f"{path}: {group} must be a list of words, as [--trainer.devices, '2']")
    return {str(group): [str(word) for word in words] for group, words in content.items()}


def _write_tables(
    out: Path, data: Flare22, released: tuple[str, ...], notes: Sequence[str], ledger: Ledger, eight_gpus: bool
) -> None:
    """``OUT/tables.md`` and ``table_N.csv`` from what is there now."""
    from flarecps.atomic import write_text
    from flarecps.cli.flare22_recipe import methods
    from flarecps.reporting.paper_tables import filled_csv, filled_markdown, paper_tables, read_paper
    from flarecps.reporting.protocol_table import protocol_csv, protocol_markdown

    runs = {method.key: out / "runs" / method.key for method in methods(eight_gpus)}
    starts = {key: ledger.record(ledger.stages[f"{TRAINING}{key}"]).get("starts", []) for key in runs}
    continued = {key: len(found) > 1 or any(one.startswith("job") for one in found) for key, found in starts.items()}
    parts = ["# FLARE22: the paper's tables, and the same from this run", f"Paper: {read_paper()['source']}."]
    parts += ["\n".join(f"- {note}" for note in notes), protocol_markdown(runs, continued)]
    write_text(out / "table_2.csv", protocol_csv(runs, continued))
    judged = tuple(case.name for case in data.judged)
    for table in paper_tables():
        counted = released if table.number in (4, 5) else judged
        own = {method: _own(out, method, counted, ledger) for method, _ in table.columns}
        parts.append(filled_markdown(table, own))
        write_text(out / f"table_{table.number}.csv", filled_csv(table, own))
    figure = ledger.stages["figure_5"]
    drawn = "figure_5/cases.png" if ledger.state(figure) == "done" else figure.lacking or "not drawn yet"
    parts.append(f"## Figure 5\n\n{drawn}")
    parts.append("Efficiency (time, GPU memory, CPU of a case) is in none of the paper's tables and is not measured "
                 "here: `flarecps efficiency` does it.")  # fmt: skip
    write_text(out / "tables.md", "\n\n".join(part.rstrip() for part in parts) + "\n")
    print(f"written: {out}/tables.md, table_2.csv to table_6.csv")


def _own(out: Path, method: str, cases: tuple[str, ...], ledger: Ledger) -> Any:
    """The scores of one column, or why there are none."""
    from flarecps.reporting.paper_tables import OwnScores
    from flarecps.reporting.run_folder import read_scores

    stage = ledger.stages[f"score_{method}"]
    if ledger.state(stage) != "done":
        return OwnScores(lacking=stage.lacking or "not run")
    scores = read_scores(out / "scores" / method / "scores.csv")
    counted = scores.cases if method == "3d_cps_test" else tuple(case for case in scores.cases if case in cases)
    return OwnScores(scores, counted)
