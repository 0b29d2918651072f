"""Finished answers: the same octets as composed ones, and gone when they cease to be true."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names
from appliance.dns.answer import MAX_TCP_OCTETS, compose, udp_limit
from appliance.dns.counts import Tally
from appliance.dns.lookup import Found, look_up
from appliance.dns.numbers import SOA
from appliance.dns.question import read_question
from appliance.dns.responder import Responder
from appliance.dns.table import Table
from appliance.dns.zone import Node, Zone, soa_minimum, soa_with
from tests.dns.asking import opt, outcome, query, question, valid_zone, zone, zone_lines
from tests.effort import examples

APEX = names.from_text("example.test")
ANSWER = bytes(12) + question("a.example.test") + b"the rest"
QUERY = query("a.example.test", flags=0)
END = len(QUERY)


def keep(kept: Table, sent: bytes, udp: bool, end: int, octets: bytes, needs: list[bytes]) -> None:
    kept.keep(sent, udp, end, octets, Found(touched=set(needs)), identity=b"", tally=Tally())


def answer(kept: Table, sent: bytes, udp: bool) -> bytes | None:
    found = kept.find(sent, udp)
    return found and found[0]


def test_id_and_case_are_taken_from_the_query() -> None:
    kept = Table()
    keep(kept, QUERY, True, END, ANSWER, [APEX])
    found = answer(kept, query("A.eXample.test", flags=0, ident=0xBEEF), True)
    assert found == b"\xbe\xef" + bytes(10) + question("A.eXample.test") + b"the rest"


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
    keep(kept, QUERY, True, END, ANSWER, [APEX])
    assert answer(kept, other, True) is None


def test_types_are_not_lower_cased() -> None:
    """Type 65 (HTTPS) is an upper-case A, type 97 a lower-case one."""
    kept = Table()
    sent = query("a.example.test", 65, flags=0)
    keep(kept, sent, True, END, ANSWER, [APEX])
    assert answer(kept, sent, True)
    assert answer(kept, query("a.example.test", 97, flags=0), True) is None


def test_transports_are_kept_apart() -> None:
    kept = Table()
    keep(kept, QUERY, True, END, ANSWER, [APEX])
    assert answer(kept, QUERY, False) is None


def test_what_is_not_kept() -> None:
    kept = Table()
    with_option = query("a.example.test", edns=opt(options=b"\0\x0a\0\x08abcdefgh"))
    keep(kept, with_option, True, END, ANSWER, [APEX])
    keep(kept, QUERY, False, END, ANSWER + bytes(2000), [APEX])
    zero_inside = query(b"\x03a\x00b\x07example\x04test\x00", flags=0)
    keep(kept, zero_inside, True, len(zero_inside), ANSWER, [APEX])
    assert len(kept) == 0


def test_drop_takes_what_depends_on_what_was_touched() -> None:
    kept = Table()
    other = names.from_text("other.test")
    keep(kept, QUERY, True, END, ANSWER, [APEX, other, APEX])
    keep(kept, query("b.example.test", flags=0), True, END, ANSWER, [APEX])
    kept.drop([other])
    assert (answer(kept, QUERY, True), len(kept)) == (None, 1)
    kept.drop([APEX, other])
    kept.drop([APEX])
    assert len(kept) == 0


def test_nothing_is_left_of_what_was_dropped() -> None:
    kept = Table()
    for number in range(20):
        sent = query(f"a{number:02}.example.test")
        keep(kept, sent, True, len(sent), ANSWER, [APEX, b"always"])
        kept.drop([APEX])
    assert (len(kept), kept._keys, kept._needs) == (0, {}, {})


def test_it_is_bounded() -> None:
    kept = Table(10)
    for number in range(95):
        sent = query(f"a{number:02}.example.test")
        keep(kept, sent, True, len(sent), ANSWER, [APEX])
        assert len(kept) <= 10
    assert sum(map(len, kept._keys.values())) <= 10
    assert len(kept._needs) <= 10


@settings(max_examples=examples(35), deadline=None)
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


BOTH = (names.from_text("example.test"), names.from_text("other.test"))


def numbered(zone: Zone, serial: int) -> dict[bytes, Node]:
    soa = soa_with(zone.soa, serial=serial, minimum=soa_minimum(zone.soa))
    return {zone.apex: {**zone.node(zone.apex), SOA: soa}}


@settings(max_examples=examples(60), deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_sequence_of_changes(choose: random.Random) -> None:
    """Two zones with aliases into each other, changed name by name (records, names, cuts, DNAMEs, the SOA,
    often nothing but the serial): every answer is what a fresh look-up says, and a serial costs no answer."""
    across = tuple(f"{name}{names.to_text(apex)}." for name in ("a.", "x.b.", "c.c.", "") for apex in BOTH)
    zones = {apex: valid_zone(zone_lines(choose, across), names.to_text(apex))[0] for apex in BOTH}
    served = Responder(zones.values())
    asked = []
    for _ in range(40):
        owner = choose.choice(("", "x.", "*.", "a.b.", "c.", "a.", "b.a.")) + names.to_text(
            choose.choice(list(choose.choice(list(zones.values())).rrsets))
        )
        asked.append(query(owner, choose.choice(("A", "A", "TXT", "NS", "SOA", "DS", "ANY")), edns=opt()))
    for round_ in range(6):
        for sent in asked:
            read = read_question(sent)
            found = look_up(zones, read.name, read.qtype)
            expected = compose(sent, read.end, found, read.edns, udp_limit(read.edns))
            assert outcome(served, sent) == expected
            assert outcome(served, sent) == expected
        apex = choose.choice(BOTH)
        before = zones[apex]
        nodes: dict[bytes, Node] = {}
        if choose.random() < 0.8:
            other, _text = valid_zone(zone_lines(choose, across), names.to_text(apex))
            pool = sorted(set(other.rrsets) | set(before.rrsets))
            nodes = {
                name: other.node(name) for name in choose.sample(pool, min(len(pool), choose.randint(1, 3)))
            }
            nodes.pop(apex, None)
        if choose.random() < 0.1:
            nodes[apex] = {**before.node(apex), SOA: soa_with(before.soa, serial=1, minimum=round_)}
        kept = len(served._table)
        zones[apex], touched = before.changed({**numbered(before, before.serial + 1), **nodes})
        served.replace(zones[apex], touched)
        assert nodes or len(served._table) == kept


def test_zone_lines_are_worth_asking_about() -> None:
    """The generator is only as good as the zones it makes."""
    choose = random.Random(1)
    zones = [valid_zone(zone_lines(choose), "example.test")[0] for _ in range(60)]
    assert sum(bool(made.cuts) for made in zones) > 10
    assert sum(bool(made.dnames) for made in zones) > 10
    assert sum(bool(made.empty) for made in zones) > 10
    assert zone("").empty == frozenset()
