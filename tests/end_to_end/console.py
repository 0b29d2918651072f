"""The console blocks of a document, as steps that can be done and compared.

Hides the notation: in a ``console`` block `public# command` is typed on the machine `public`, `> ` goes on
with it, other lines are what it says; a ``text`` block repeats a part of what the last command said. In what
is said `…` stands for anything in a line and, alone on a line, for any lines; a gap is a gap, however wide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TYPED = re.compile(r"^([a-z]+)[#$] (.*)$")
_GOES_ON = "> "
_ANYTHING = "…"


@dataclass
class Typed:
    """A command, its machine, and what it says; `says` is empty where the document does not show it."""

    machine: str
    command: str
    says: str = ""


@dataclass(frozen=True)
class Repeated:
    """Lines that are among what the last command said."""

    lines: tuple[str, ...]


Step = Typed | Repeated


def sections(document: Path) -> dict[str, list[Step]]:
    """The steps below each `## ` heading, in order. AssertionError for a block of any other kind."""
    parts = re.split(r"^## (.*)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {
        heading: [step for language, text in _FENCE.findall(body) for step in _steps(language, text)]
        for heading, body in zip(["", *parts[1::2]], parts[::2], strict=True)
    }


def agrees(shown: str, said: str) -> bool:
    """Whether what was said is what the document shows."""
    pattern = "".join(_line(line) for line in shown.splitlines())
    text = "".join(" ".join(line.split()) + "\n" for line in said.splitlines())
    return re.fullmatch(pattern, text) is not None


def _line(shown: str) -> str:
    if shown.strip() == _ANYTHING:
        return r"(?:.*\n)*"
    return ".*".join(re.escape(part) for part in " ".join(shown.split()).split(_ANYTHING)) + r"\n"


def _steps(language: str, text: str) -> list[Step]:
    if language == "text":
        return [Repeated(tuple(text.splitlines()))]
    assert language == "console", f"a block of {language or 'no language'}"
    typed: list[Typed] = []
    for line in text.splitlines():
        if new := _TYPED.match(line):
            typed.append(Typed(new[1], new[2]))
        elif line.startswith(_GOES_ON) and not typed[-1].says:
            typed[-1].command += "\n" + line.removeprefix(_GOES_ON)
        else:
            typed[-1].says += line + "\n"
    return list(typed)
