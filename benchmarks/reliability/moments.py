"""Commands are disturbed at random moments, and how they end is judged: a table of docs/reliability.md.

``python benchmarks/reliability/moments.py --tries 40 --seed 0``: each try draws a command, a victim (the process, a
rank, data workers, wandb's service, all of them), a signal and a moment, by its seed alone. It is bad when a process is
left after 20 s (as many times longer as programs wait for a core), the exit code is another than documented, a
traceback is printed, or what was written can't be gone on with to the very files of an undisturbed run.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from lightning.pytorch import Callback

ROOT = Path(__file__).resolve().parents[2]
PLACES = [ROOT, ROOT / "tests", ROOT / "tests" / "integration", Path(__file__).parent]
MARK = "FLARECPS_MOMENTS"  # environment variable: the processes of one try, also those whose parent is gone
STARTS_WITHIN_S = 300.0
MOMENTS = ("import", "setup", "train_start", "step", "validation", "saving", "epoch_end", "train_end", "teardown")
ASKED = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 138, signal.SIGHUP: 129}
PROGRAM = """import sys
if __name__ == "__main__":
    if sys.argv[1] == "fit":
        import flarecps.data.patch_loader as loader
        loader.LOOKS_S, loader.ANSWER_WITHIN_S = 1, 4
    from flarecps.cli.main import main
    sys.exit(main())
"""


class Moments(Callback):
    """Makes a file in ``FLARECPS_MOMENTS_FOLDER`` when a moment of a rank comes."""

    def _note(self, trainer: Any, moment: str) -> None:
        Path(os.environ["FLARECPS_MOMENTS_FOLDER"], f"{moment}_{trainer.global_rank}").touch()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._note(trainer, "setup")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._note(trainer, "train_start")

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self._note(trainer, "step")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._note(trainer, "validation")

    def on_save_checkpoint(self, trainer: Any, *_: Any) -> None:
        self._note(trainer, "saving")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._note(trainer, "epoch_end")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._note(trainer, "train_end")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._note(trainer, "teardown")


@dataclass(frozen=True)
class Blow:
    """A signal to a victim, so many seconds after a moment; ``codes`` are the ends that are documented."""

    victim: str
    number: signal.Signals
    moment: str
    after_s: float
    twice_after_s: float | None
    codes: frozenset[int]

    @property
    def words(self) -> str:
        return f"{self.number.name} to {self.victim}{' twice' if self.twice_after_s is not None else ''}"


def drawn(rng: random.Random, ranks: int, workers: int, wandb: bool) -> Blow:
    """A blow to a training."""
    victims = ["process", "group"] + ["worker", "two workers"] * bool(workers) + ["rank 1"] * (ranks - 1)
    victim = "wandb" if wandb else rng.choice(victims)
    moment = rng.choice(MOMENTS[2:-1] if victim in ("worker", "two workers", "wandb") else MOMENTS)
    kinds = [*ASKED, signal.SIGKILL] + [signal.SIGQUIT] * (victim != "group")
    if victim in ("worker", "two workers"):
        kinds += [signal.SIGKILL] * 4 + [signal.SIGSTOP] * 4
    number = rng.choice(kinds if victim != "wandb" else [signal.SIGKILL, signal.SIGTERM])
    codes = {0} if victim in ("worker", "two workers", "wandb") or moment in MOMENTS[-3:] else set()
    if victim == "rank 1" or (victim.endswith(("worker", "workers")) and number in (signal.SIGKILL, signal.SIGSTOP)):
        codes |= {2}
    if victim.endswith(("worker", "workers")) and number == signal.SIGQUIT:
        codes |= {2}
    if number in ASKED and victim in ("process", "group", "rank 1"):
        codes |= {ASKED[number]} | ({-number} if moment == "import" else set())
    if number in (signal.SIGKILL, signal.SIGQUIT) and victim in ("process", "group"):
        codes |= {-number, 128 + number}
    twice = rng.choice([None, None, None, 0.1, 1.3])
    return Blow(victim, number, moment, rng.random() ** 2 * 2.0, twice, frozenset(codes))


@dataclass
class Try:
    """A command in processes of its own."""

    words: list[str]
    folder: Path
    environment: dict[str, str]

    def start(self) -> Any:
        from test_every_end import Running

        self.folder.mkdir(parents=True, exist_ok=True)
        self.mark = uuid.uuid4().hex
        script = self.folder / "program.py"
        script.write_text(PROGRAM)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "disabled",
            "PYTHONPATH": os.pathsep.join(map(str, PLACES)),
            MARK: self.mark,
            "FLARECPS_MOMENTS_FOLDER": str(self.folder),
            **self.environment,
        }
        error = self.folder / "error.txt"
        with error.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, str(script), *self.words],
                stdout=subprocess.DEVNULL,
                stderr=stream,
                env=environment,
                text=True,
                start_new_session=True,
            )
        return Running(process, error, lambda *_: None)

    def left(self) -> list[psutil.Process]:
        """The processes of this try that live, whoever their parent is."""
        found = []
        for one in psutil.process_iter():
            with suppress(psutil.Error):
                if one.status() != psutil.STATUS_ZOMBIE and one.environ().get(MARK) == self.mark:
                    found.append(one)
        return found


def struck(running: Any, blow: Blow) -> None:
    """Send the signal to the victim as it is now; nothing when it is gone."""
    everyone: list[psutil.Process] = []
    with suppress(psutil.Error):
        everyone = running.everyone()
    if blow.victim in ("process", "group"):
        with suppress(ProcessLookupError):
            (os.killpg if blow.victim == "group" else os.kill)(running.process.pid, blow.number)
        return
    chosen: list[psutil.Process] = []
    with suppress(psutil.Error):
        if blow.victim == "wandb":
            chosen = [one for one in everyone[1:] if "wandb" in " ".join(one.cmdline())]
        elif blow.victim == "rank 1":
            chosen = [one for one in everyone[1:] if one.environ().get("LOCAL_RANK") == "1"][:1]
        elif blow.victim == "pool worker":
            chosen = [one for one in everyone[1:] if "spawn_main" in " ".join(one.cmdline())][:1]
        else:
            workers = running.workers()
            chosen = workers[:2] if blow.victim == "two workers" else workers[-1:]
    for one in chosen:
        with suppress(psutil.Error):
            one.send_signal(blow.number)


def disturbed(one: Try, blow: Blow) -> tuple[int | None, float, str, list[str]]:
    """The command's exit code, after how many seconds it ended, what it said, and what was bad about its end."""
    from patience import patient
    from test_every_end import WITHIN_S

    running = one.start()
    process = running.process
    deadline = time.monotonic() + STARTS_WITHIN_S
    place = one.folder / f"{blow.moment}_{1 if blow.victim == 'rank 1' else 0}"
    while blow.moment != "import" and not place.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(blow.after_s)
    struck(running, blow)
    if blow.twice_after_s is not None:
        time.sleep(blow.twice_after_s)
        struck(running, blow)
    within_s = patient(WITHIN_S) + (STARTS_WITHIN_S if 0 in blow.codes else 0)  # it may be one that a training survives
    began, bad = time.monotonic(), []
    code: int | None = None
    try:
        code = process.wait(within_s)
    except subprocess.TimeoutExpired:
        bad.append(f"no end within {within_s:.0f} s")
    took_s = time.monotonic() - began
    while code is not None and one.left() and time.monotonic() - began < within_s + WITHIN_S:
        time.sleep(0.2)
    bad += [f"left behind: {' '.join(each.cmdline())[:80]} ({each.status()})" for each in one.left()]
    for each in one.left():
        with suppress(psutil.Error):
            each.kill()
    process.wait()
    said = running.error.read_text(errors="replace")
    if code is not None and code not in blow.codes:
        bad.append(f"exit code {code}, documented are {sorted(blow.codes)}")
    if "Traceback" in said or "Exception ignored" in said:
        bad.append("a traceback")
    if code not in (None, 0) and code > 0 and not said.strip():
        bad.append("not a word")
    return code, took_s, said, bad


def digest(folder: Path, patterns: tuple[str, ...]) -> str:
    """One number of the files of these patterns; of a checkpoint, its networks' weights."""
    import torch

    total = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        total.update(str(path.relative_to(folder)).encode())
        if path.suffix == ".ckpt":
            weights = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
            for name, value in sorted(weights.items()):
                total.update(name.encode() + (value.numpy().tobytes() if isinstance(value, torch.Tensor) else b""))
        else:
            total.update(path.read_bytes())
    return total.hexdigest()


def finished(one: Try) -> str:
    """Run a command undisturbed; empty, or what went wrong."""
    running = one.start()
    code = running.process.wait()
    return "" if code == 0 else f"exit code {code} when run again: {running.error.read_text()[-300:]}"


@dataclass(frozen=True)
class Kind:
    """A way to call a command. ``words(out)`` writes to ``out``; ``again`` are more words that go on with it."""

    name: str
    words: Callable[[Path], list[str]]
    results: tuple[str, ...]
    again: tuple[str, ...] = ()
    ranks: int = 1
    workers: int = 0
    wandb: bool = False

    @property
    def is_training(self) -> bool:
        return self.name.startswith("fit")


def kinds(stores: Any, trained: Path) -> list[Kind]:
    """Every way to call a command that is attacked; ``trained`` is a finished run's folder."""
    from stores import fit_words

    def training(name: str, ranks: int, workers: int, wandb: bool = False, *own: str) -> Kind:
        more = ["--data.iterations_per_epoch", 6, "--data.workers", workers, "--data.fold", 0]
        more += ["--data.global_batch", "{labelled: 2, unlabelled: 2}", "--trainer.callbacks"]
        more += ["[{class_path: moments.Moments}]", *own]
        if ranks > 1:
            more += ["--trainer.devices", ranks, "--trainer.strategy", "ddp"]
        return Kind(
            name,
            lambda out: fit_words("phantom_2d.yaml", stores, out, *more, epochs=3),
            ("checkpoints/last.ckpt",),
            ("--ckpt_path", "auto"),
            ranks,
            workers,
            wandb,
        )

    last = str(trained / "checkpoints" / "last.ckpt")
    data, two = str(stores.dataset), str(stores.two)
    scans = str(stores.dataset / "imagesTs")

    def lightning(command: str, ranks: int) -> Callable[[Path], list[str]]:
        def words(out: Path) -> list[str]:
            own = fit_words("phantom_2d.yaml", stores, out, "--data.fold", 0, "--ckpt_path", last, epochs=1)
            own += ["--trainer.devices", str(ranks), "--trainer.strategy", "ddp"] if ranks > 1 else []
            own += ["--data.predict_input", scans] if command == "predict" else []
            return [command, *own[1:]]

        return words

    return [
        training("fit, no workers", 1, 0),
        *[training("fit, 2 workers", 1, 2)] * 4,
        *[training("fit, 2 ranks, 2 workers", 2, 2)] * 4,
        training("fit, 2 ranks, no workers", 2, 0),
        training("fit, wandb offline", 1, 2, True),
        training("fit, mean teacher", 1, 2, False, "--model.method", "flarecps.methods.MeanTeacher"),
        Kind("validate", lightning("validate", 1), ()),
        Kind("test, 2 ranks", lightning("test", 2), (), ranks=2),
        Kind("predict, 2 ranks", lightning("predict", 2), ("**/*.nii.gz",), ranks=2),
        Kind(
            "preprocess, 2 workers",
            lambda out: ["preprocess", data, str(Path(two, "plan.json")), "--out", str(out), "--workers", "2"],
            ("cases/*/*.b2nd",),
        ),
        Kind("inspect, 2 workers", lambda out: ["inspect", data, "--workers", "2"], ()),
        Kind("segment, 2 workers", lambda out: ["segment", last, scans, str(out), "--workers", "2"], ("*.nii.gz",)),
        Kind(
            "score, 2 workers",
            lambda out: [
                *("score", str(stores.dataset / "labelsTr"), str(stores.dataset / "labelsTr")),
                *("--out", str(out), "--workers", "2"),
            ],
            ("**/*.csv",),
        ),
    ]


def drawn_for(kind: Kind, rng: random.Random) -> Blow:
    """A blow to this kind of command."""
    if kind.is_training:
        return drawn(rng, kind.ranks, kind.workers, kind.wandb)
    pool = "workers" in kind.name
    victim = rng.choice(["process", "group", *["pool worker"] * 2 * pool, *["rank 1"] * (kind.ranks - 1)])
    number = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL, signal.SIGQUIT])
    if victim == "pool worker":
        codes = {0, 1}
    else:
        codes = {0, 2 if victim == "rank 1" else -number, 128 + number, 130 if number == signal.SIGINT else -number}
    twice = rng.choice([None, None, 0.1, 1.3])
    return Blow(victim, number, "import", rng.random() * 20.0, twice, frozenset(codes))


def main() -> int:
    """Make the tries and print the table; 1 when one was bad."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the first try; each has the next one")
    parser.add_argument("--only", default="", help="a pattern of the kinds of commands")
    arguments = parser.parse_args()
    sys.path[:0] = map(str, PLACES)
    os.environ.setdefault("WANDB_MODE", "disabled")
    from stores import fit, write_stores

    from flarecps.experiments.runner import processor_name
    from flarecps.reporting.tables import markdown_table

    tried: Counter[str] = Counter()
    was_bad: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        stores = write_stores(base / "stores")
        trained = fit("phantom_2d.yaml", stores, base / "trained", epochs=1)
        known: dict[str, str] = {}
        choices = [kind for kind in kinds(stores, trained) if re.search(arguments.only, kind.name)]
        for seed in range(arguments.seed, arguments.seed + arguments.tries):
            rng = random.Random(seed)
            kind = rng.choice(choices)
            blow = drawn_for(kind, rng)
            out, place = base / f"try_{seed}" / "out", base / f"try_{seed}"
            environment = {"WANDB_MODE": "offline"} if kind.wandb else {}
            first = Try(kind.words(out), place / "first", environment)
            code, took_s, said, bad = disturbed(first, blow)
            if kind.results:
                again = (*kind.again,)
                bad += [wrong] if (wrong := finished(Try([*kind.words(out), *again], place / "again", {}))) else []
                if kind.name not in known:
                    whole = base / f"whole_{len(known)}"
                    wrong = finished(Try(kind.words(whole), place / "whole", {}))
                    known[kind.name] = wrong or digest(whole, kind.results)
                if not bad and digest(out, kind.results) != known[kind.name]:
                    bad.append("other results than without the disturbance")
            told = f"{seed} {kind.name}: {blow.words}, {blow.after_s:.2f} s after {blow.moment}: "
            told += f"code {code} after {took_s:.1f} s"
            print(f"{told}; {'; '.join(bad) or 'good'}", file=sys.stderr, flush=True)
            if bad:
                print("\n".join(f"    {line}" for line in said.splitlines()[-12:]), file=sys.stderr, flush=True)
            else:
                shutil.rmtree(place)
            tried[kind.name] += 1
            was_bad[kind.name] += bool(bad)
            if code:  # what a training survives it goes on after
                seconds[kind.name] = max(seconds.get(kind.name, 0.0), took_s)
    rows = [[one, str(tried[one]), str(was_bad[one]), f"{seconds.get(one, 0.0):.1f}"] for one in sorted(tried)]
    rows.append(["**all**", str(tried.total()), str(was_bad.total()), f"{max(seconds.values(), default=0.0):.1f}"])
    print(markdown_table(["disturbed", "tried", "bad", "slowest end, seconds"], rows))
    print(f"{datetime.date.today()}: {processor_name()}, {os.cpu_count()} cores, {platform.system()}")
    return int(was_bad.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
