from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.tunnel.lines import (
    MAX_LINE_OCTETS,
    LineReader,
    MessageError,
    Reader,
    Vocabulary,
    flag,
    hexadecimal,
    one_of,
    seconds,
    sentence,
    several,
    text,
    whole,
    word,
)
from tests.effort import examples
from tests.tunnel.cuts import CUTS, cut


@dataclass(frozen=True)
class Note:
    body: Annotated[str, text(MAX_LINE_OCTETS)]
    tags: Annotated[tuple[str, ...], several(word("[a-z]+"), 3)] = ()
    count: Annotated[int | None, whole(0, 9)] = None


NOTES: Vocabulary[Note] = Vocabulary({"note": Note})


def test_a_message_is_a_line() -> None:
    assert NOTES.encode(Note("é\n")) == b'{"type":"note","body":"\\u00e9\\n","tags":[]}\n'
    assert NOTES.encode(Note("", ("a", "b"), 3)) == b'{"type":"note","body":"","tags":["a","b"],"count":3}\n'


def test_what_is_missing_is_the_default_and_what_is_unknown_is_ignored() -> None:
    assert NOTES.decode(b'{"type":"note","body":"x","count":null,"colour":[{}]} \r') == Note("x")
    assert NOTES.decode(b'{"type":"sticker","body":7}') is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "no type"),
        (b'{"type":7}', "no type"),
        (b'{"type":["note"],"body":"x"}', "no type"),
        (b'{"type":"note"}', "note: body is missing"),
        (b'{"type":"note","body":7}', "note: body is not a text"),
        (b'{"type":"note","body":"\\ud800"}', "note: body is not a text"),
        (b'{"type":"note","body":"x","body":"y"}', "a key is given twice"),
        (b'{"type":"note","body":"x","count":NaN}', "NaN is not JSON"),
        (b'{"type":"note","body":"x","count":true}', "count is not an integer"),
        (b'{"type":"note","body":"x","count":1.0}', "count is not an integer"),
        (b'{"type":"note","body":"x","count":10}', "count is not an integer"),
        (b'{"type":"note","body":"x","count":1' + b"0" * 5000 + b"}", "not JSON"),
        (b'{"type":"note","body":"x","tags":"a"}', "tags is not a list"),
        (b'{"type":"note","body":"x","tags":["a","b","c","d"]}', "tags is not a list of at most 3"),
        (b'{"type":"note","body":"x","tags":["A"]}', "tags does not match"),
        (b"[" * 60000, "not JSON"),
        (b'{"type":"note","body":"x","deep":' + b'{"a":' * 12000, "not JSON"),
    ],
)
def test_what_is_not_a_message(line: bytes, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        NOTES.decode(line)


@pytest.mark.parametrize(
    ("reader", "good", "bad"),
    [
        (text(3), ["", "abc", "\n"], ["abcd", 1, None]),
        (hexadecimal(4), ["00ff"], ["00FF", "00f", "00fff", "00ff\n", 1]),
        (one_of("a", "b.c"), ["a", "b.c"], ["bxc", "", "a\n", True]),
        (word("[a-z]{1,3}"), ["abc"], ["", "ABC", "abcd"]),
        (whole(1, 3), [1, 3], [0, 4, True, 1.0, "1"]),
        (flag, [True, False], [0, 1, "true", []]),
        (seconds(0, 3), [0.0, 3.0, 1.5], [-1, 3.1, float("nan"), float("inf"), True, "1"]),
    ],
)
def test_readers(reader: Reader, good: list[object], bad: list[object]) -> None:
    for value in good:
        assert reader(value) == value
    for value in bad:
        with pytest.raises(MessageError):
            reader(value)


def test_a_sentence_is_made_fit_for_a_log() -> None:
    assert sentence(10)("no\x1b[31m\r\nway\ud800 at all") == "no?[31m??w"
    with pytest.raises(MessageError):
        sentence(10)(b"no")


def test_what_the_other_end_would_not_read_is_not_written() -> None:
    with pytest.raises(MessageError, match="count is not an integer"):
        NOTES.encode(Note("x", count=11))
    with pytest.raises(MessageError, match="too long"):
        NOTES.encode(Note("x" * (MAX_LINE_OCTETS - 20)))


def test_a_line_of_exactly_the_bound() -> None:
    empty = len(NOTES.encode(Note("")))
    line = NOTES.encode(Note("x" * (MAX_LINE_OCTETS - empty)))
    assert len(line) == MAX_LINE_OCTETS
    assert len(LineReader(NOTES).feed(line)) == 1
    for pieces in ([line[:-1] + b"x\n"], [line[:-1] + b"x", b"\n"], [line[:-1], b"x"]):
        reader = LineReader(NOTES)
        with pytest.raises(MessageError, match="longer than 65536"):
            for piece in pieces:
                reader.feed(piece)


def test_many_lines_at_once_may_be_longer_than_one() -> None:
    line = NOTES.encode(Note("x" * 1000))
    assert LineReader(NOTES).feed(line * 200) == [Note("x" * 1000)] * 200


def test_after_an_error_nothing_is_read_any_more() -> None:
    reader = LineReader(NOTES)
    with pytest.raises(MessageError, match="no type") as caught:
        reader.feed(NOTES.encode(Note("before")) + b"{}\n" + NOTES.encode(Note("after")))
    assert caught.value.messages_before == (Note("before"),)
    with pytest.raises(MessageError, match="no type") as caught:
        reader.feed(NOTES.encode(Note("later")))
    assert caught.value.messages_before == ()


def read_all(pieces: list[bytes]) -> tuple[list[Note], str | None]:
    reader, notes = LineReader(NOTES), []
    for piece in pieces:
        try:
            notes += reader.feed(piece)
        except MessageError as error:
            return [*notes, *error.messages_before], str(error)
    return notes, None


ANYTHING = st.one_of(
    st.builds(Note, st.text(max_size=20), st.just(()), st.none() | st.integers(0, 9)).map(
        lambda note: json.dumps({"type": "note", "body": note.body, "count": note.count}).encode() + b"\n"
    ),
    st.sampled_from(
        [b"{}\n", b'{"type":"other"}\n', b"\n", b'{"type":"note"'],
    ),
    st.binary(max_size=10),
)


@given(st.lists(ANYTHING, max_size=8).map(b"".join), CUTS)
@settings(max_examples=examples(200), deadline=None)
def test_any_cut_reads_the_same_and_anything_else_is_the_one_error(octets: bytes, places: list[int]) -> None:
    assert read_all(list(cut(octets, places))) == read_all([octets])
