from __future__ import annotations

import random
import time
from collections.abc import Callable

import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.tsig
import dns.update
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names
from appliance.dns.answer import refuse
from appliance.dns.numbers import FORMERR, NOERROR, NOTAUTH
from appliance.dns.tsig import (
    ALGORITHMS,
    BADKEY,
    BADSIG,
    BADTIME,
    BADTRUNC,
    FUDGE_SECONDS,
    Key,
    Signed,
    Signer,
    TsigError,
    TsigRefused,
    Unsigned,
    Verifier,
    check,
)
from tests.effort import examples

WALL = 1_700_000_000
NAME = "k1.demo.test"
SECRET = bytes(range(32))
KEY = Key(names.from_text(NAME), names.from_text("hmac-sha256"), SECRET)
KEYS = {KEY.name: KEY}
TSIG_HEAD = b"\x00\xfa\x00\xff\x00\x00\x00\x00"  # type, class, TTL


@pytest.fixture(autouse=True)
def at_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: float(WALL))  # dnspython asks nobody else


def theirs(algorithm: str = "hmac-sha256", secret: bytes = SECRET, name: str = NAME) -> dns.tsig.Key:
    return dns.tsig.Key(name, secret, algorithm)


def request(
    key: dns.tsig.Key | None = None, *, fudge: int = FUDGE_SECONDS, original_id: int | None = None
) -> dns.update.UpdateMessage:
    message = dns.update.UpdateMessage("demo.test", id=0x1234)
    message.add("a", 300, "TXT", "one")
    message.use_tsig(key or theirs(), fudge=fudge, original_id=original_id)
    return message


def as_error(octets: bytes, wall: int = WALL) -> TsigError:
    found = check(octets, KEYS, wall)
    assert isinstance(found, TsigError)
    return found


@pytest.mark.parametrize("algorithm", [names.to_text(name) for name in ALGORITHMS])
def test_a_request_of_dnspython_and_our_answer_to_it(algorithm: str) -> None:
    key = Key(KEY.name, names.from_text(algorithm), SECRET)
    asked = request(theirs(algorithm))
    octets = asked.to_wire()
    signed = check(octets, {key.name: key}, WALL)
    assert isinstance(signed, Signed)
    assert (signed.key, signed.signed_at, signed.good_until) == (key, WALL, WALL + FUDGE_SECONDS)
    assert signed.message == request_without_signature(octets)

    answer = Signer(key, signed.mac).sign(refuse(octets, NOERROR), WALL)
    read = dns.message.from_wire(answer, keyring=asked.keyring, request_mac=asked.mac)
    assert read.had_tsig
    assert len(answer) == len(refuse(octets, NOERROR)) + key.record_octets


def request_without_signature(octets: bytes) -> bytes:
    plain = dns.update.UpdateMessage("demo.test", id=0x1234)
    plain.add("a", 300, "TXT", "one")
    assert octets.startswith(plain.to_wire()[12:], 12)
    return plain.to_wire()


def test_a_message_without_a_signature() -> None:
    plain = dns.update.UpdateMessage("demo.test")
    assert check(plain.to_wire(), KEYS, WALL) == Unsigned()
    plain.use_edns(0)
    assert check(plain.to_wire(), KEYS, WALL) == Unsigned()


def test_the_id_of_who_signed_it_counts() -> None:
    octets = bytearray(request().to_wire())
    octets[:2] = b"\xab\xcd"  # a forwarder's
    signed = check(bytes(octets), KEYS, WALL)
    assert isinstance(signed, Signed)
    assert signed.message[:2] == b"\x12\x34"


def test_the_name_of_the_key_in_any_case_and_compressed() -> None:
    octets = request(theirs(name=NAME.upper())).to_wire()
    assert isinstance(check(octets, KEYS, WALL), Signed)
    at = octets.index(TSIG_HEAD)
    begin = octets.rindex(b"\x02K1", 0, at)
    assert isinstance(check(octets[:begin] + b"\x02k1\xc0\x0c" + octets[at:], KEYS, WALL), Signed)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (theirs(name="k2.demo.test"), BADKEY),
        (theirs("hmac-sha512"), BADKEY),
        (theirs(secret=bytes(32)), BADSIG),
    ],
)
def test_who_is_not_known_gets_an_unsigned_answer(key: dns.tsig.Key, error: int) -> None:
    octets = request(key).to_wire()
    refused = as_error(octets)
    assert (refused.rcode, refused.error) == (NOTAUTH, error)
    answer = refused.answer(refuse(octets, refused.rcode), WALL)
    with pytest.raises({BADKEY: dns.tsig.PeerBadKey, BADSIG: dns.tsig.PeerBadSignature}[error]):
        dns.message.from_wire(answer, keyring={key.name: key}, request_mac=b"")
    assert answer[3] & 0xF == NOTAUTH
    assert answer.endswith(b"\x01\x2c\x00\x00\x12\x34" + error.to_bytes(2, "big") + b"\x00\x00")


@pytest.mark.parametrize("seconds", [FUDGE_SECONDS + 1, -FUDGE_SECONDS - 1])
def test_who_signed_at_another_time_gets_a_signed_answer_with_our_time(seconds: int) -> None:
    asked = request()
    octets = asked.to_wire()
    assert isinstance(check(octets, KEYS, WALL + seconds - (1 if seconds > 0 else -1)), Signed)
    refused = as_error(octets, WALL + seconds)
    assert (refused.rcode, refused.error) == (NOTAUTH, BADTIME)
    answer = refused.answer(refuse(octets, refused.rcode), WALL + seconds)
    assert answer.endswith(b"\x00\x06" + (WALL + seconds).to_bytes(6, "big"))
    with pytest.raises(dns.tsig.PeerBadTime):
        dns.message.from_wire(answer, keyring=asked.keyring, request_mac=asked.mac)
    with pytest.raises(TsigRefused, match="BADTIME"):
        Verifier(KEY, asked.mac or b"").check(answer, WALL)


def test_the_sender_does_not_widen_the_window() -> None:
    octets = request(fudge=3600).to_wire()
    assert isinstance(check(octets, KEYS, WALL + FUDGE_SECONDS), Signed)
    assert as_error(octets, WALL + FUDGE_SECONDS + 1).error == BADTIME
    assert as_error(request(fudge=1).to_wire(), WALL + 2).error == BADTIME


def cut(octets: bytes, length: int, size: int | None = None) -> bytes:
    """The same message with the first `length` octets of its MAC."""
    at = octets.index(TSIG_HEAD) + len(TSIG_HEAD)
    mac_at = at + 2 + len(KEY.algorithm) + 8
    end = mac_at + 2 + 32
    rdata_octets = len(octets) - at - 2 - 32 + length
    mac = (octets[mac_at + 2 : end] + bytes(40))[:length]
    head = octets[:at] + rdata_octets.to_bytes(2, "big") + octets[at + 2 : mac_at]
    return head + (length if size is None else size).to_bytes(2, "big") + mac + octets[end:]


def test_truncated_macs() -> None:
    octets = request().to_wire()
    assert cut(octets, 32) == octets
    for length in (0, 9, 15, 33):
        assert as_error(cut(octets, length)).rcode == FORMERR
        assert as_error(cut(octets, length)).answer(b"refusal", WALL) == b"refusal"
    refused = as_error(cut(octets, 16))
    assert (refused.rcode, refused.error) == (NOTAUTH, BADTRUNC)
    assert len(refused.answer(refuse(octets, NOTAUTH), WALL)) == 12 + KEY.record_octets
    bad = bytearray(cut(octets, 16))
    bad[octets.index(b"\x03one") + 1] ^= 1
    assert as_error(bytes(bad)).error == BADSIG


def with_counts(octets: bytes, answer: int, authority: int, additional: int) -> bytes:
    counts = b"".join(count.to_bytes(2, "big") for count in (answer, authority, additional))
    return octets[:6] + counts + octets[12:]


def test_a_signature_in_the_wrong_place_is_a_format_error() -> None:
    octets = request().to_wire()
    record = octets[octets.index(b"\x02k1") :]
    for wrong in (
        with_counts(octets, 0, 2, 0),
        with_counts(octets + record, 0, 1, 2),
        with_counts(octets + b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00", 0, 1, 2),
        octets.replace(TSIG_HEAD, b"\x00\xfa\x00\x01\x00\x00\x00\x00"),
        octets.replace(TSIG_HEAD, b"\x00\xfa\x00\xff\x00\x00\x00\x01"),
        cut(octets, 32, size=31),
        cut(octets, 32, size=0xFFFF),
    ):
        refused = as_error(wrong)
        assert (refused.rcode, refused.error) == (FORMERR, 0), refused


def test_every_octet_counts() -> None:
    """Whatever one octet is changed to, the message is not taken for signed (but for the ID)."""
    octets = request().to_wire()
    for at in range(2, len(octets)):
        changed = bytearray(octets)
        changed[at] ^= 0x01
        found = check(bytes(changed), KEYS, WALL)
        if isinstance(found, Signed):
            assert changed[at] in b"abcdefghijklmnopqrstuvwxyz", at  # never: case is changed by 0x20
            pytest.fail(f"octet {at}")


@settings(max_examples=examples(100), deadline=None)
@given(st.binary(max_size=300))
def test_any_octets(octets: bytes) -> None:
    found = check(octets, KEYS, WALL)
    assert not isinstance(found, Signed)
    head = bytes(4) + b"\x00\x01" + bytes(5) + b"\x01" + b"\x00\x00\x06\x00\x01"
    assert isinstance(check(head + KEY.name + TSIG_HEAD + octets, KEYS, WALL), TsigError)


def test_hostile_octets_of_any_length_cost_a_bounded_number_of_steps() -> None:
    """Steps are counted, not timed: lines of our code that run."""
    import sys

    chance = random.Random(5)
    worst = 0

    def steps(octets: bytes) -> int:
        count = 0

        def trace(frame: object, event: str, argument: object) -> Callable[..., object]:
            nonlocal count
            count += event == "line"
            return trace

        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            check(octets, KEYS, WALL)
        finally:
            sys.settrace(None)
        return count

    for size in (12, 17, 100, 512, 4096, 16384, 65535):
        for filling in (b"\x00", b"\x01", b"\x3f", b"\xc0", b"\xc0\x0c", b"\x01a\xc0\x0c", b"\xff"):
            body = (filling * size)[: size - 12]
            for counts in (b"\x00\x01\x00\x00\x00\xc7\x00\x01", b"\x00\x01" + b"\xff" * 6):
                worst = max(worst, steps(b"\x12\x34\x28\x00" + counts + body))
        body = bytes(chance.randrange(256) for _ in range(size - 12))
        worst = max(worst, steps(b"\x12\x34\x28\x00\x00\x01\x00\x01\x00\x01\x00\x02" + body))
    deepest = request().to_wire()
    deepest = with_counts(deepest, 0, 1, 1)[: deepest.index(b"\x02k1")]
    chain = b"".join((0xC000 | 12 + 2 * number).to_bytes(2, "big") for number in range(8000))
    worst = max(worst, steps(deepest + chain[-2:] + TSIG_HEAD + b"\x00\x00"))
    assert worst < 200 * 127 * 8


def test_a_stream_is_checked_by_dnspython_and_by_us() -> None:
    asked = dns.message.make_query("demo.test", "AXFR")
    asked.use_tsig(theirs())
    octets = asked.to_wire()
    signed = check(octets, KEYS, WALL)
    assert isinstance(signed, Signed)
    signer = Signer(KEY, signed.mac)
    answers = [signer.sign(refuse(octets, NOERROR, 27), WALL + number) for number in range(4)]

    context = None
    verifier = Verifier(KEY, asked.mac or b"")
    assert not verifier.is_settled
    for answer in answers:
        read = dns.message.from_wire(
            answer, keyring=asked.keyring, request_mac=asked.mac, multi=True, tsig_ctx=context
        )
        context = read.tsig_ctx
        assert verifier.check(answer, WALL) == refuse(octets, NOERROR, 27)
        assert verifier.is_settled
    fresh = Verifier(KEY, asked.mac or b"")
    fresh.check(answers[0], WALL)
    with pytest.raises(TsigRefused, match="wrong"):
        fresh.check(answers[2], WALL)


def test_messages_between_signed_ones_are_under_the_next_signature() -> None:
    plain = [bytes((0, number)) + request_without_signature(request().to_wire())[2:] for number in range(4)]
    signer = Signer(KEY)
    octets = signer.sign(plain[0], WALL)
    answering = Signer(KEY, signer.mac)
    first = answering.sign(plain[1], WALL)
    last = sign_with(plain[2:], answering.mac)

    verifier = Verifier(KEY, signer.mac)
    verifier.check(first, WALL)
    assert verifier.check(plain[2], WALL) == plain[2]
    assert not verifier.is_settled
    assert verifier.check(last, WALL) == plain[3]
    assert verifier.is_settled
    for _ in range(99):
        verifier.check(plain[0], WALL)
    with pytest.raises(TsigRefused, match="not signed"):
        verifier.check(plain[0], WALL)
    assert isinstance(check(octets, KEYS, WALL), Signed)


def sign_with(messages: list[bytes], before: bytes) -> bytes:
    """The last of `messages`, signed together with those before it."""
    import hmac

    timers = WALL.to_bytes(6, "big") + FUDGE_SECONDS.to_bytes(2, "big")
    mac = hmac.digest(SECRET, b"\x00\x20" + before + b"".join(messages) + timers, "sha256")
    plain = messages[-1]
    rdata = KEY.algorithm + timers + b"\x00\x20" + mac + plain[:2] + bytes(4)
    record = KEY.name + TSIG_HEAD + len(rdata).to_bytes(2, "big") + rdata
    return plain[:10] + b"\x00\x01" + plain[12:] + record


def test_answers_that_are_not_what_they_should_be() -> None:
    signer = Signer(KEY)
    plain = request_without_signature(request().to_wire())
    signer.sign(plain, WALL)
    good = Signer(KEY, signer.mac).sign(plain, WALL)
    other = Signer(Key(names.from_text("k2"), KEY.algorithm, SECRET), signer.mac).sign(plain, WALL)
    for octets, wall, what in (
        (plain, WALL, "not signed"),
        (good[:-1], WALL, "malformed"),
        (other, WALL, "another key"),
        (good.replace(b"one", b"two"), WALL, "wrong"),
        (good, WALL + 301, "another time"),
    ):
        with pytest.raises(TsigRefused, match=what):
            Verifier(KEY, signer.mac).check(octets, wall)
    assert Verifier(KEY, signer.mac).check(good, WALL) == plain
