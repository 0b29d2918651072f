from __future__ import annotations

import dns.message
import dns.opcode
import dns.rcode
import dns.tsig
import dns.update
import pytest

from appliance.dns import names
from appliance.dns.followed import ForwardAsked, NotifyHeard
from appliance.dns.gate import Gate
from appliance.dns.numbers import SERVFAIL
from appliance.dns.ratelimit import RateLimit
from appliance.dns.responder import Dropped, Responder
from appliance.dns.tsig import Key
from appliance.dns.update import UpdateAsked
from tests.dns.asking import zone

WALL = 1_800_000_000
APEX = names.from_text("demo.test")
SECRET = bytes(range(32))
PEER = Key(names.from_text("peer"), names.from_text("hmac-sha256"), SECRET)
OURS = Key(names.from_text("ours"), names.from_text("hmac-sha256"), SECRET)


@pytest.fixture
def responder() -> Responder:
    responder = Responder()
    responder.keys = {OURS.name: OURS}
    responder.followed = {APEX: PEER}
    return responder


def ask(
    responder: Responder, message: bytes, *, udp: bool = True
) -> bytes | Dropped | ForwardAsked | NotifyHeard:
    found = responder.respond(message, udp=udp, source="192.0.2.1", now=0.0, wall=WALL)
    assert isinstance(found, bytes | Dropped | ForwardAsked | NotifyHeard)
    return found


def signed(message: dns.message.Message, key: str | None, secret: bytes = SECRET) -> bytes:
    if key is not None:
        message.use_tsig(dns.tsig.Key(key, secret, "hmac-sha256"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("time.time", lambda: WALL)
        return message.to_wire()


def notify(key: str | None = "peer", zone: str = "demo.test", secret: bytes = SECRET) -> bytes:
    message = dns.message.make_query(zone, "SOA")
    message.set_opcode(dns.opcode.NOTIFY)
    return signed(message, key, secret)


def update(key: str | None, zone: str = "demo.test", secret: bytes = SECRET) -> bytes:
    message = dns.update.UpdateMessage(zone)
    message.add("www", 60, "A", "192.0.2.1")
    return signed(message, key, secret)


def signed_at(wall: int, key: str) -> bytes:
    message = dns.update.UpdateMessage("demo.test")
    message.use_tsig(dns.tsig.Key(key, SECRET, "hmac-sha256"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("time.time", lambda: wall)
        return message.to_wire()


def test_a_notify_of_the_primary(responder: Responder) -> None:
    message = notify()
    heard = ask(responder, message)
    assert isinstance(heard, NotifyHeard)
    assert heard.apex == APEX
    answer = heard.answer(SERVFAIL, 0)
    assert (answer[:2], answer[2] & 0xF8, answer[3] & 0xF) == (message[:2], 0xA0, 0)
    assert answer[10:12] == b"\x00\x01"


@pytest.mark.parametrize(
    ("message", "rcode"),
    [
        (notify(None), 5),
        (notify("ours"), 9),
        (notify("peer", secret=bytes(32)), 9),
        (notify("peer", zone="other.test"), 9),
        (update(None), 5),
        (update("ours", secret=bytes(32)), 9),
        (update("ours", zone="other.test"), 9),
    ],
    ids=[
        "notify unsigned",
        "notify by another",
        "notify by another secret",
        "notify of another zone",
        "update unsigned",
        "update by another secret",
        "update of another zone",
    ],
)
def test_who_is_not_believed(responder: Responder, message: bytes, rcode: int) -> None:
    answer = ask(responder, message)
    assert isinstance(answer, bytes)
    assert answer[3] & 0xF == rcode


def test_what_others_signed_goes_on_as_it_is(responder: Responder) -> None:
    message = update("theirs")
    found = ask(responder, message)
    assert isinstance(found, ForwardAsked)
    assert (found.apex, found.message, found.source, found.signed) == (APEX, message, "192.0.2.1", None)
    refusal = found.answer(SERVFAIL, WALL)
    assert (refusal[:2], refusal[2] & 0xF8, refusal[3] & 0xF) == (message[:2], 0xA8, SERVFAIL)
    assert refusal[10:12] == b"\x00\x00"


def test_our_own_refusal_is_signed_where_we_have_the_key(responder: Responder) -> None:
    found = ask(responder, update("ours"))
    assert isinstance(found, ForwardAsked)
    assert found.signed is not None
    assert found.answer(SERVFAIL, WALL)[10:12] == b"\x00\x01"


def test_strangers_make_us_pass_on_only_so_much() -> None:
    responder = Responder(gate=Gate(rate_limit=RateLimit()))
    responder.followed = {APEX: PEER}
    found = [ask(responder, update("theirs")) for _ in range(400)]
    assert found[0].__class__ is ForwardAsked
    assert found[-1] is Dropped.OVER_LIMIT
    assert isinstance(ask(responder, update("theirs"), udp=False), ForwardAsked)


# What is for this nameserver itself


SERVER = Key(names.from_text("s2.server"), names.from_text("hmac-sha256"), SECRET)


@pytest.fixture(params=["followed", "served"])
def introduced(request: pytest.FixtureRequest, responder: Responder) -> Responder:
    if request.param == "served":
        responder.followed = {}
        responder.replace(zone("", "demo.test"))
    responder.introducers = {SERVER.name: SERVER}
    return responder


def test_the_update_of_an_introducer_is_not_passed_on(introduced: Responder) -> None:
    asked = introduced.respond(update("s2.server"), udp=True, source="192.0.2.1", now=0.0, wall=WALL)
    assert isinstance(asked, UpdateAsked)
    assert asked.signed.key == SERVER
    assert asked.update.apex == APEX


def test_an_introducers_signature_that_is_wrong_is_refused_here(introduced: Responder) -> None:
    for octets, error in (
        (update("s2.server", secret=bytes(32)), dns.rcode.BADSIG),
        (signed_at(WALL - 301, "s2.server"), dns.rcode.BADTIME),
    ):
        answer = ask(introduced, octets)
        assert isinstance(answer, bytes)
        assert answer[3] & 0xF == dns.rcode.NOTAUTH
        assert int.from_bytes(answer[-4 - (6 if error == dns.rcode.BADTIME else 0) :][:2], "big") == error


def test_another_zone_is_not_ours_for_an_introducer_either(introduced: Responder) -> None:
    answer = ask(introduced, update("s2.server", zone="other.test"))
    assert isinstance(answer, bytes)
    assert answer[3] & 0xF == dns.rcode.NOTAUTH


def test_an_introducer_may_ask_like_anybody(introduced: Responder) -> None:
    answer = ask(introduced, signed(dns.message.make_query("demo.test", "SOA"), "s2.server"))
    assert isinstance(answer, bytes)
    assert answer[3] & 0xF in (dns.rcode.NOERROR, dns.rcode.REFUSED)  # a followed zone is not here yet
    assert b"\x02s2\x06server" in answer  # and is answered with a signature
    answer = ask(introduced, signed(dns.message.make_query("demo.test", "AXFR"), "s2.server"), udp=False)
    assert isinstance(answer, bytes)
    assert answer[3] & 0xF == dns.rcode.REFUSED
