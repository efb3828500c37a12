"""For the site: docstrings are plain English with ``code`` and doctests, and become Markdown that shows as it reads."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"(?:^[ ]*>>> .*\n?)(?:^[ ]*\S.*\n?)*", re.MULTILINE)
CODE = re.compile(r"(``.*?``)", re.DOTALL)


class PlainDocstrings(Extension):
    """Fences doctests, and takes Markdown's meaning from stars and brackets outside of code."""

    def on_instance(self, *, obj: Object, **others: Any) -> None:
        if obj.docstring is not None:
            parts = re.split(f"({EXAMPLE.pattern})", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = "".join(map(_shown, parts))


def _shown(part: str) -> str:
    if part.lstrip().startswith(">>> "):
        lines = "\n".join(line.lstrip() if line.lstrip().startswith(">>>") else line for line in part.splitlines())
        return f"\n```pycon\n{lines}\n```\n"
    return "".join(one if one.startswith("``") else re.sub(r"([*\[\]])", r"\\\1", one) for one in CODE.split(part))
