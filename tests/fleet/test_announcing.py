"""A server and a nameserver without a network: what is sent, and what each answer means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from appliance.dns import names
from appliance.dns.numbers import NOERROR, NOTAUTH, REFUSED, SERVFAIL, YXRRSET
from appliance.dns.responder import Responder
from appliance.dns.tsig import Key, Signed, Signer, check
from appliance.dns.update import UpdateAsked
from appliance.dns.updatelease import lease_option
from appliance.fleet.announcement import Announcement, read_text, read_update, write_text
from appliance.fleet.announcing import MAX_RETRY_SECONDS, RETRY_SECONDS, Announcing, Outcome
from appliance.fleet.serverkeys import ServerKeys, key_of
from appliance.tunnel.discovery import ServerAddress
from tests.dns.asking import zone

APEX = names.from_text("demo.test")
WALL = 1_800_000_000
SECRET, OTHER = bytes(32), bytes(range(32))
RIGHT, WRONG = key_of(SECRET, "s2", 7), key_of(OTHER, "s2", 7)
SAID = Announcement("b1", 1, (ServerAddress("192.0.2.2"),))


class Nameserver:
    """One that knows the keys derived from its secret, and does as it is told."""

    def __init__(self, *, secret: bytes = SECRET, follows: bool = False, wall: int = WALL) -> None:
        self.responder = Responder([] if follows else [zone("", "demo.test")])
        self.responder.introducers = ServerKeys(secret)
        if follows:
            self.responder.followed = {APEX: Key(names.from_text("x.peer.internal"), RIGHT.algorithm, OTHER)}
        self.wall = wall
        self.heard: list[Announcement] = []

    def hear(self, octets: bytes, rcode: int = NOERROR, lease: int | None = 60) -> bytes:
        outcome = self.responder.respond(octets, udp=True, source="192.0.2.2", now=0.0, wall=self.wall)
        if isinstance(outcome, UpdateAsked):
            self.heard.append(read_update(outcome.update, "s2"))
            return outcome.answer(rcode, self.wall, lease_option(lease) if lease is not None else b"")
        assert isinstance(outcome, bytes)
        return outcome


def announcing(*keys: Key, chance: float = 0.0) -> Announcing:
    return Announcing(APEX, "s2", keys or (RIGHT,), lambda: chance)


def outcome(server: Announcing, nameserver: Nameserver, **answer: int | None) -> Outcome:
    octets = server.announce(SAID, 77, WALL)
    found = server.judge(nameserver.hear(octets, **answer), nameserver.wall)  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize("follows", [False, True])
def test_taken_and_refreshed_at_80_to_85_percent(follows: bool) -> None:
    nameserver = Nameserver(follows=follows)
    assert outcome(announcing(), nameserver) == Outcome("taken", 48.0)
    assert outcome(announcing(chance=1.0), nameserver).next_seconds == pytest.approx(51.0)
    assert outcome(announcing(), nameserver, lease=30).next_seconds == 24.0
    assert outcome(announcing(), nameserver, lease=0).next_seconds == 8.0
    assert outcome(announcing(), nameserver, lease=10**9).next_seconds == 48.0
    assert outcome(announcing(), nameserver, lease=None).next_seconds == 48.0
    assert nameserver.heard == [SAID] * 6


@pytest.mark.parametrize(
    ("rcode", "words"),
    [(SERVFAIL, "SERVFAIL"), (YXRRSET, "it knows of a later announcement")],
)
def test_what_passes_is_tried_again_in_two_seconds(rcode: int, words: str) -> None:
    server, nameserver = announcing(), Nameserver()
    for _ in range(5):
        assert outcome(server, nameserver, rcode=rcode) == Outcome(words, RETRY_SECONDS)
    assert server.unanswered("no answer", 2.1) == Outcome("no answer", 0.0)
    assert server.unanswered("refused", 0.5) == Outcome("refused", 1.5)


def test_who_refuses_on_principle_is_asked_less_often() -> None:
    server, nameserver = announcing(), Nameserver()
    found = [outcome(server, nameserver, rcode=REFUSED) for _ in range(6)]
    assert {one.words for one in found} == {"REFUSED"}
    assert [one.next_seconds for one in found] == [2.0, 4.0, 8.0, 16.0, MAX_RETRY_SECONDS, MAX_RETRY_SECONDS]
    assert outcome(server, nameserver).is_taken
    assert outcome(server, nameserver, rcode=REFUSED).next_seconds == 2.0


def test_a_clock_that_is_wrong_has_a_name() -> None:
    found = outcome(announcing(), Nameserver(wall=WALL + 301))
    assert "BADTIME" in found.words
    assert "clock" in found.words
    assert found.next_seconds == RETRY_SECONDS


def test_the_next_key_is_tried_where_one_is_wrong() -> None:
    server, nameserver = announcing(WRONG, RIGHT), Nameserver()
    first = outcome(server, nameserver)
    assert "BADSIG" in first.words
    assert first.next_seconds == RETRY_SECONDS
    assert outcome(server, nameserver).is_taken
    assert outcome(server, nameserver).is_taken  # and kept


def test_who_has_no_key_of_ours() -> None:
    server, nameserver = announcing(WRONG), Nameserver()
    found = [outcome(server, nameserver) for _ in range(3)]
    assert ["BADSIG" in one.words for one in found] == [True] * 3
    assert [one.next_seconds for one in found] == [2.0, 4.0, 8.0]
    stranger = Responder([zone("", "demo.test")])  # which knows nothing of such keys
    octets = server.announce(SAID, 77, WALL)
    answer = stranger.respond(octets, udp=True, source="192.0.2.2", now=0.0, wall=WALL)
    assert isinstance(answer, bytes)
    judged = server.judge(answer, WALL)
    assert judged is not None
    assert "BADKEY" in judged.words


def test_a_zone_that_is_not_served_there() -> None:
    server = Announcing(names.from_text("other.test"), "s2", (RIGHT,), lambda: 0.0)
    assert outcome(server, Nameserver()).words == "NOTAUTH"
    assert Nameserver().hear(server.announce(SAID, 1, WALL))[3] & 0xF == NOTAUTH


def test_nobody_else_can_say_yes() -> None:
    server, nameserver = announcing(), Nameserver()
    octets = server.announce(SAID, 77, WALL)
    right = nameserver.hear(octets)
    checked = check(octets, ServerKeys(SECRET), WALL)
    assert isinstance(checked, Signed)
    plain = right[:10] + b"\x00\x00" + octets[12 : 12 + len(APEX) + 4]
    assert server.judge(plain, WALL) is None  # not signed
    assert server.judge(Signer(WRONG, checked.mac).sign(plain, WALL), WALL) is None
    assert server.judge(Signer(RIGHT, b"x" * 32).sign(plain, WALL), WALL) is None  # to another message
    assert server.judge(octets, WALL) is None
    assert server.judge(b"\x00" * 11, WALL) is None
    assert server.judge(b"\x00\x00" + right[2:], WALL) is None
    assert server.judge(right, WALL) == Outcome("taken", 48.0)


PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "protocol.md").read_text()


def test_the_specification_says_so_octet_for_octet() -> None:
    blocks = dict(re.findall(r"^```(octets \w+|text membership)\n(.*?)^```$", PAGE, re.M | re.S))
    key = key_of(bytes(range(32)), "s2", 0x1BE9266E95ABAE21)
    assert key.secret == bytes.fromhex(blocks["octets key"])
    (text,) = re.findall(r'"(.*)"', blocks["text membership"])
    said = read_text(text)
    assert write_text(said) == text
    server = Announcing(names.from_text("example.org"), "s2", (key,), lambda: 0.0)
    assert server.announce(said, 0x1234, WALL) == bytes.fromhex(blocks["octets update"])
