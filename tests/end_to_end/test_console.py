"""A tutorial that shows something else than what is said must not pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.console import Repeated, Typed, agrees, sections

DOCUMENT = """\
# Title

## One

```console
here# first <<'END'
> more
> END
there$ second
said
…
```

and of that

```text
a part
```

## Two
"""


def test_steps_by_section(tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text(DOCUMENT)
    assert sections(document) == {
        "": [],
        "One": [
            Typed("here", "first <<'END'\nmore\nEND"),
            Typed("there", "second", "said\n…\n"),
            Repeated(("a part",)),
        ],
        "Two": [],
    }


def test_a_block_that_is_not_replayed_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text("```sh\nrm\n```\n")
    with pytest.raises(AssertionError, match="a block of sh"):
        sections(document)


@pytest.mark.parametrize(
    ("shown", "said", "is_so"),
    [
        ("a  b\n", "a b\n", True),
        ("a b", "  a\tb\n", True),
        ("a b", "a c\n", False),
        ("a.b", "axb\n", False),
        ("a … c", "a b b c\n", True),
        ("a … c", "a\nc\n", False),
        ("a", "a\nb\n", False),
        ("a\n…", "a\nb\nc\n", True),
        ("…\nb\n…", "b\n", True),
        ("…\nb\n…", "a\nbb\n", False),
    ],
)
def test_what_agrees(shown: str, said: str, is_so: bool) -> None:
    assert agrees(shown, said) is is_so
