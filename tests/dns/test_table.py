"""Finished answers: the same octets as composed ones, and gone when they cease to be true."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names, table
from appliance.dns.answer import MAX_TCP_OCTETS, compose, udp_limit
from appliance.dns.lookup import look_up
from appliance.dns.question import read_question
from appliance.dns.responder import Responder
from appliance.dns.table import Table
from tests.dns.asking import opt, outcome, query, question, valid_zone, zone, zone_lines

APEX = names.from_text("example.test")
ANSWER = bytes(12) + question("a.example.test") + b"the rest"
QUERY = query("a.example.test", flags=0)
END = len(QUERY)


def test_id_and_case_are_taken_from_the_query() -> None:
    kept = Table()
    kept.keep(QUERY, True, END, ANSWER, [APEX])
    answer = kept.answer(query("A.eXample.test", flags=0, ident=0xBEEF), True)
    assert answer == b"\xbe\xef" + bytes(10) + question("A.eXample.test") + b"the rest"


@pytest.mark.parametrize(
    "other",
    [
        query("a.example.test", flags=0x0100),
        query("a.example.test", "AAAA", flags=0),
        query("a.example.test", qclass=3, flags=0),
        query("b.example.test", flags=0),
        query("a.example.test", flags=0, edns=opt()),
        QUERY + b"x",
        QUERY[:-1],
        QUERY[:12],
        b"",
    ],
)
def test_anything_else_is_another_query(other: bytes) -> None:
    kept = Table()
    kept.keep(QUERY, True, END, ANSWER, [APEX])
    assert kept.answer(other, True) is None


def test_types_are_not_lower_cased() -> None:
    """Type 65 (HTTPS) is an upper-case A, type 97 a lower-case one."""
    kept = Table()
    sent = query("a.example.test", 65, flags=0)
    kept.keep(sent, True, END, ANSWER, [APEX])
    assert kept.answer(sent, True)
    assert kept.answer(query("a.example.test", 97, flags=0), True) is None


def test_transports_are_kept_apart() -> None:
    kept = Table()
    kept.keep(QUERY, True, END, ANSWER, [APEX])
    assert kept.answer(QUERY, False) is None


def test_what_is_not_kept() -> None:
    kept = Table()
    with_option = query("a.example.test", edns=opt(options=b"\0\x0a\0\x08abcdefgh"))
    kept.keep(with_option, True, END, ANSWER, [APEX])
    kept.keep(QUERY, False, END, ANSWER + bytes(2000), [APEX])
    zero_inside = query(b"\x03a\x00b\x07example\x04test\x00", flags=0)
    kept.keep(zero_inside, True, len(zero_inside), ANSWER, [APEX])
    assert len(kept) == 0


def test_drop_takes_what_depends_on_a_zone() -> None:
    kept = Table()
    other = names.from_text("other.test")
    kept.keep(QUERY, True, END, ANSWER, [APEX, other, APEX])
    kept.keep(query("b.example.test", flags=0), True, END, ANSWER, [APEX])
    kept.drop(other)
    assert (kept.answer(QUERY, True), len(kept)) == (None, 1)
    kept.drop(APEX)
    kept.drop(APEX)
    assert len(kept) == 0


def test_nothing_is_left_of_what_was_dropped() -> None:
    """A zone that never changes must not gather the keys of answers that it shared with one that does."""
    kept = Table()
    steady = names.from_text("steady.test")
    for number in range(20):
        sent = query(f"a{number:02}.example.test")
        kept.keep(sent, True, len(sent), ANSWER, [APEX, steady])
        kept.drop(APEX)
    assert (len(kept), kept._keys, kept._shared) == (0, {steady: {}}, {})


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_ENTRIES", 10)
    kept = Table()
    for number in range(95):
        sent = query(f"a{number:02}.example.test")
        kept.keep(sent, True, len(sent), ANSWER, [APEX])
        assert len(kept) <= 10
    assert sum(map(len, kept._keys.values())) <= 10


@settings(max_examples=35, deadline=None)
@given(st.randoms(use_true_random=False))
def test_what_it_answers_is_what_look_up_says(choose: random.Random) -> None:
    """Any zone, changed while it is asked; every question twice and in any case; with every kind of EDNS."""
    served = Responder()
    for _ in range(3):
        version, _text = valid_zone(zone_lines(choose), "example.test")
        served.replace(version)
        pool = [names.to_text(name) for name in version.rrsets]
        for _ in range(12):
            name = choose.choice(("", "x.", "*.", "a.b.")) + choose.choice(pool)
            name = "".join(choose.choice((char, char.upper())) for char in name)
            sent = query(
                name,
                choose.choice(("A", "TXT", "CNAME", "NS", "DS", "ANY", 65)),
                flags=choose.choice((0, 0x100)),
                ident=choose.randrange(65536),
                edns=choose.choice((b"", opt(), opt(512), opt(flags=0x8000), opt(options=b"\0\x0a\0\0"))),
            )
            udp = choose.random() < 0.8
            asked = read_question(sent)
            expected = compose(
                sent,
                asked.end,
                look_up({version.apex: version}, asked.name, asked.qtype),
                asked.edns,
                udp_limit(asked.edns) if udp else MAX_TCP_OCTETS,
            )
            assert outcome(served, sent, udp=udp) == expected
            assert outcome(served, sent, udp=udp) == expected


def test_zone_lines_are_worth_asking_about() -> None:
    """The generator is only as good as the zones it makes."""
    choose = random.Random(1)
    zones = [valid_zone(zone_lines(choose), "example.test")[0] for _ in range(60)]
    assert sum(bool(made.cuts) for made in zones) > 10
    assert sum(bool(made.dnames) for made in zones) > 10
    assert sum(bool(made.empty) for made in zones) > 10
    assert zone("").empty == frozenset()
