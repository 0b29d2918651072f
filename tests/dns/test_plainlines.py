"""Whatever the plain lines are read by, a file means what the whole grammar says."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns.names import from_text
from appliance.dns.plainlines import PlainLines
from appliance.dns.zone import Zone
from appliance.dns.zonefile import ZoneFileError, read_zone
from tests.effort import examples

HEAD = "$TTL 300\n@ SOA ns1 h 1 7200 900 1209600 60\n@ NS ns1\nns1 A 192.0.2.1\n"
PLAIN = """\
www A 192.0.2.2
www 60 IN AAAA 2001:db8::1
    AAAA ::
    IN AAAA 1:2:3:4:5:6:7:8
    60 TXT "a b; (c)" "d"
    TXT bare words
@ MX 10 www
_sip._tcp SRV 0 5 5060 www.example.test.
@ CAA 0 issue "ca.example; policy=ev"
a.B.c CNAME Other.
4.3.2 PTR @
*.wild A 10.0.0.255\t
"""


def both(text: str) -> tuple[Zone | str, Zone | str]:
    def read() -> Zone | str:
        try:
            return read_zone(text, filename="z", apex=from_text("example.test"))
        except ZoneFileError as error:
            return str(error)

    with patch.object(PlainLines, "read", lambda self, at: None):
        whole = read()
    return read(), whole


@pytest.mark.parametrize("line", PLAIN.splitlines(keepends=True))
def test_these_lines_are_plain(line: str) -> None:
    plain = PlainLines(line)
    plain.set_origin(from_text("example.test"))
    found = plain.read(0)
    assert found is not None
    assert found.end == len(line)


def test_they_mean_the_same() -> None:
    fast, whole = both(HEAD + PLAIN)
    assert isinstance(fast, Zone)
    assert fast == whole


@pytest.mark.parametrize(
    "line",
    [
        "www A 192.0.2.256",
        "www A 192.0.2.01",
        "www A 192.0.2",
        "www A 192.0.2.1 x",
        "www A 192.0.2.1 ; remark",
        "www AAAA 1::2::3",
        "www AAAA 1:2:3:4:5:6:7",
        "www AAAA 1:2:3:4:5:6:7:8:9",
        "www AAAA ::192.0.2.1",
        "www AAAA 12345::",
        "www AAAA 1:2:3:4::5:6:7:8",
        "www AAAA :1:2:3:4:5:6:7",
        "www MX 65536 www",
        "www MX www",
        "www SRV 1 2 www",
        'www CAA 256 issue "x"',
        'www CAA 0 is-sue "x"',
        'www TXT "' + "x" * 256 + '"',
        'www TXT "a""b"',
        'www TXT "a',
        'www TXT "a\\"b"',
        "www TXT a\\010b",
        "www TXT (a",
        "www TXT ü",
        "www TXT a\x0bb",
        "www TXT a\x85b",
        "ü A 192.0.2.1",
        "w..w A 192.0.2.1",
        "a@b A 192.0.2.1",
        "@. A 192.0.2.1",
        ".a A 192.0.2.1",
        "x" * 64 + " A 192.0.2.1",
        ".".join(["x" * 60] * 5) + " A 192.0.2.1",
        "www CH A 192.0.2.1",
        "www IN 60 A 192.0.2.1",
        "www 60 60 A 192.0.2.1",
        "www 9999999999 A 192.0.2.1",
        "www a 192.0.2.1",
        "www TYPE1 \\# 4 0a000001",
        "www A",
        "www IN A",
        "www IN TXT",
        'www TXT 1 abc "hello world"',
        'www TXT 1 abc ""',
        'www TXT "a b" c',
        "www NS",
        "www ANY x",
        "www HTTPS 1 . alpn=h2\nwww2 HTTPS 1 . alpn=h2\n$ORIGIN x.example.test.\nwww HTTPS 1 y\nz HTTPS 1 y",
        "www A 192.0.2.1\n\n; remark\n   \n A 192.0.2.3\n$TTL 5\nb A 192.0.2.4\noops",
        "www A 192.0.2.1\nx TXT ( a\n b )\ny A 192.0.2.1\nbad A x",
        "$ORIGIN other.\na A 192.0.2.1",
    ],
)
def test_others_mean_what_the_whole_grammar_says(line: str) -> None:
    fast, whole = both(HEAD + line + "\nlast A 192.0.2.9\nbad A y\n")
    assert fast == whole
    for end in ("", "\n"):
        fast, whole = both(HEAD + line + end)
        assert fast == whole


TOKENS = st.sampled_from(
    ["@", "www", "a.b", "*", "x.", "60", "1h", "IN", "CH", "A", "AAAA", "TXT", "MX", "CAA", "SRV", "NS", "10"]
).flatmap(
    lambda token: st.sampled_from(
        [
            token,
            "192.0.2.1",
            "::1",
            "1:2::",
            '"t"',
            '"a b"',
            "0",
            "issue",
            "0 issue",
            "(",
            ")",
            ";",
            "\\065",
            "HTTPS",
            ".",
        ]
    )
)
LINES = st.lists(
    st.tuples(st.sampled_from(["", " ", "\t"]), st.lists(TOKENS, max_size=7), st.sampled_from([" ", "\t "])),
    max_size=6,
)


@settings(max_examples=examples(300), deadline=None)
@given(LINES, st.sampled_from(["\n", "\r\n"]))
def test_any_lines(lines: list[tuple[str, list[str], str]], newline: str) -> None:
    text = HEAD + "".join(first + between.join(tokens) + newline for first, tokens, between in lines)
    fast, whole = both(text)
    assert fast == whole
