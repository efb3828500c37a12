"""The command ``flarecps``: a table of commands, each imported only when it is called.

Exit codes: 0 done, 1 a command's own "no" (as ``inspect`` finding an error), 2 the user's mistake or what the machine
refuses (a full disk, no permission, no memory), 70 a defect of the program, 130 interrupted.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import sysconfig
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from flarecps import __version__
from flarecps.cli.streams import PIPE_CLOSED, closing_code, make_lasting, reader_has_gone
from flarecps.errors import ConfigError, FlarecpsError, did_you_mean, refusal, visible
from flarecps.verbosity import EXPLAINED, VERBOSE, said, without_options

USER_MISTAKE = 2
DEFECT = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
TRACEBACK = "FLARECPS_TRACEBACK"
_HALF_LETTER = re.compile("[\ud800-\udfff]")  # of bytes that are not UTF-8: libraries stumble over them


class Command(NamedTuple):
    """Where a command's function lives, and what ``flarecps --help`` says of it."""

    module: str
    function: str
    help: str


COMMANDS: dict[str, Command] = {
    "demo": Command("flarecps.cli.demo", "demo", "see the whole pipeline on a synthetic abdomen: phantom to report"),
    "phantom": Command("flarecps.cli.phantom", "phantom", "write a synthetic abdominal CT data set with 13 organs"),
    "inspect": Command("flarecps.cli.inspect", "inspect", "check a data set; exit 1 when it would break training"),
    "relabel": Command("flarecps.cli.relabel", "relabel", "give label maps other ids, as inspect proposes"),
    "plan": Command("flarecps.cli.plan", "plan", "derive spacing, patch, network and intensities from a data set"),
    "preprocess": Command("flarecps.cli.preprocess", "preprocess", "crop and resample a data set into a case store"),
    "fit": Command("flarecps.cli.training", "lightning_command", "train on a case store, with or without a config"),
    "validate": Command("flarecps.cli.training", "lightning_command", "score a checkpoint on the validation cases"),
    "test": Command("flarecps.cli.training", "lightning_command", "score a checkpoint on the test cases"),
    "predict": Command("flarecps.cli.training", "lightning_command", "predict with a checkpoint and a config"),
    "segment": Command("flarecps.cli.segment", "segment", "segment a scan, a folder or a DICOM series"),
    "pseudo-label": Command(
        "flarecps.cli.pseudo_label", "pseudo_label", "let trained models label the unlabelled scans, for self-training"
    ),
    "postprocess": Command(
        "flarecps.cli.postprocess", "postprocess", "keep largest components, fill holes, where it helps"
    ),
    "score": Command("flarecps.cli.score", "score", "compare predictions with references: DSC and NSD per organ"),
    "compare": Command("flarecps.cli.compare", "compare", "methods side by side: tables, paired statistics, ranking"),
    "figures": Command("flarecps.cli.figures", "figures", "cases side by side, box plots, volumes, worst cases"),
    "efficiency": Command("flarecps.cli.efficiency", "efficiency", "time, GPU, CPU, RAM of a command by FLARE's rules"),
    "summary": Command("flarecps.cli.summary", "summary", "parameters, plan and memory of a config or checkpoint"),
    "report": Command("flarecps.cli.report", "report", "one HTML page of one run, or of several side by side"),
    "dashboard": Command(
        "flarecps.cli.dashboard", "dashboard", "give a wandb project a view of its charts, in sections"
    ),
    "package": Command("flarecps.cli.package", "package", "write a trained model and its card as a folder to hand on"),
    "export": Command("flarecps.cli.export", "export", "write a model for nnU-Net v2, or as ONNX"),
    "import": Command("flarecps.cli.import_", "import_model", "read a model that nnU-Net v2 trained"),
    "convert": Command(
        "flarecps.cli.convert", "convert", "make an nnU-Net data set of folders, or a first dataset.json"
    ),
    "configs": Command(
        "flarecps.cli.configs", "configs", "list the training configs that come with flarecps, or copy them"
    ),
    "completion": Command(
        "flarecps.cli.completion", "completion", "print a script that completes words in bash or zsh"
    ),
    "study": Command("flarecps.cli.study", "study", "judge methods on your own data, and train the one to use"),
    "reproduce": Command("flarecps.cli.reproduce", "reproduce", "the paper's FLARE22 tables; needs the FLARE22 data"),
}
# OpenMP's threads (PyTorch's on a CPU) sleep while they wait for each other: beside another program on the same cores
# they would spin away the time in which the thread they wait for could run.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
THREADS = ("OMP_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS")
MOST_THREADS = 4096  # of a process; no machine has so many cores
LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")
OWN_WORDS = (*LIGHTNING_COMMANDS, "postprocess")  # they parse their own arguments


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``flarecps`` called with ``argv`` (without the program's name; default: the process's own).

    A FlarecpsError becomes one line on standard error and exit code 2. So does a defect, with exit code 70: its
    traceback goes to a file in the system's folder of temporary files, which the line names, and is printed instead
    where the environment says FLARECPS_TRACEBACK=1. Errors in code that a config names keep theirs.
    """
    if "torch" not in sys.modules and not os.environ.keys() & {*WAITING, "GOMP_SPINCOUNT"}:
        os.environ.update(WAITING)  # read once, when the first library with threads is loaded
    make_lasting()
    try:
        code = _main(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        code = PIPE_CLOSED
    code = closing_code(code)
    if argv is None and threading.current_thread() is threading.main_thread():
        for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
            # all is done: a signal would give the interpreter's end another code, and Ctrl-C a traceback
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, lambda number, frame: os._exit(code))
    return code


def _main(argv: Sequence[str]) -> int:
    words, level = without_options(argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help_text())
        return 0 if words else USER_MISTAKE
    if words[0] in ("-V", "--version", "version"):
        print(f"flarecps {__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        advice = did_you_mean(name, COMMANDS) or f"; commands: {', '.join(COMMANDS)}"
        print(visible(f"flarecps: no command {name!r}{advice}"), file=sys.stderr)
        return USER_MISTAKE
    if foreign := next((word for word in words if _HALF_LETTER.search(word)), None):
        encoding = sys.getfilesystemencoding()
        cure = "rename it, or link to it by another name" if encoding == "utf-8" else "set PYTHONUTF8=1"
        return _say(name, f"{foreign}: its letters are not {encoding.upper()}; {cure}", USER_MISTAKE)
    try:
        os.getcwd()
    except FileNotFoundError:  # libraries die of it in ways of their own
        return _say(name, "the current folder has been removed; go to another one (cd) and try again", USER_MISTAKE)
    try:
        _check_thread_numbers()
        with said(level):
            return _run(name, words[1:]) or 0
    except FlarecpsError as error:
        if level == VERBOSE:
            traceback.print_exception(error)
        return _say(name, str(error), USER_MISTAKE)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_has_gone():
            return PIPE_CLOSED
        is_missing = isinstance(error, FileNotFoundError)  # in code that a config names, it is its author's
        if (refused := refusal(error)) and not (is_missing and _is_someone_elses(error)):
            return _say(name, refused, USER_MISTAKE)
        if isinstance(error, Warning):
            kind = type(error).__name__
            told = f"a library's warning ends it, as the environment's PYTHONWARNINGS or -W wants: {kind}: {error}"
            return _say(name, told, USER_MISTAKE)
        if os.environ.get(TRACEBACK) == "1" or _is_someone_elses(error):
            raise
        return _say(name, f"a defect of the program: {type(error).__name__}: {error}; {_kept_traceback(name)}", DEFECT)
    except KeyboardInterrupt as interrupt:  # with how to go on, where somebody knows it
        print(f"flarecps {name}: {'; '.join(['interrupted', *map(str, interrupt.args)])}", file=sys.stderr)
        return INTERRUPTED


def _check_thread_numbers() -> None:
    """Raise ConfigError where libraries would stumble over the environment's numbers of threads; of numbers for nested
    levels, which they do not know, the first is kept.
    """
    for name in THREADS:
        number, comma, _ = os.environ.get(name, "1").partition(",")
        if not number.strip().isdecimal() or not 0 < int(number) <= MOST_THREADS:
            raise ConfigError(f"the environment's {name} is {number!r}: expected 1 to {MOST_THREADS}; unset it")
        if comma:
            os.environ[name] = number


def _say(name: str, message: str, code: int) -> int:
    """Print one line on standard error; returns the exit code to end with."""
    print(f"flarecps {name}: {visible(' '.join(message.split()))}", file=sys.stderr)
    return code


def _is_someone_elses(error: Exception) -> bool:
    """Whether an error passed through code that is neither this program's nor a library's: its author needs it."""
    homes = (Path(__file__).parents[1], Path(sysconfig.get_path("stdlib")))
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        if file.is_file() and "site-packages" not in file.parts and not any(home in file.parents for home in homes):
            return True
    return False


def _kept_traceback(name: str) -> str:
    """Where the traceback of the present error went, in words; it is printed where no file can be written."""
    try:
        descriptor, path = tempfile.mkstemp(prefix=f"flarecps-{name}-", suffix=".log")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(
                f"flarecps {__version__}, Python {sys.version}\n{shlex.join(sys.argv)}\n\n{traceback.format_exc()}"
            )
    except OSError:
        traceback.print_exc()
        return "please report it with the lines above"
    return f"please report it with {path}"


def _help_text() -> str:
    """What ``flarecps --help`` prints: every command with its one line, in the order of use."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: flarecps COMMAND [...]",
            "",
            "3D Cross-Pseudo Supervision: semi-supervised segmentation, from a folder of scans to scores.",
            "",
            "commands:",
            *lines,
            "",
            "flarecps COMMAND --help   its arguments, with units and defaults",
            *(f"flarecps COMMAND {option:<8} {explanation}" for option, explanation in EXPLAINED.items()),
            "flarecps --version        the version",
        ]
    )


def _run(name: str, words: list[str]) -> int | None:
    """Import one command and run it on its words."""
    command = COMMANDS[name]
    if name in LIGHTNING_COMMANDS:
        from flarecps.cli.training_options import answered

        if (code := answered([name, *words])) is not None:
            return code
    with ExitStack() as stack:
        if name in LIGHTNING_COMMANDS:
            from flarecps.training.stop_signals import listening

            stack.enter_context(listening(name))  # before the slow imports: a signal that comes meanwhile is not lost
        with _interrupted_at_once(name):
            function: Callable[..., int | None] = getattr(import_module(command.module), command.function)
        if name not in LIGHTNING_COMMANDS:
            stack.enter_context(_interrupted_twice(name))
        if name in OWN_WORDS:
            return function([name, *words])
        from flarecps.cli.arguments import call_with_arguments

        return call_with_arguments(function, words, prog=f"flarecps {name}")


@contextmanager
def _interrupted_twice(name: str) -> Iterator[None]:
    """While the block runs: a second Ctrl-C, as while workers are ended after the first one, ends all at once."""
    from flarecps.processes import end_at_once

    def end(number: int, frame: Any) -> None:
        end_at_once(INTERRUPTED, f"flarecps {name}: ended at once by a second signal (SIGINT)")

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, end)
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield


@contextmanager
def _interrupted_at_once(name: str) -> Iterator[None]:
    """While the block imports: Ctrl-C ends the process. Libraries turn a KeyboardInterrupt there into other errors."""

    def end(number: int, frame: Any) -> None:
        print(f"flarecps {name}: interrupted", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)

    with _handled(end):
        yield


@contextmanager
def _handled(interrupt: Callable[[int, Any], None]) -> Iterator[None]:
    """While the block runs, ``interrupt`` handles Ctrl-C, unless somebody else does already."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
