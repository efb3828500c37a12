"""The command `flarecps`: what it lists, how it answers, and that it answers before heavy libraries load."""

from __future__ import annotations

import contextlib
import csv
import errno
import inspect
import os
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from patience import patient
from rich.table import Table
from rich.text import Text

import flarecps
from flarecps import verbosity
from flarecps.cli import main as cli
from flarecps.cli.arguments import call_with_arguments
from flarecps.cli.console import Console
from flarecps.errors import ScanError
from flarecps.text_files import csv_text

DESIGN_ORDER = ["demo", "phantom", "inspect", "relabel", "plan", "preprocess", "fit", "validate", "test", "predict",
                "segment", "pseudo-label", "postprocess", "score", "compare", "figures", "efficiency", "summary",
                "report", "dashboard", "package", "export", "import", "convert", "configs", "completion", "study",
                "reproduce"]  # fmt: skip
FOLDER_COMMANDS = [name for name in DESIGN_ORDER if name not in cli.OWN_WORDS]
HEAVY = {"torch", "torchio", "lightning", "SimpleITK", "matplotlib", "wandb", "scipy", "numpy", "blosc2"}


def modules_after(*words: str) -> set[str]:
    """The top-level modules that a fresh interpreter has imported after `flarecps WORDS`."""
    code = (
        "import sys\n"
        "from flarecps.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert end.code in (0, None), end.code\n"
        "print('\\nMODULES', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("MODULES", 1)[1].split())


def test_help_lists_every_command_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    listed = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [words[0] for words in listed] == DESIGN_ORDER
    assert all(len(words) > 3 for words in listed), "each with a line of explanation"


def test_help_comes_before_any_library() -> None:
    assert not modules_after("--help") & (HEAVY | {"jsonargparse", "rich", "yaml"})


@pytest.mark.parametrize("name", FOLDER_COMMANDS)
def test_help_of_a_command_imports_no_heavy_library(name: str) -> None:
    assert not modules_after(name, "--help") & HEAVY


@pytest.mark.parametrize("name", FOLDER_COMMANDS)
def test_every_folder_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: flarecps {name}")
    arguments = text.split("options:")[-1]
    assert "(default: " in arguments or name in ("summary", "configs", "completion", "dashboard", "package")
    assert "type: " not in arguments, "defaults and explanations, no Python types"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plan", ["--out", "--dimensions {2,3}", "--intensity {global,foreground}", "--gpu-memory GB", "(default: 8"]),
        ("preprocess", ["DATASET PLAN", "--out", "--workers", "--shard"]),
        ("phantom", ["OUT", "--labelled", "--unlabelled", "--test", "--size {small,full}", "--seed"]),
        ("inspect", ["DATASET", "--json PATH"]),
        ("segment", ["CHECKPOINT [CHECKPOINT ...] INPUT OUTPUT", "--postprocess", "--shard"]),
        ("pseudo-label", ["TEACHER [TEACHER ...] STORE OUT", "--largest", "--shard"]),
        ("score", ["PREDICTIONS REFERENCES", "--out", "--protocol {official,strict}"]),
        ("summary", ["[CHECKPOINT]", "--config"]),
        ("package", ["CHECKPOINT [CHECKPOINT ...] OUT", "--scores PATH", "--intended-use"]),
        ("report", ["[RUNS ...]"]),
        ("dashboard", ["PROJECT", "--like PATH", "ENTITY/PROJECT"]),
        ("export", ["CHECKPOINT OUT", "--to {nnunet,onnx}", "--sibling {1,2,both}", "--mirror-axes"]),
        ("import", ["FOLDER OUT", "--from nnunet", "--folds", "--checkpoint", "--plan PATH"]),
        ("convert", ["SOURCE [OUT]", "--copy"]),
        ("demo", ["--out"]),
    ],
)
def test_the_command_line_is_the_promised_one(
    name: str, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for expected in words:
        assert expected in text


@pytest.mark.parametrize("name", cli.LIGHTNING_COMMANDS)
def test_help_of_lightnings_commands(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 60, "one screen"
    assert any(line.split()[0] == "--config" for line in lines)
    assert max(map(len, lines)) <= 120


def test_no_word_and_unknown_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().out
    assert cli.main(["segmnt", "x"]) == 2
    assert "did you mean segment?" in capsys.readouterr().err
    assert cli.main(["zzz"]) == 2
    assert "commands: demo, phantom" in capsys.readouterr().err


def test_version_and_module_call() -> None:
    done = subprocess.run([sys.executable, "-m", "flarecps", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"flarecps {flarecps.__version__}"
    done = subprocess.run([sys.executable, "-m", "flarecps", "fiit"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "flarecps: no command 'fiit'; did you mean fit?\n"


def pretend(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `flarecps report` raise ``error``."""

    def run(name: str, words: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "_run", run)


def test_a_users_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pretend(monkeypatch, ScanError("a.nii.gz:\n  truncated;\n  copy it again"))
    assert cli.main(["report"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "flarecps report: a.nii.gz: truncated; copy it again\n"
    assert captured.out == ""


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pretend(monkeypatch, KeyboardInterrupt())
    assert cli.main(["report"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_defect_is_one_line_and_a_log_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pretend(monkeypatch, ZeroDivisionError("ours \x1b[2J"))
    with pytest.raises(ZeroDivisionError):  # FLARECPS_TRACEBACK=1, as in all tests
        cli.main(["report"])
    monkeypatch.delenv("FLARECPS_TRACEBACK")
    with pytest.raises(ZeroDivisionError):  # the frame of this test's function: someone else's code
        cli.main(["report"])
    monkeypatch.setattr(cli, "_is_someone_elses", lambda error: False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli.main(["report"]) == 70
    said = capsys.readouterr().err
    (log,) = tmp_path.iterdir()
    assert said == (
        f"flarecps report: a defect of the program: ZeroDivisionError: ours \\x1b[2J; please report it with {log}\n"
    )
    text = log.read_text()
    assert "Traceback (most recent call last)" in text
    assert "ZeroDivisionError: ours" in text
    assert log.stat().st_mode & 0o077 == 0, "paths in it are nobody else's business"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert cli.main(["report"]) == 70
    assert "Traceback" in capsys.readouterr().err, "printed where no file can be written"


def test_whose_code_an_error_passed_through() -> None:
    for call, someones in ((lambda: csv_text([None]), False), (lambda: 1 / 0, True)):
        with pytest.raises((csv.Error, TypeError, ZeroDivisionError)) as caught:
            call()
        assert cli._is_someone_elses(_below(caught.value)) is someones


def _below(error: Exception) -> Exception:
    """The error as if it had been caught one call further down: without the frames of the test that caught it."""
    inner = error.__traceback__.tb_next
    return error.with_traceback(inner.tb_next or inner)


def no_folder_of_its_own() -> OSError:
    """As matplotlib says that it finds no folder to write to."""
    error = OSError("Matplotlib requires access to a writable cache directory")
    error.__cause__ = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/x']")
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/out/x"), "/out/x: No space left on device; free some"),
        (PermissionError(errno.EACCES, "Permission denied", "/out/x"), "/out/x: Permission denied"),
        (MemoryError(), "not enough memory (RAM); free some memory, use fewer workers"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "raise the limit of processes (ulimit -u)"),
        (RuntimeError("can't start new thread"), "can't start new thread; raise the limit of processes (ulimit -u)"),
        (ImportError("x.so: failed to map segment from shared object"), "shared object; free some memory"),
        (ImportError("x.so: cannot open shared object file: Too many open files"), "raise the limit of open files"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/x']"), "let TMPDIR name one"),
        (no_folder_of_its_own(), "let TMPDIR name one"),
        (DeprecationWarning("old"), "as the environment's PYTHONWARNINGS or -W wants: DeprecationWarning: old"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FLARECPS_TRACEBACK")
    monkeypatch.setattr(cli, "_is_someone_elses", lambda error: False)
    pretend(monkeypatch, error)
    assert cli.main(["report"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (["-OO"], {}),  # no docstrings, no assertions
        (["-W", "error"], {}),
        (["-X", "dev"], {"HOME": "", "TERM": "dumb", "COLUMNS": "1"}),
        ([], {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "0"}),
    ],
)
def test_every_command_explains_itself_wherever_it_is(options: list[str], given: dict[str, str]) -> None:
    program = (
        "from flarecps.cli.main import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    try:\n        code = main([name, '--help'])\n"
        "    except SystemExit as end:\n        code = end.code\n"
        "    assert code == 0 or exit(name)\n"
    )
    done = subprocess.run(
        [sys.executable, *options, "-c", program], capture_output=True, text=True, check=False, env=os.environ | given
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", cli.THREADS)
@pytest.mark.parametrize("number", ["abc", "0", "-1", "1.5", "", "1000000000"])
def test_numbers_of_threads_that_are_none_are_named(
    name: str, number: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, number)
    assert cli.main(["configs"]) == 2
    assert capsys.readouterr().err.startswith(
        f"flarecps configs: the environment's {name} is '{number}': expected 1 to"
    )


def test_numbers_of_threads_by_level_are_read_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP's own way to write them, of which other libraries make nothing."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert cli.main(["configs"]) == 0
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_no_name_is_obeyed_by_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("case", title="cases\x9b1m")
    table.add_row("liver\x1b[2J")
    Console(force_terminal=True, width=80).print(table, Text("b\x1b]0;x\x07", style="red"), "\u202ea", sep="\n")
    said = capsys.readouterr().out
    assert not re.search("\x1b(?!\\[[0-9;]*m)|[\x07\x9b\u202e]", said), "rich's own colours, nothing else"
    for shown in ("cases\\x9b1m", "liver\\x1b[2J", "b\\x1b]0;x", "\\u202ea"):
        assert shown in said


def test_every_command_prints_by_that_console() -> None:
    for file in Path(cli.__file__).parent.glob("*.py"):
        assert file.name == "console.py" or "rich.console" not in file.read_text(encoding="utf-8"), file


def brew(
    water: Path,
    cups: list[int],
    *,
    out: Path,
    strength: Literal["mild", "strong"] = "mild",
    heat_mm: float = 8.0,
    sugar: bool = False,
    name: str | None = None,
) -> int:
    """Make tea.

    Args:
        heat_mm: how high, 5% more is fine
    """
    brew_calls.append(locals())
    return len(cups)


def taste(cup: Path | None = None, /, *, note: str = "fine") -> None:
    brew_calls.append(locals())


brew_calls: list[dict[str, object]] = []


def test_a_signature_becomes_a_command_line() -> None:
    brew_calls.clear()
    words = ["well", "1", "2", "--out", "pot", "--heat=3", "--strength", "strong", "--sugar"]
    assert call_with_arguments(brew, words, "tea") == 2
    assert brew_calls == [
        {"water": Path("well"), "cups": [1, 2], "out": Path("pot"), "strength": "strong", "heat_mm": 3.0,
         "sugar": True, "name": None}
    ]  # fmt: skip
    call_with_arguments(brew, ["w", "1", "--out", "p", "--no-sugar", "--name", "a_b"], "tea")
    assert (brew_calls[-1]["sugar"], brew_calls[-1]["name"]) == (False, "a_b")
    call_with_arguments(taste, [], "tea")
    call_with_arguments(taste, ["cup", "--note", "so-so"], "tea")
    assert brew_calls[-2:] == [{"cup": None, "note": "fine"}, {"cup": Path("cup"), "note": "so-so"}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["w", "1"], "required: out"),
        (["w", "1", "--out", "p", "--strength", "odd"], "odd"),
        (["w", "1", "--out", "p", "--heat", "hot"], "heat"),
        (["w", "one", "--out", "p"], "one"),
        (["w", "1", "--out", "p", "--milk"], "milk"),
    ],
)
def test_words_that_do_not_fit(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        call_with_arguments(brew, words, "flarecps tea")
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_units_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call_with_arguments(brew, ["--help"], "flarecps tea")
    text = " ".join(capsys.readouterr().out.split())
    assert "--heat MM how high, 5% more is fine (default: 8.0)" in text
    assert "--strength {mild,strong}" in text
    assert "(default: no)" in text
    assert "(required)" in text


def test_ctrl_c_while_a_command_is_imported_is_no_other_error(tmp_path: Path) -> None:
    """NumPy and SciPy, for example, turn a KeyboardInterrupt within their imports into a RecursionError."""
    (tmp_path / "swallows.py").write_text(
        "import signal\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    raise RecursionError\n"
    )
    program = (
        "import sys\n"
        "from flarecps.cli import main\n"
        "main.COMMANDS['inspect'] = main.Command('swallows', 'main', 'help')\n"
        "sys.exit(main.main(['inspect']))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert found.stderr == "flarecps inspect: interrupted\n"
    assert found.returncode == 130


@pytest.mark.parametrize("name", [name for name in FOLDER_COMMANDS if name != "efficiency"])
def test_no_option_is_matched_by_its_beginning(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``--ou`` for ``--out`` would silently become another option when a second one begins like it."""
    for wrong in ("--quie", "--ou", "--hel"):
        with pytest.raises(SystemExit) as end:
            cli.main([name, "here", wrong, "x"])
        assert end.value.code == 2
        said = capsys.readouterr()
        assert said.err.startswith(f"flarecps {name}: no option {wrong}")
        assert said.err.count("\n") == 1
        assert not said.out


def test_a_misspelt_option_is_named_with_its_likeness(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["plan", "here", "--gpu-memroy", "3"])
    assert "no option --gpu-memroy; did you mean --gpu-memory?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["segment", "nowhere.ckpt", "scan", "out"],
        ["summary", "nowhere.ckpt"],
        ["report", "nowhere"],
        ["export", "nowhere.ckpt", "out", "--to", "onnx"],
        ["preprocess", "nowhere", "plan.json", "--out", "out"],
    ],
)
def test_a_wrong_path_is_answered_before_any_heavy_library(words: list[str]) -> None:
    program = (
        "import sys\nfrom flarecps.cli.main import main\ncode = main(sys.argv[1:])\n"
        f"sys.exit(code if not {HEAVY!r} & set(sys.modules) else 99)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1


def test_quiet_and_v_are_every_commands(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["phantom", str(tmp_path / "p"), "--labelled", "1", "--unlabelled", "0", "--test", "0"]) == 0
    assert all(capfd.readouterr()), "a bar on standard error, what was written on standard output"
    words = ["--labelled", "1", "--unlabelled", "0", "--test", "0", "--quiet"]
    assert cli.main(["phantom", str(tmp_path / "q"), *words]) == 0
    assert capfd.readouterr() == ("", "")
    assert cli.main(["inspect", "--quiet", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capfd.readouterr().err, "errors are still said"
    assert cli.main(["inspect", str(tmp_path / "nowhere"), "-v"]) == 2
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("name", DESIGN_ORDER)
def test_quiet_and_v_are_heard_and_explained(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        cli.main([name, "--help"])
    assert {"--quiet", "-v"} <= set(capsys.readouterr().out.split())

    def speak(name: str, words: list[str]) -> None:
        assert words == ["x"]
        print("quiet" * verbosity.is_quiet() + "verbose" * verbosity.is_verbose())

    monkeypatch.setattr(cli, "_run", speak)
    for option, said in (("--quiet", ""), ("-v", "verbose\n")):
        assert cli.main([name, option, "x"]) == cli.main([name, "x", option]) == 0
        assert capsys.readouterr().out == 2 * said


@pytest.mark.parametrize("name", [name for name in FOLDER_COMMANDS if name != "efficiency"])
def test_a_misspelt_choice_is_named_with_what_there_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every choice of every command: one more letter, and the option, all choices and the likeliest are said."""
    function = getattr(import_module(cli.COMMANDS[name].module), cli.COMMANDS[name].function)
    hints, parameters = get_type_hints(function), inspect.signature(function).parameters
    choices = {
        one: [str(value) for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal for value in get_args(kind)]
        for one, hint in hints.items()
    }
    for asked in (one for one, values in choices.items() if values):
        words = []
        for one, parameter in parameters.items():
            value = choices[one][0] if choices[one] else "x"
            option = f"--{one.rstrip('_').replace('_', '-')}"
            wrong = f"{choices[one][0]}x" if one == asked else value
            if parameter.kind is parameter.KEYWORD_ONLY and (parameter.default is parameter.empty or one == asked):
                words += [option, wrong]
            elif parameter.kind is not parameter.KEYWORD_ONLY and parameter.default is not parameter.empty:
                words += [wrong] if parameter.kind is parameter.POSITIONAL_ONLY else [option, wrong] * (one == asked)
            elif parameter.kind is not parameter.KEYWORD_ONLY:
                words.append(wrong)
        with pytest.raises(SystemExit, match="2"):
            cli.main([name, *words])
        said = capsys.readouterr().err
        assert all(choice in said for choice in choices[asked]), said
        likeliest = choices[asked][0]
        assert len(likeliest) == 1 or f"did you mean {likeliest}?" in said
        assert said.count("\n") == 1
        assert "typing" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "two"], "--workers two: expected a whole number"),
        (["--gpu-memory", "big"], "--gpu-memory big: expected a number"),
        (["--spacing", "thin"], '--spacing thin: expected a list such as "[1, 2, 3]"'),
        (["--dataset", "D"], "no option --dataset; did you mean DATASET?"),
    ],
)
def test_a_value_of_another_kind_is_said_plainly(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["plan", str(tmp_path), "--out", "x", *words])
    assert capsys.readouterr().err == f"flarecps plan: {said} (flarecps plan --help)\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flarecps seg", {"segment"}),
        ("flarecps plan --gpu", {"--gpu-memory"}),
        ("flarecps fit --data.fo", {"--data.fold", "--data.foreground_share"}),
        ("flarecps fit --config kbp", {"kbp_3d", "kbp_3d_supervised"}),
        ("flarecps postprocess --ru", {"--rules"}),
        ("flarecps segment sc", set()),
    ],
)
def test_bash_completes(line: str, expected: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    words = line.split()
    asked = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _flarecps; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", f"{script}{asked}"], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected
    assert not done.stderr


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["configs"]])
def test_a_reader_that_goes_is_no_error(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-m", "flarecps", *words], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (cli.PIPE_CLOSED, "")


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_that_wait_sleep_unless_the_environment_says_how(given: dict[str, str], policy: str) -> None:
    code = "import os; from flarecps.cli.main import main; main(['--version']); print(os.environ['OMP_WAIT_POLICY'])"
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env=own | given, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == policy


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        (
            "from flarecps.cli.main import _interrupted_twice\n"
            "with _interrupted_twice('preprocess'):\n"
            "    try:\n"
            "        print('here', flush=True)\n"
            "        time.sleep(600)\n"
            "    except KeyboardInterrupt:\n"
            "        os.kill(os.getpid(), signal.SIGINT)\n"
            "        time.sleep(600)\n",
            130,
            "flarecps preprocess: ended at once by a second signal (SIGINT)\n",
        ),
        (
            "import atexit\n"
            "from flarecps.cli.main import main\n"
            "atexit.register(lambda: (print('here', flush=True), time.sleep(600)))\n"
            "sys.argv[1:] = ['no-such-command']\n"
            "sys.exit(main())\n",
            2,
            "",
        ),
        (
            "import atexit\n"
            "from flarecps.cli.main import main\n"
            "end = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
            "atexit.register(lambda: (print('here', flush=True), end(), time.sleep(600)))\n"
            "sys.argv[1:] = ['no-such-command']\n"
            "sys.exit(main())\n",
            2,
            "",
        ),
    ],
    ids=["while the first is handled", "at the interpreter's end", "SIGTERM there"],
)
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signal to one process")
def test_ctrl_c_ends_also_what_is_ending(program: str, code: int, words: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", f"import os, signal, sys, time\n{program}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(patient(20)) == code
        said = process.stderr.read()
    assert said.endswith(words)
    assert "Traceback" not in said
