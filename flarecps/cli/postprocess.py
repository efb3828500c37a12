"""``flarecps postprocess determine | apply``: stray components and holes, where validation says that it helps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from flarecps.cli.arguments import call_with_arguments
from flarecps.errors import ConfigError, did_you_mean
from flarecps.verbosity import EXPLAINED

PROG = "flarecps postprocess"
FAILED = 1  # exit code: some scans could not be used


def postprocess(words: Sequence[str]) -> int | None:
    """Run ``determine`` or ``apply``; ``words`` begin with the command's own name."""
    action, rest = (words[1] if len(words) > 1 else "--help"), list(words[2:])
    if action in ACTIONS:
        return call_with_arguments(ACTIONS[action], rest, f"{PROG} {action}")
    if action in ("-h", "--help", "help"):
        print(_help_text())
        raise SystemExit(0 if len(words) > 1 else 2)
    raise ConfigError(f"no action '{action}'; expected {' or '.join(ACTIONS)}{did_you_mean(action, ACTIONS)}")


def determine(predictions: Path, references: Path, *, out: Path, labels: Path | None = None, workers: int = 1) -> int:
    """Find which post-processing makes validation scans better, and write it as rules.

    nnU-Net's rule: a step is taken when the mean DSC of some organ rises and that of none falls. First the largest
    component of all organs together, then of each organ, then the holes of each organ. Test scans are not for this.

    Args:
        predictions: folder of label maps (NIfTI, NRRD, MHA) that 'flarecps segment' made of validation scans.
        references: folder of the true label maps, of the same names.
        out: file for the rules; or an existing folder, or a checkpoint: then postprocessing.json in the folder, or
            beside the checkpoint, where 'flarecps segment --postprocess auto' finds it.
        labels: dataset.json (or its folder) that names the structures; by default that of the two folders.
        workers: scans at a time, each in a process.
    """
    from rich.markup import escape
    from rich.table import Table

    from flarecps.cli.console import Console
    from flarecps.evaluation.label_sets import label_set
    from flarecps.inference.outputs import disk_errors_as_config_error
    from flarecps.inference.postprocessing import FILE_NAME, determine_rules, pairs_of, write_rules

    structures, origin = label_set(labels, predictions, references)
    pairs = pairs_of(predictions, references)
    rules, failed = determine_rules(pairs, structures, workers)
    path = out / FILE_NAME if out.is_dir() else out.parent / FILE_NAME if out.suffix == ".ckpt" else out
    with disk_errors_as_config_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rules(path, rules)
    before, after = rules.evidence["mean_dsc_as_predicted"], rules.evidence["mean_dsc_after"]
    table = Table("organ", title=f"Mean DSC over {len(rules.evidence['scans'])} scans", title_justify="left")
    for heading in ("as predicted", "after", "change"):
        table.add_column(heading, justify="right")
    for organ, dsc in before.items():
        if dsc is not None and after[organ] is not None:
            table.add_row(escape(organ), f"{dsc:.4f}", f"{after[organ]:.4f}", f"{after[organ] - dsc:+.4f}")
    console = Console(highlight=False)
    console.print(table)
    for line in (f"labels: {origin}", f"rules: {rules.describe()}", f"written: {path}"):
        console.print(line, markup=False, soft_wrap=True)
    return _report([(outcome.name, outcome.error or "") for outcome in failed])


def apply(predictions: Path, output: Path, *, rules: Path, workers: int = 1, overwrite: bool = False) -> int:
    """Apply rules to finished label maps; each is written under its own name on its own grid.

    Args:
        predictions: folder of label maps (NIfTI, NRRD, MHA).
        output: folder for the results, another one; finished ones are skipped. Gets the predictions' dataset.json, too.
        rules: the file that 'flarecps postprocess determine' wrote.
        workers: scans at a time, each in a process.
        overwrite: make finished results again.
    """
    import shutil

    from flarecps.atomic import atomic_path
    from flarecps.cli.console import Console
    from flarecps.inference.postprocessing import apply_rules, read_rules

    outcomes = apply_rules(predictions, output, read_rules(rules), workers, overwrite)
    described = predictions / "dataset.json"
    if described.is_file() and output.is_dir():
        with atomic_path(output / described.name) as partial:
            shutil.copyfile(described, partial)
    changed, done = sum(outcome.value is True for outcome in outcomes), [one for one in outcomes if not one.failed]
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{len(done)} of {len(outcomes)} label maps in {output}; {changed} changed by the rules", markup=False
    )
    return _report([(outcome.name, outcome.error or "") for outcome in outcomes if outcome.failed])


def _report(failed: Sequence[tuple[str, str]]) -> int:
    from flarecps.cli.console import Console

    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    for name, error in failed:
        errors.print(f"left out: {name}: {error}", style="red", markup=False)
    return FAILED if failed else 0


ACTIONS: dict[str, Callable[..., int | None]] = {"determine": determine, "apply": apply}


def _help_text() -> str:
    first = {name: (function.__doc__ or "").partition("\n")[0] for name, function in ACTIONS.items()}
    width = max(map(len, first))
    return "\n".join(
        [
            f"usage: {PROG} determine PREDICTIONS REFERENCES --out FILE",
            f"       {PROG} apply PREDICTIONS OUTPUT --rules FILE",
            "",
            "Keep the largest components and fill holes, where validation shows that it helps.",
            "",
            "actions:",
            *(f"  {name:<{width}}  {line}" for name, line in first.items()),
            "",
            f"{PROG} determine --help   its arguments",
            *(f"{PROG} ACTION {option:<8} {explanation}" for option, explanation in EXPLAINED.items()),
        ]
    )
