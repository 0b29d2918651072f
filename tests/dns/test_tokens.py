"""Tokens and their lines. (What is said of mistakes is in test_zonefile.)"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns.tokens import Tokens, Wrong, first_lower
from tests.effort import examples


def tokens(text: str) -> list[tuple[str, int]]:
    """Every token but the ends of lines, with its line."""
    read = Tokens(text)
    found = []
    while not (token := read.get()).is_eof():
        if not token.is_eol():
            found.append((token.value, read.line))
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b\nc\n", [("a", 1), ("b", 1), ("c", 2)]),
        ("\n\na", [("a", 3)]),
        ("a ; x\nb", [("a", 1), ("b", 2)]),
        ("a (\nb\n\nc) d\ne", [("a", 1), ("b", 2), ("c", 4), ("d", 4), ("e", 5)]),
        ("a ( ; x\n; y\nb ; z\n)\nc", [("a", 1), ("b", 3), ("c", 5)]),
        ('"a b" c\n"d"\ne', [("a b", 1), ("c", 1), ("d", 2), ("e", 3)]),
        ("a\r\nb\rc\n", [("a", 1), ("b", 2), ("c", 3)]),
        ("\ufeffa", [("a", 1)]),
    ],
)
def test_each_token_has_its_line(text: str, expected: list[tuple[str, int]]) -> None:
    assert tokens(text) == expected


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from((" ", " ;c", "\t")), st.booleans()), max_size=8))
def test_lines_are_counted_whatever_is_between(gaps: list[tuple[int, str, bool]]) -> None:
    text, line, expected = "", 1, []
    for number, (newlines, blank, inside) in enumerate(gaps):
        word = f"w{number}"
        gap = blank + "\n" * (newlines + (";" in blank))
        text += f"( {word}{gap} )\n" if inside else f"{word}{gap}\n"
        expected.append((word, line))
        line += gap.count("\n") + 1
    assert tokens(text) == expected


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a\nb )", 2, "without its"),
        ("a\n\nb (\nc\n", 5, "never closed"),
        ('a\n"b\nc', 2, "quote"),
        ("a\nb\\\nc", 2, "backslash"),
    ],
)
def test_where_reading_fails(text: str, line: int, what: str) -> None:
    read = Tokens(text)
    with pytest.raises(Wrong, match=what):
        while not read.get().is_eof():
            pass
    assert read.line == line


def test_after_a_mistake_reading_goes_on_in_the_next_line() -> None:
    read = Tokens('a "b\nc d e\nf (\ng )\n')
    read.get()
    with pytest.raises(Wrong):
        read.get()
    assert read.skip_line()
    assert (read.get().value, read.line) == ("c", 2)
    assert read.skip_line()
    assert (read.get().value, read.line) == ("f", 3)
    assert (read.get().value, read.line) == ("g", 4)
    assert not read.skip_line(), "inside parentheses"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Text is bad", "text is bad"), ("DNS names", "DNS names"), ("A label", "a label"), ("", "")],
)
def test_first_lower(text: str, expected: str) -> None:
    assert first_lower(text) == expected
