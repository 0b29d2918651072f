from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns.journal import Journal, difference
from appliance.dns.numbers import SOA
from appliance.dns.question import read_question
from appliance.dns.secondary import (
    MAX_RETRY_SECONDS,
    Incoming,
    Timers,
    TransferFailed,
)
from appliance.dns.transfer import Transfer, read_transfer
from appliance.dns.tsig import Key, Signed, Signer, check
from appliance.dns.zone import Zone
from appliance.dns.zonefile import read_zone
from tests.dns.transferring import KEY, records_of
from tests.effort import examples

WALL = 1_800_000_000
HEAD = """\
$ORIGIN example.test.
$TTL 300
@ SOA ns1 hostmaster {} 7200 900 1209600 60
@ NS ns1
ns1 A 192.0.2.1
"""
TEXTS = "".join(f't{number} TXT "{number:0200}"\n' for number in range(300))
APEX = b"\x07example\x04test\x00"


def zone(serial: int, records: str = TEXTS) -> Zone:
    return read_zone(HEAD.format(serial) + records, filename="z")


def journal(*versions: Zone) -> Journal:
    found = Journal()
    for old, new in pairwise(versions):
        found.add(difference(old, new))
    return found


def answer(query: bytes, served: Zone, changes: Journal | None = None, *, key: Key = KEY) -> list[bytes]:
    """What a primary that serves `served` sends."""
    signed = check(query, {key.name: key}, WALL)
    assert isinstance(signed, Signed)
    asked = read_transfer(query, read_question(query), signed, udp=False, source="192.0.2.9")
    transfer = Transfer(asked, served, changes or Journal())
    return list(iter(lambda: transfer.next_message(WALL), None))


def incoming(current: Zone | None = None) -> Incoming:
    return Incoming(APEX, current, KEY, 4711, WALL)


def take(transfer: Incoming, messages: Iterable[bytes]) -> Zone | None:
    """The version; nothing may come before the last message."""
    found = None
    for message in messages:
        assert found is None
        found = transfer.receive(message, WALL)
    return found


def test_a_whole_zone() -> None:
    served = zone(7)
    transfer = incoming()
    messages = answer(transfer.query, served)
    assert len(messages) > 2
    found = take(transfer, messages)
    assert found is not None
    assert (found.serial, records_of(found)) == (7, records_of(served))
    assert transfer.changes is None


def test_changes() -> None:
    versions = [
        zone(7),
        zone(9, TEXTS + "a A 192.0.2.2\na A 192.0.2.3\nb 60 TXT x\n"),
        zone(10, TEXTS + "a A 192.0.2.3\nb 30 TXT x\n").changed({})[0],
        zone(15, TEXTS.replace("t5 TXT", "t5x TXT") + "a A 192.0.2.3\nb 30 TXT x\n"),
    ]
    transfer = incoming(versions[0])
    found = take(transfer, answer(transfer.query, versions[-1], journal(*versions)))
    assert found is not None
    assert (found.serial, records_of(found)) == (15, records_of(versions[-1]))
    assert transfer.changes is not None
    assert {(name.split(b"\x07example")[0], rtype) for name, rtype in transfer.changes} == {
        (b"", SOA),
        (b"\x01a", 1),
        (b"\x01b", 16),
        (b"\x02t5", 16),
        (b"\x03t5x", 16),
    }
    assert records_of(versions[0]) == records_of(zone(7))


def test_the_whole_zone_where_changes_were_asked_for() -> None:
    transfer = incoming(zone(3))
    found = take(transfer, answer(transfer.query, zone(7)))
    assert found is not None
    assert records_of(found) == records_of(zone(7))
    assert transfer.changes is None


@pytest.mark.parametrize("serial", [7, 8, 0x80000000])
def test_up_to_date_is_the_current_version(serial: int) -> None:
    current = zone(serial)
    transfer = incoming(current)
    assert take(transfer, answer(transfer.query, zone(7))) is current


@settings(max_examples=examples(60), deadline=None)
@given(st.booleans(), st.data())
def test_a_transfer_that_is_cut_or_out_of_order_is_none(is_whole: bool, data: st.DataObject) -> None:
    old, new = zone(7), zone(9, TEXTS.replace("0000", "1000"))
    transfer = incoming(None if is_whole else old)
    changes = Journal()
    if not is_whole:
        changes.add(difference(old, new))
    messages = answer(transfer.query, new, changes)
    missing = data.draw(st.integers(0, len(messages) - 1))
    found = None
    try:
        for number, message in enumerate(messages):
            if number != missing:
                found = transfer.receive(message, WALL)
    except TransferFailed:
        found = None
    assert found is None


@settings(max_examples=examples(100), deadline=None)
@given(st.data())
def test_no_changed_octet_changes_what_is_taken(data: st.DataObject) -> None:
    transfer = incoming()
    messages = answer(transfer.query, zone(7, "a TXT x\n"))
    (message,) = messages
    at = data.draw(st.integers(0, len(message) - 1))
    changed = data.draw(st.integers(1, 255))
    octets = bytearray(message)
    octets[at] ^= changed
    try:  # the ID is not signed (the key's owner has it in the signature), nor is the case of names
        found = take(transfer, [bytes(octets)])
    except TransferFailed:
        return
    assert found is not None
    assert records_of(found) == records_of(zone(7, "a TXT x\n"))


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=300))
def test_any_octets_are_refused(octets: bytes) -> None:
    with pytest.raises(TransferFailed):
        incoming().receive(octets, WALL)


def signed(transfer: Incoming, plain: bytes, key: Key = KEY) -> bytes:
    query = check(transfer.query, {KEY.name: KEY}, WALL)
    assert isinstance(query, Signed)
    return Signer(key, query.mac).sign(plain, WALL)


def plain(*records: bytes, flags: int = 0x8400, message_id: int = 4711) -> bytes:
    """An answer to AXFR without a signature."""
    head = message_id.to_bytes(2, "big") + flags.to_bytes(2, "big") + b"\x00\x01"
    question = APEX + b"\x00\xfc\x00\x01"
    return head + len(records).to_bytes(2, "big") + bytes(4) + question + b"".join(records)


def record(name: bytes, rtype: int, rdata: bytes, *, ttl: int = 60, rclass: int = 1) -> bytes:
    numbers = b"".join(value.to_bytes(2, "big") for value in (rtype, rclass))
    return name + numbers + ttl.to_bytes(4, "big") + len(rdata).to_bytes(2, "big") + rdata


SOA_RECORD = record(APEX, SOA, zone(7).soa.rdatas[0])
OTHER_SOA = record(APEX, SOA, zone(8).soa.rdatas[0])
A_RECORD = record(b"\x01a" + APEX, 1, bytes(4))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (plain(SOA_RECORD, SOA_RECORD), "is no zone: the zone example.test has no NS record"),
        (plain(SOA_RECORD, OTHER_SOA), "another SOA"),
        (plain(SOA_RECORD, A_RECORD, SOA_RECORD, A_RECORD), "after the final SOA"),
        (plain(A_RECORD), "does not begin with the SOA"),
        (plain(SOA_RECORD, record(b"\x01a\x00", 1, bytes(4))), "a is outside the zone"),
        (plain(SOA_RECORD, record(APEX, 1, bytes(5))), "the data of a record of type 1"),
        (plain(SOA_RECORD, record(APEX, 1, bytes(4), rclass=3)), "class 3"),
        (plain(SOA_RECORD, record(APEX, 1, bytes(4), ttl=1 << 31)), "a TTL above"),
        (plain(SOA_RECORD, record(APEX, 255, b"")), "type 255"),
        (plain(flags=0x8405), "rcode 5"),
        (plain(flags=0x8600), "not one to our question"),
        (plain(flags=0x0400), "not one to our question"),
        (plain(message_id=1), "not one to our question"),
    ],
)
def test_what_is_not_the_zone(message: bytes, words: str) -> None:
    transfer = incoming()
    with pytest.raises(TransferFailed, match=words):
        transfer.receive(signed(transfer, message), WALL)


def test_another_key() -> None:
    transfer = incoming()
    other = Key(KEY.name, KEY.algorithm, bytes(32))
    with pytest.raises(TransferFailed, match="the signature of the answer is wrong"):
        transfer.receive(signed(transfer, plain(SOA_RECORD), other), WALL)
    with pytest.raises(TransferFailed, match="not signed"):
        incoming().receive(plain(SOA_RECORD), WALL)


def test_the_last_message_must_be_signed() -> None:
    transfer = incoming()
    assert transfer.receive(signed(transfer, plain(SOA_RECORD)), WALL) is None
    with pytest.raises(TransferFailed, match="is not signed"):
        transfer.receive(plain(record(APEX, 2, b"\x03ns1\x00"), SOA_RECORD), WALL)


@pytest.mark.parametrize(
    ("have", "words"),
    [("b A 192.0.2.9\n", "removes what is not at a.example.test"), ("a A 192.0.2.2\nc TXT x\n", "adds what")],
)
def test_changes_that_do_not_go_with_what_we_have(have: str, words: str) -> None:
    old, new = zone(7, TEXTS + "a A 192.0.2.2\n"), zone(9, TEXTS + "c TXT x\n")
    transfer = incoming(zone(7, have))
    with pytest.raises(TransferFailed, match=words) as caught:
        take(transfer, answer(transfer.query, new, journal(old, new)))
    assert caught.value.contradicts


def test_changes_that_make_no_zone() -> None:
    old, new = zone(7, TEXTS + "a A 192.0.2.2\n"), zone(9, TEXTS)
    have = zone(7, "a A 192.0.2.2\n@ NS a\n")
    transfer = incoming(have)
    with pytest.raises(TransferFailed, match="would have no A or AAAA") as caught:
        take(transfer, answer(transfer.query, new, journal(old, new)))
    assert caught.value.contradicts


def test_too_many_records_and_octets(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound, words in (("MAX_TRANSFER_RECORDS", "records"), ("MAX_TRANSFER_OCTETS", "MiB")):
        with monkeypatch.context() as patched:
            patched.setattr(f"appliance.dns.secondary.{bound}", 100)
            transfer = incoming()
            with pytest.raises(TransferFailed, match=words):
                take(transfer, answer(transfer.query, zone(7)))


def test_timers() -> None:
    soa = zone(7).soa
    timers = Timers(100.0)
    assert (timers.due, timers.expires) == (100.0, None)
    timers.failed(100.0)
    assert timers.due == 101.0
    for _ in range(20):
        timers.failed(200.0)
    assert timers.due == 200.0 + MAX_RETRY_SECONDS
    timers.succeeded(soa, 300.0)
    assert (timers.due, timers.expires) == (300.0 + 7200, 300.0 + 1209600)
    timers.failed(7500.0)
    assert timers.due == 7501.0
    timers.notified(7500.5)
    assert timers.due == 7500.5
    assert timers.expires == 300.0 + 1209600


def test_timers_of_a_zone_from_the_disk() -> None:
    timers = Timers(100.0, zone(7).soa, -1209000.0)
    assert (timers.due, timers.expires) == (100.0, 600.0)
