"""Names in wire form, from text and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns.names import (
    BadName,
    end_of,
    from_labels,
    from_text,
    is_at_or_below,
    is_wildcard,
    labels,
    parent,
    to_text,
    wildcard_of,
)
from tests.effort import examples

LABELS = st.lists(st.binary(min_size=1, max_size=20).map(bytes.lower), max_size=8).map(tuple)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("www.demo.test", b"\x03www\x04demo\x04test\x00"),
        ("WWW.Demo.TEST.", b"\x03www\x04demo\x04test\x00"),
        (".", b"\x00"),
        ("*.a", b"\x01*\x01a\x00"),
        (r"a\.b", b"\x03a.b\x00"),
        (r"a\032\255", b"\x03a \xff\x00"),
        (r"a\\", b"\x02a\\\x00"),
        (r"a\..", b"\x02a.\x00"),
        ("a" * 63, b"\x3f" + b"a" * 63 + b"\x00"),
        ("_acme-challenge.x", b"\x0f_acme-challenge\x01x\x00"),
    ],
)
def test_from_text(text: str, name: bytes) -> None:
    assert from_text(text) == name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("a..b", "empty label"),
        (".a", "empty label"),
        ("a" * 64, "longer than 63"),
        (".".join(["a" * 63] * 4), "longer than 255"),
        ("bücher.example", "write 'xn--bcher-kva.example'"),
        ("\ud800", "xn--"),
        ("a\\", "backslash"),
        (r"a\25", "escape"),
        (r"a\256", "escape"),
    ],
)
def test_what_is_no_name_is_told_why(text: str, why: str) -> None:
    with pytest.raises(BadName, match=why):
        from_text(text)


@given(LABELS)
@settings(max_examples=examples(100), deadline=None)
def test_text_reads_back(parts: tuple[bytes, ...]) -> None:
    name = from_labels(parts)
    assert labels(name) == parts
    assert from_text(to_text(name)) == name
    assert end_of(b"xx" + name + b"yy", 2) == len(name) + 2


@given(st.text(max_size=30))
@settings(max_examples=examples(100), deadline=None)
def test_text_makes_a_name_or_bad_name(text: str) -> None:
    try:
        name = from_text(text)
    except BadName:
        return
    assert from_text(to_text(name)) == name


def test_parents_and_wildcards() -> None:
    name = from_text("a.b.test")
    assert parent(name) == from_text("b.test")
    assert parent(from_text("test")) == b"\x00"
    assert wildcard_of(from_text("b.test")) == from_text("*.b.test")
    assert is_wildcard(from_text("*.b.test"))
    assert not is_wildcard(from_text("**.b.test"))
    with pytest.raises(ValueError, match="no parent"):
        parent(b"\x00")


@pytest.mark.parametrize(
    ("name", "apex", "below"),
    [
        ("a.demo.test", "demo.test", True),
        ("demo.test", "demo.test", True),
        ("demo.test", "a.demo.test", False),
        ("xdemo.test", "demo.test", False),
        ("demo.test", ".", True),
        ("other.test", "demo.test", False),
    ],
)
def test_is_at_or_below(name: str, apex: str, below: bool) -> None:
    assert is_at_or_below(from_text(name), from_text(apex)) is below


def test_octets_that_agree_inside_a_label_are_not_an_ancestor() -> None:
    assert not is_at_or_below(b"\x07x\x04demo\x00", b"\x04demo\x00")
