from __future__ import annotations

import time

import dns.message
import dns.opcode
import dns.rcode
import pytest

from appliance.dns import names
from appliance.dns.notify import (
    APART_SECONDS,
    REPEAT_SECONDS,
    Noticed,
    NoticeGivenUp,
    NoticeRefused,
    Notices,
    Secondary,
    ToSend,
)
from appliance.dns.zone import RRset
from tests.dns.asking import zone
from tests.dns.transferring import KEY, THEIRS

WALL = 1_800_000_000
APEX = names.from_text("example.test")
ONE = Secondary("192.0.2.1", 53, None)
SIGNED = Secondary("192.0.2.2", 5300, KEY)
KEYRING = {THEIRS.name: THEIRS}


@pytest.fixture(autouse=True)
def at_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: float(WALL))  # dnspython asks nobody else


def _soa(serial: int) -> RRset:
    return zone("", head=f"$TTL 300\n@ SOA ns1 hostmaster {serial} 1 1 1 1\n@ NS ns.elsewhere.\n").soa


def _notices(*secondaries: Secondary) -> Notices:
    numbers = iter(range(1000, 2000))
    return Notices(secondaries, lambda: next(numbers))


def _sent(notices: Notices, now: float) -> list[ToSend]:
    to_send, events = notices.tick(now, WALL)
    assert not events
    return to_send


def _answer(sent: ToSend, rcode: int = 0) -> bytes:
    query = dns.message.from_wire(sent.octets, keyring=KEYRING)
    answer = dns.message.make_response(query)
    answer.set_rcode(dns.rcode.Rcode(rcode))
    return answer.to_wire()


def test_the_message_is_one_of_rfc_1996() -> None:
    notices = _notices(ONE, SIGNED)
    notices.published(_soa(7), 0.0)
    plain, signed = _sent(notices, 0.0)
    assert (plain.secondary, signed.secondary) == (ONE, SIGNED)
    for sent in (plain, signed):
        read = dns.message.from_wire(sent.octets, keyring=KEYRING)
        assert read.opcode() == dns.opcode.NOTIFY
        assert read.flags & 0x0400
        assert read.question[0].to_text() == "example.test. IN SOA"
        assert read.answer[0][0].serial == 7
        assert read.had_tsig == (sent is signed)


def test_an_answer_ends_it() -> None:
    notices = _notices(ONE, SIGNED)
    notices.published(_soa(7), 0.0)
    for sent in _sent(notices, 0.0):
        secondary = sent.secondary
        event = notices.received(_answer(sent), secondary.host, secondary.port, WALL)
        assert event == Noticed(secondary, APEX, 7)
        assert notices.received(_answer(sent), secondary.host, secondary.port, WALL) is None, "once"
    assert notices.next_deadline() is None
    assert notices.told() == [(ONE, APEX, 7), (SIGNED, APEX, 7)]


def test_it_is_repeated_and_given_up() -> None:
    notices = _notices(SIGNED)
    notices.published(_soa(7), 0.0)
    now, octets = 0.0, set()
    for seconds in REPEAT_SECONDS:
        assert notices.next_deadline() == now
        assert not _sent(notices, now - 0.1)
        (sent,) = _sent(notices, now)
        octets.add(sent.octets)
        now += seconds
    assert len(octets) == 1, "any of the answers fits"
    assert notices.tick(now, WALL) == ([], [NoticeGivenUp(SIGNED, APEX, 7)])
    assert notices.next_deadline() is None
    notices.published(_soa(8), now)
    assert len(_sent(notices, now)) == 1


def test_quick_changes_are_told_together() -> None:
    notices = _notices(ONE)
    notices.published(_soa(1), 0.0)
    (first,) = _sent(notices, 0.0)
    for serial in range(2, 50):
        notices.published(_soa(serial), serial / 100)
        assert not _sent(notices, serial / 100)
    assert notices.received(_answer(first), ONE.host, ONE.port, WALL) is None, "of an old version"
    assert notices.next_deadline() == APART_SECONDS
    (second,) = _sent(notices, APART_SECONDS)
    assert dns.message.from_wire(second.octets).answer[0][0].serial == 49
    notices.published(_soa(50), 10.0)
    assert len(_sent(notices, 10.0)) == 1, "after a pause at once"


def test_a_refusal_ends_it_if_it_is_signed_like_the_question() -> None:
    notices = _notices(ONE, SIGNED)
    notices.published(_soa(7), 0.0)
    plain, signed = _sent(notices, 0.0)
    event = notices.received(_answer(plain, 5), ONE.host, ONE.port, WALL)
    assert event == NoticeRefused(ONE, APEX, "the answer is rcode 5")
    forged = dns.message.make_response(dns.message.from_wire(plain.octets))
    octets = signed.octets[:2] + forged.to_wire()[2:]
    event = notices.received(octets, SIGNED.host, SIGNED.port, WALL)
    assert isinstance(event, NoticeRefused)
    assert "not signed" in event.what
    assert notices.next_deadline() == REPEAT_SECONDS[0], "it is repeated"
    assert notices.received(_answer(signed, 9), SIGNED.host, SIGNED.port, WALL) == NoticeRefused(
        SIGNED, APEX, "the answer is rcode 9"
    )
    assert notices.next_deadline() is None


def test_what_is_no_answer() -> None:
    notices = _notices(ONE)
    notices.published(_soa(7), 0.0)
    (sent,) = _sent(notices, 0.0)
    good = _answer(sent)
    for octets, host, port in (
        (good, "192.0.2.9", 53),
        (good, ONE.host, 54),
        (b"\x00\x00" + good[2:], ONE.host, 53),
        (sent.octets, ONE.host, 53),
        (good[:11], ONE.host, 53),
        (good[:13], ONE.host, 53),
        (b"", ONE.host, 53),
        (good.replace(b"example", b"elpmaxe"), ONE.host, 53),
    ):
        assert notices.received(octets, host, port, WALL) is None
    assert notices.received(good, ONE.host, 53, WALL)


def test_a_zone_that_is_gone_is_not_told_of() -> None:
    notices = _notices(ONE)
    notices.published(_soa(7), 0.0)
    notices.removed(APEX)
    assert not _sent(notices, 0.0)
    assert notices.next_deadline() is None
    assert str(ONE) == "192.0.2.1:53"
    assert str(Secondary("2001:db8::1", 53, None)) == "[2001:db8::1]:53"
