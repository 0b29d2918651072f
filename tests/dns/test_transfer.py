from __future__ import annotations

import random
import time
from functools import cache
from ipaddress import ip_network
from itertools import pairwise
from struct import Struct

import dns.exception
import dns.flags
import dns.rcode
import dns.rrset
import dns.tsig
import dns.xfr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names
from appliance.dns.journal import Journal, difference
from appliance.dns.numbers import AAAA, MX, SOA, TXT, A
from appliance.dns.overlay import lay
from appliance.dns.responder import Counted, Responder
from appliance.dns.serial import MODULUS
from appliance.dns.transfer import MAX_MESSAGE_OCTETS, Grant, Kind, Receiver, Transfer, TransferAsked
from appliance.dns.zone import RRset, Zone, soa_minimum, soa_with, zone_of
from tests.dns.asking import outcome, zone
from tests.dns.transferring import KEY, Asker, records_of
from tests.effort import examples

WALL = 1_800_000_000
APEX = names.from_text("example.test")


@pytest.fixture(autouse=True)
def at_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: float(WALL))  # dnspython asks nobody else


def _responder(zone: Zone, *grants: Grant) -> Responder:
    responder = Responder([zone])
    responder.keys = {KEY.name: KEY}
    responder.receivers = {KEY.name: Receiver(grants or (Grant(),))}
    return responder


def _asked(responder: Responder, query: bytes, *, udp: bool = False) -> TransferAsked:
    asked = outcome(responder, query, udp=udp)
    assert isinstance(asked, TransferAsked), asked
    return asked


def _transfer(zone: Zone, query: bytes, journal: Journal | None = None, *, udp: bool = False) -> Transfer:
    return Transfer(_asked(_responder(zone), query, udp=udp), zone, journal or Journal())


def _messages(transfer: Transfer) -> list[bytes]:
    found = []
    while (message := transfer.next_message(WALL)) is not None:
        found.append(message)
    return found


def _version(zone: Zone, serial: int) -> Zone:
    soa = soa_with(zone.soa, serial=serial, minimum=soa_minimum(zone.soa))
    return Zone(zone.apex, serial, {**zone.rrsets, zone.apex: {**zone.node(zone.apex), SOA: soa}})


def _journal(versions: list[Zone]) -> Journal:
    journal = Journal()
    for old, new in pairwise(versions):
        journal.add(difference(old, new))
    return journal


def _zone_of(seed: int, serial: int) -> Zone:
    """A zone with many types, rrsets of many records, and now and then a large one."""
    choose = random.Random(seed)
    base = _version(zone(""), serial)
    nodes = {name: dict(node) for name, node in base.rrsets.items()}
    for _ in range(choose.randint(0, 30)):
        label = choose.choice(("", "a.", "b.", "c.a.", "*.w.", f"N{choose.randint(1, 9)}."))
        name = names.from_text(f"{label}example.test")
        rtype = choose.choice((A, A, AAAA, TXT, MX, _UNKNOWN))
        count = choose.choice((1, 1, 2, choose.randint(1, 60)))
        rdatas = tuple(dict.fromkeys(_rdata(choose, rtype) for _ in range(count)))
        nodes.setdefault(name, {})[rtype] = RRset(name, rtype, choose.choice((60, 300)), rdatas)
    return Zone(APEX, serial, nodes)


_UNKNOWN = 65280


def _rdata(choose: random.Random, rtype: int) -> bytes:
    if rtype == MX:
        return choose.randbytes(2) + names.from_text(f"Mail{choose.randint(1, 9)}.b.example.test")
    if rtype == TXT:
        return b"".join(b"\xc8" + choose.randbytes(200) for _ in range(choose.choice((1, 1, 100))))
    return choose.randbytes({A: 4, AAAA: 16, _UNKNOWN: choose.randint(0, 9)}[rtype])


_SEEDS = st.integers(0, 1 << 30)


@settings(max_examples=examples(25), deadline=None)
@given(_SEEDS, st.booleans())
def test_dnspython_reads_an_axfr_as_the_zone(seed: int, with_edns: bool) -> None:
    served = _zone_of(seed, 7)
    asker = Asker()
    transfer = _transfer(served, asker.question(edns=0 if with_edns else -1))
    answers = _messages(transfer)
    assert transfer.kind is Kind.WHOLE
    assert asker.take(answers)
    assert asker.records == records_of(served)
    assert asker.serial == 7
    assert [message.opt is not None for message in asker.messages] == [
        with_edns,
        *(False for _ in answers[1:]),
    ]
    assert transfer.messages == len(answers)
    assert transfer.records == len(records_of(served)) + 1


@settings(max_examples=examples(25), deadline=None)
@given(st.lists(_SEEDS, min_size=2, max_size=6), st.data())
def test_an_ixfr_leads_from_any_version_to_the_newest(seeds: list[int], data: st.DataObject) -> None:
    versions = [_zone_of(seed, serial % MODULUS) for serial, seed in enumerate(seeds, MODULUS - 2)]
    newest = versions[-1]
    start = data.draw(st.sampled_from(versions))
    asker = Asker()
    assert asker.take(_copy(asker, start))
    transfer = _transfer(newest, asker.question(start.serial), _journal(versions))
    assert asker.take(_messages(transfer))
    assert asker.records == records_of(newest)
    assert (transfer.kind is Kind.UP_TO_DATE) == (start is newest)
    assert transfer.kind is not Kind.WHOLE


def _copy(asker: Asker, zone: Zone) -> list[bytes]:
    return _messages(_transfer(zone, asker.question()))


@cache
def _large_zone(records: int = 2000, serial: int = 7) -> Zone:
    """A zone with `records` names, an rrset of 1,000 records and a record of 50,000 octets."""
    rrsets = [_address(f"host-{number}.rack-{number % 40}", 1) for number in range(records)]
    rrsets.append(RRset(names.from_text("many.example.test"), A, 300, tuple(map(_U32.pack, range(1000)))))
    rrsets.append(RRset(names.from_text("giant.example.test"), TXT, 300, ((b"\xfa" + bytes(250)) * 200,)))
    return _version(zone_of(APEX, [*zone("").rrsets[APEX].values(), *rrsets]), serial)


_U32 = Struct("!I")


def _address(label: str, last: int) -> RRset:
    return RRset(names.from_text(f"{label}.example.test"), A, 300, (bytes((192, 0, 2, last)),))


def test_messages_are_bounded_and_compressed() -> None:
    served = _large_zone()
    asker = Asker()
    transfer = _transfer(served, asker.question())
    answers = _messages(transfer)
    assert asker.take(answers)
    assert asker.records == records_of(served)
    sizes = sorted(map(len, answers))
    assert sizes[-1] > 200 * 250, "one record of 50,000 octets"
    assert all(size <= MAX_MESSAGE_OCTETS for size in sizes[:-1])
    assert sum(size > MAX_MESSAGE_OCTETS - 4096 - 200 for size in sizes) >= len(sizes) - 4, "well filled"
    uncompressed = sum(len(name) + 10 + len(rdata) for name, _, _, rdata in records_of(served))
    assert sum(sizes) < 0.8 * uncompressed
    assert [len(message.question) for message in asker.messages] == [1] + [0] * (len(answers) - 1)


def test_every_message_is_signed_with_the_time_at_which_it_was_made() -> None:
    asker = Asker()
    transfer = _transfer(_large_zone(), asker.question())
    times = iter(range(WALL, WALL + 10_000, 10))
    answers = []
    while (message := transfer.next_message(next(times))) is not None:
        answers.append(message)
    asker.take(answers)
    assert [message.tsig[0].time_signed for message in asker.messages if message.tsig] == [
        WALL + 10 * number for number in range(len(answers))
    ]


def test_a_transfer_holds_the_version_that_it_began_with() -> None:
    """`next_message` is never asked for a zone again: replacing it changes nothing."""
    old, new = _large_zone(serial=7), _large_zone(100, serial=8)
    responder = _responder(old)
    asker = Asker()
    transfer = Transfer(_asked(responder, asker.question()), responder.zones[APEX], Journal())
    first = transfer.next_message(WALL)
    assert first is not None
    responder.replace(new)
    assert asker.take([first, *_messages(transfer)])
    assert asker.records == records_of(old)


@pytest.mark.parametrize("lost", ["the last", "the last but one", "the first", "a bit"])
def test_a_cut_or_changed_transfer_is_never_taken_for_a_whole_one(lost: str) -> None:
    asker = Asker()
    answers = _copy(asker, _large_zone())
    assert len(answers) > 4
    if lost == "the last":
        assert not asker.take(answers[:-1])
        return
    damaged = {
        "the last but one": [*answers[:-2], answers[-1]],
        "the first": answers[1:],
        "a bit": [answers[0], answers[1][:-1000] + b"\xff" + answers[1][-999:], *answers[2:]],
    }[lost]
    with pytest.raises((dns.exception.DNSException, dns.tsig.BadSignature)):
        asker.take(damaged)


def test_what_is_up_to_date_or_ahead_gets_one_soa() -> None:
    served = _version(zone("a A 192.0.2.1\n"), 7)
    for serial in (7, 8, 7 + (1 << 31) - 1):
        asker = Asker()
        transfer = _transfer(served, asker.question(serial))
        assert transfer.kind is Kind.UP_TO_DATE
        (only,) = _messages(transfer)
        answer = asker.read(only).answer
        assert [str(rrset[0]).split()[2] for rrset in answer] == ["7"]


def test_a_serial_that_is_not_in_the_journal_gets_the_whole_zone() -> None:
    versions = [_version(zone(f"a A 192.0.2.{serial}\n" + _PADDING), serial) for serial in range(3, 8)]
    journal = _journal(versions)
    for serial, kind in ((2, Kind.WHOLE_INSTEAD), (3, Kind.CHANGES), (7 + (1 << 31), Kind.WHOLE_INSTEAD)):
        asker = Asker()
        transfer = _transfer(versions[-1], asker.question(serial % MODULUS), journal)
        assert transfer.kind is kind
        if kind is Kind.WHOLE_INSTEAD:
            asker.take(_messages(transfer))
            assert asker.records == records_of(versions[-1])
    behind = Transfer(_asked(_responder(versions[3]), Asker().question(4)), versions[3], journal)
    assert behind.kind is Kind.WHOLE_INSTEAD, "the journal leads to another version than this"


_PADDING = "".join(f"p{number} A 192.0.2.1\n" for number in range(60))


@pytest.mark.parametrize("names_of_zone", [100, 6000])
def test_a_difference_larger_than_half_of_the_zone_is_not_sent(names_of_zone: int) -> None:
    apex = zone("").rrsets[APEX].values()

    def version(serial: int, changed: float) -> Zone:
        last = changed * names_of_zone
        hosts = [_address(f"n{number}", 1 + (number < last)) for number in range(names_of_zone)]
        return _version(zone_of(APEX, [*apex, *hosts]), serial)

    for share, kind in ((0.1, Kind.CHANGES), (0.2, Kind.CHANGES), (0.3, Kind.WHOLE_INSTEAD)):
        versions = [version(1, 0), version(2, share)]  # each change is a record removed and one added
        assert _transfer(versions[1], Asker().question(1), _journal(versions)).kind is kind


def test_live_records_are_in_the_transfer() -> None:
    static = zone("a A 192.0.2.1\n")
    live_name = names.from_text("live.example.test")
    text = b"\x1cr=superprotocol;ip=192.0.2.9"
    live = {(live_name, TXT): RRset(live_name, TXT, 15, (text,))}
    before, _ = lay(static, {}, 8)
    after, _ = lay(static, live, 16)
    asker = Asker()
    asker.take(_copy(asker, before))
    padded = [before, after]
    transfer = _transfer(after, asker.question(8), _journal(padded))
    asker.take(_messages(transfer))
    assert (live_name, int(TXT), 15, text) in asker.records
    assert asker.records == records_of(after)


# Over UDP


def test_over_udp_what_fits_is_sent_and_else_the_soa() -> None:
    padded = zone("".join(f"p{number} A 192.0.2.1\n" for number in range(200)))
    changing = [_address("a", serial) for serial in range(100)]
    versions = [
        _version(Zone(APEX, 1, {**padded.rrsets, one.name: {A: one}}), serial)
        for serial, one in enumerate(changing)
    ]
    journal = _journal(versions)
    newest = versions[-1]
    for serial, edns, fits in (
        (98, -1, True),
        (90, -1, False),
        (94, 0, True),
        (60, 0, False),
        (2, 0, False),
        (99, -1, True),
    ):
        asker = Asker()
        if serial != 99:
            asker.take(_copy(asker, versions[serial]))
        transfer = _transfer(newest, asker.question(serial, edns=edns), journal, udp=True)
        octets = transfer.datagram(WALL)
        assert len(octets) <= (512 if edns < 0 else 1232)
        if fits and serial != 99:
            assert asker.take([octets], is_udp=True)
            assert asker.records == records_of(newest)
        else:
            assert asker.read(octets).answer[0][0].serial == 99
            assert len(asker.read(octets).answer) == 1
            assert transfer.records == 1
    small = _version(zone(""), 9)
    asker = Asker()
    octets = _transfer(small, asker.question(1), udp=True).datagram(WALL)
    assert len(asker.read(octets).answer) > 1, "a small zone fits whole"


def test_over_udp_an_soa_that_does_not_fit_is_truncated() -> None:
    long, m, r = (".".join([letter * 60] * 3) for letter in "xmr")
    served = zone("", apex=f"{long}.test", head=f"$TTL 300\n@ SOA {m}. {r}. 7 1 1 1 1\n@ NS ns.else.\n")
    asker = Asker(f"{long}.test")
    responder = _responder(served)
    query = asker.question(1)
    octets = Transfer(_asked(responder, query, udp=True), served, Journal()).datagram(WALL)
    assert octets[2] & 0x02
    assert octets[6:8] == b"\x00\x00"


# Who may have it


def _rcode(answer: object) -> str:
    assert isinstance(answer, bytes), answer
    return dns.rcode.to_text(dns.rcode.from_flags(int.from_bytes(answer[2:4], "big"), 0))


def test_without_a_signature_it_is_refused() -> None:
    served = _version(zone("a A 192.0.2.1\n"), 7)
    responder = _responder(served)
    for query in (Asker(key=None).question(), Asker(key=None).question(3)):
        assert _rcode(outcome(responder, query, udp=False)) == "REFUSED"
    assert _rcode(outcome(responder, Asker(key=None).question(3), udp=True)) == "REFUSED"
    assert responder.counters[Counted.TRANSFER_REFUSED] == 3


def test_a_wrong_key_and_an_old_time() -> None:
    served = _version(zone("a A 192.0.2.1\n"), 7)
    responder = _responder(served)
    unknown = Asker(key=dns.tsig.Key("other", bytes(32), "hmac-sha256"))
    wrong = Asker(key=dns.tsig.Key("transfer", bytes(32), "hmac-sha256"))
    for asker, error in ((unknown, b"\x00\x11"), (wrong, b"\x00\x10")):
        answer = outcome(responder, asker.question(), udp=False)
        assert _rcode(answer) == "NOTAUTH"
        assert isinstance(answer, bytes)
        assert answer[-4:-2] == error
    old = Asker().question()
    answer = outcome(responder, old, udp=False, wall=WALL + 301.0)
    assert _rcode(answer) == "NOTAUTH"
    assert isinstance(answer, bytes)
    assert answer[-10:-8] == b"\x00\x12"
    assert responder.counters[Counted.BAD_SIGNATURE] == 3


def test_the_grants_bound_zones_and_addresses() -> None:
    served = _version(zone("a A 192.0.2.1\n"), 7)
    here, there = (ip_network("192.0.2.0/24"),), (ip_network("198.51.100.1"), ip_network("2001:db8::/32"))
    for grant, source, rcode in (
        (Grant(), "192.0.2.1", None),
        (Grant(None, here), "192.0.2.1", None),
        (Grant(None, there), "192.0.2.1", "REFUSED"),
        (Grant(None, there), "2001:db8::9", None),
        (Grant(frozenset((APEX,))), "192.0.2.1", None),
        (Grant(frozenset((names.from_text("other.test"),))), "192.0.2.1", "REFUSED"),
    ):
        asker = Asker()
        found = outcome(_responder(served, grant), asker.question(), udp=False, source=source)
        if rcode is None:
            assert isinstance(found, TransferAsked)
        else:
            assert _rcode(found) == rcode
            assert isinstance(found, bytes)
            assert asker.read(found).had_tsig, "a refusal to who is known is signed"
    both = _responder(served, Grant(None, there), Grant(None, here))
    assert isinstance(outcome(both, Asker().question(), udp=False), TransferAsked), "grants add up"
    responder = _responder(served)
    responder.receivers = {}
    assert _rcode(outcome(responder, Asker().question(), udp=False)) == "REFUSED"
    assert _rcode(outcome(_responder(served), Asker("a.example.test").question(), udp=False)) == "NOTAUTH"
    assert _rcode(outcome(_responder(served), Asker().question(), udp=True)) == "NOTIMP"


def test_a_malformed_ixfr_is_a_formerr() -> None:
    served = _version(zone("a A 192.0.2.1\n"), 7)
    for owner, rtype, rdata in (
        ("other.test", "SOA", ". . 1 0 0 0 0"),
        ("example.test", "A", "192.0.2.1"),
        ("example.test", "TYPE6", r"\# 22 " + "00" * 21 + "01"),
    ):
        asker = Asker()
        asker.question(3)
        query = asker._query
        query.authority = [dns.rrset.from_text(f"{owner}.", 0, "IN", rtype, rdata)]
        wire = query.to_wire()
        found = outcome(_responder(served), wire, udp=False)
        if rtype == "TYPE6":
            assert isinstance(found, TransferAsked)
        else:
            assert _rcode(found) == "FORMERR"


def test_signed_queries_of_other_types_get_signed_answers() -> None:
    """Secondaries ask for the SOA with the same key."""
    served = zone("large TXT " + " ".join(f'"{number:0101}"' for number in range(11)))
    responder = _responder(served)
    for _ in range(2):
        asker = Asker()
        read = asker.read(_answer(responder, asker.question(rtype="SOA")))
        assert read.answer[0][0].serial == served.serial
        assert read.had_tsig
    assert responder.counters[Counted.COMPOSED] == 2, "never from the table"
    asker = Asker("large.example.test")
    read = asker.read(_answer(responder, asker.question(rtype="TXT", edns=0)))
    assert read.flags & dns.flags.TC, "the signature counts"
    assert read.had_tsig
    read = asker.read(_answer(responder, asker.question(rtype="TXT", edns=0), udp=False))
    assert len(read.answer) == 1
    asker = Asker("elsewhere.test")
    refused = asker.read(_answer(responder, asker.question(rtype="A")))
    assert refused.rcode() == dns.rcode.REFUSED
    assert refused.had_tsig


def _answer(responder: Responder, query: bytes, *, udp: bool = True) -> bytes:
    answer = outcome(responder, query, udp=udp)
    assert isinstance(answer, bytes), answer
    assert len(answer) <= (1232 if udp else 65535)
    return answer


def test_a_refusal_when_it_is_too_late() -> None:
    asker = Asker()
    asked = _asked(_responder(_version(zone(""), 7)), asker.question())
    answer = asker.read(asked.refusal(2, WALL))
    assert answer.rcode() == dns.rcode.SERVFAIL
    assert answer.question[0].name.to_text() == "example.test."


def test_making_a_message_is_a_small_step() -> None:
    served = _large_zone(5000)
    transfer = _transfer(served, Asker().question())
    records = []
    before = 0
    while transfer.next_message(WALL) is not None:
        records.append(transfer.records - before)
        before = transfer.records
    assert max(records) < 1300
