"""How much is said: everything that matters, warnings and errors alone, or also what libraries say.

Kept in the environment, so that worker processes and the commands that a command starts hear of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout

VARIABLE = "FLARECPS_VERBOSITY"
QUIET, VERBOSE = "quiet", "verbose"
OPTIONS = {"--quiet": QUIET, "-v": VERBOSE}
EXPLAINED = {
    "--quiet": "say nothing but warnings and errors",
    "-v": "also show what libraries say, and the traceback of an error",
}


def is_quiet() -> bool:
    """Whether nothing but warnings and errors is said."""
    return os.environ.get(VARIABLE) == QUIET


def is_verbose() -> bool:
    """Whether libraries may speak, and errors show where they come from."""
    return os.environ.get(VARIABLE) == VERBOSE


def without_options(words: Sequence[str]) -> tuple[list[str], str | None]:
    """A command's words without ``--quiet`` and ``-v``, and the one of them that came last; ``--`` ends the search.

    >>> without_options(["plan", "--quiet", "D", "--", "-v"])
    (['plan', 'D', '--', '-v'], 'quiet')
    """
    own = list(words).index("--") if "--" in words else len(words)
    asked = [OPTIONS[word] for word in words[:own] if word in OPTIONS]
    return [word for word in words[:own] if word not in OPTIONS] + list(words[own:]), asked[-1] if asked else None


@contextmanager
def said(level: str | None) -> Iterator[None]:
    """While the block runs, this process and those it starts say as much as ``level``; None leaves it as it was."""
    before = os.environ.get(VARIABLE)
    if level is not None:
        os.environ[VARIABLE] = level
    try:
        with ExitStack() as stack:
            if is_quiet():
                stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
            yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before
