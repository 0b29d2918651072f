from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.tunnel.names import BadHostName, covers, is_host, is_wildcard, normal, wildcards_over
from tests.effort import examples

HOSTS = st.from_regex(r"[a-z0-9_]{1,8}(\.[a-z_][a-z0-9_]{0,7}){1,3}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("www.example.org", "www.example.org"),
        ("WWW.Example.ORG.", "www.example.org"),
        ("*.Apps.example.org", "*.apps.example.org"),
        ("_acme-challenge.www.example.org", "_acme-challenge.www.example.org"),
        ("localhost", "localhost"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("10.example", "10.example"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
        (".".join(["a" * 61] * 4) + ".abcde", ".".join(["a" * 61] * 4) + ".abcde"),
        (".".join(["a" * 61] * 4) + ".abcde.", ".".join(["a" * 61] * 4) + ".abcde"),
    ],
)
def test_one_spelling(text: str, name: str) -> None:
    assert normal(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "a..b", ".a", "a.b..", "*", "*.", "*.*.a", "a.*.b", "w*.a", "-a.b", "a-.b", "a b.c",
        "a\x00.b", "10.5.0.5", "1.2.3", "1", "example.0x7f", "::1", "[::1]", "a:443", "bücher.example", "a/b",
        "a" * 64 + ".b",
        "\N{KELVIN SIGN}.example", ".".join(["a" * 61] * 4) + ".abcdef", "a." * 4000, "www.example.org\n",
    ],
)  # fmt: skip
def test_not_a_host_name(text: str) -> None:
    with pytest.raises(BadHostName):
        normal(text)


@pytest.mark.parametrize("text", ["-a.b", "a-.b", "-", "a.-", "_", "xn--.b", "-" * 63 + ".b"])
def test_a_visitor_may_ask_for_more_than_is_registered(text: str) -> None:
    assert is_host(text)


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "a.", "a..b", "A.b", "*.a", "1.2.3.4", "a.0x7f", "a.b\n", "\u0661.a", "a" * 64 + ".b",
        "a." * 126 + "ab",
    ],
)  # fmt: skip
def test_what_no_visitor_may_ask_for(text: str) -> None:
    assert not is_host(text)


@given(HOSTS)
@settings(max_examples=examples(100), deadline=None)
def test_what_is_registered_may_be_asked_for(host: str) -> None:
    assert is_host(normal(host))


@given(st.text(max_size=300))
@settings(max_examples=examples(100), deadline=None)
def test_any_text_is_a_normal_name_or_the_one_error(text: str) -> None:
    try:
        name = normal(text)
    except BadHostName:
        return
    assert normal(name) == name
    assert len(name) <= 253


@given(HOSTS)
@settings(max_examples=examples(100), deadline=None)
def test_the_wildcards_over_a_name_cover_it_and_never_the_name_of_their_own_parent(host: str) -> None:
    for wildcard in wildcards_over(host):
        assert is_wildcard(wildcard)
        assert normal(wildcard) == wildcard
        assert covers(wildcard, host)
        assert not covers(wildcard, wildcard.removeprefix("*."))


def test_the_closest_wildcard_comes_first() -> None:
    assert list(wildcards_over("www.apps.example.org")) == ["*.apps.example.org", "*.example.org", "*.org"]
    assert list(wildcards_over("*.apps.example.org")) == ["*.example.org", "*.org"]
    assert list(wildcards_over("localhost")) == []
