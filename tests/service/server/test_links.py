"""Links: who may have one, which names it gets, and how it ends; over real TLS on loopback."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_twisted

from appliance.service.server import links as module
from appliance.tunnel.certificates import make_authority
from appliance.tunnel.crl import RevocationList
from appliance.tunnel.herd import spread_seconds
from appliance.tunnel.session import ChallengeDenied, CrlBrought, ServerDraining
from tests.service.server.linked import (
    CA,
    NAMES,
    NAMESERVER,
    SERVER,
    TLS_ONLY,
    WALL,
    Ground,
    LinkOnly,
    client_credential,
    until,
)
from tests.tunnel.lists import revoking

DAYS_OF = {"longer": 300, "shorter": 200, "shortest": 100}


@pytest_twisted.ensureDeferred
async def test_registered_served_and_unserved() -> None:
    ground = Ground()
    try:
        links: Any = ground.server._links
        assert not links.linked("127.0.0.1")
        first = await ground.link(client_credential())
        await until(lambda: len(first.names) == 2)
        second = await ground.link(client_credential())
        await until(lambda: len(second.names) == 2)
        assert ground.told == [("serving", name) for name in NAMES]
        session, _ = ground.server.status()["sessions"]
        assert (session["client"], session["names"]) == ("home", NAMES)
        first.abort()
        await until(lambda: len(ground.server.status()["sessions"]) == 1)
        assert len(ground.told) == 2  # the second instance still serves them
        assert links.linked("127.0.0.1")
        second.machine.goodbye("stopping", "the client is stopping")
        second._flush()
        await until(lambda: len(ground.told) == 4)
        assert ground.told[2:] == [("not serving", name) for name in NAMES]
        assert not links.linked("127.0.0.1")
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_a_draining_server_tells_its_clients_and_those_that_come_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ground = Ground()
    links: Any = ground.server._links
    monkeypatch.setattr(links, "_jitter", lambda low, high: high)
    try:
        first, second = [await ground.link(client_credential()) for _ in range(2)]
        await until(lambda: first.names and second.names)
        ground.server.drain()
        for link in (first, second):
            await until(lambda link=link: ServerDraining(spread_seconds(2)) in link.events)  # type: ignore[misc]
        third = await ground.link(client_credential())
        await until(lambda: third.names)  # it goes on serving
        assert ServerDraining(spread_seconds(3)) in third.events
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_many_links_are_pinged_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MANY_LINKS", 2)
    ground = Ground()
    links: Any = ground.server._links
    try:
        here = [await ground.link(client_credential()) for _ in range(3)]
        await until(lambda: all(link.names for link in here))
        assert links.ping_seconds == 180.0
        assert {link._machine._liveness._ping_seconds for link in links._links.values()} == {180.0}
        for left in (2, 1):
            here.pop().abort()
            await until(lambda left=left: len(links.sessions) == left)  # type: ignore[misc]
            assert links.ping_seconds == (180.0 if left == 2 else 5.0)
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_every_session_of_a_name_lets_those_in_who_wait_for_it() -> None:
    """The first may serve another port than theirs."""
    ground = Ground()
    links: Any = ground.server._links
    told: list[str] = []
    links._registered = told.append
    try:
        for count in (1, 2):
            link = await ground.link(client_credential())
            await until(lambda link=link: link.names)  # type: ignore[misc]
            assert told.count("www.example.com") == count
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_a_client_in_doubt_is_pinged_at_once() -> None:
    ground = Ground()
    links: Any = ground.server._links
    try:
        link = await ground.link(client_credential())
        await until(lambda: link.names)
        (session,) = links.sessions.values()
        liveness = links._links[session]._machine._liveness
        assert liveness._asked is None
        session.doubt()
        assert liveness._asked is not None
        await until(lambda: liveness._asked is None)  # answered
        link.abort()
        await until(lambda: not links.sessions)
        session.doubt()  # it is over: nothing to ask
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_every_refusal_says_why() -> None:
    ground = Ground()
    try:
        other_ca = make_authority("another", WALL)
        past = WALL - timedelta(days=400)
        revoked = client_credential("gone")
        ground.kept.revoked = RevocationList(1, frozenset([revoked.certificate.serial_number]))
        for credential, reason, word in [
            (client_credential(ca=other_ca), "another_ca", "another CA"),
            (client_credential(wall=past, days=10), "expired", "expired"),
            (revoked, "revoked", "revoked"),
            (SERVER, "wrong_usage", "tunnel server"),
            (NAMESERVER, "wrong_usage", "nameserver"),
        ]:
            link = await ground.link(credential)
            await until(lambda link=link: link.end)  # type: ignore[misc]
            assert link.end is not None
            assert link.end.reason == reason
            assert word in link.end.text
        assert ground.server.status()["sessions"] == []
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_a_name_that_is_not_granted_is_refused_and_the_link_goes_on() -> None:
    ground = Ground()
    try:
        link = await ground.link(
            client_credential(), offers={"www.example.com": TLS_ONLY, "other.example.com": TLS_ONLY}
        )
        await until(lambda: b"not_granted" in link.octets and link.names)
        assert link.names == ["www.example.com"]
        assert ground.told == [("serving", "www.example.com")]
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_the_same_instance_replaces_its_old_session() -> None:
    ground = Ground()
    try:
        first = await ground.link(client_credential(), instance="ab" * 16)
        await until(lambda: first.names)
        second = await ground.link(client_credential(), instance="ab" * 16)
        await until(lambda: second.names and first.end)
        assert first.end is not None
        assert first.end.reason == "replaced"
        assert len(ground.server.status()["sessions"]) == 1
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_sixteen_instances_of_one_certificate() -> None:
    ground = Ground()
    try:
        credential = client_credential()
        for _ in range(16):
            await ground.link(credential)
        await until(lambda: all(client.names for client in ground.clients))
        late = await ground.link(credential)
        await until(lambda: late.end)
        assert late.end is not None
        assert late.end.reason == "too_many_instances"
        assert len(ground.server.status()["sessions"]) == 16
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_a_revocation_list_spreads_both_ways() -> None:
    ground = Ground()
    try:
        gone = client_credential("gone")
        first, second, deaf = [
            await ground.link(client_credential(name), crl=crl)
            for name, crl in (("a", 0), ("b", 0), ("c", None))
        ]
        victim = await ground.link(gone, crl=0)
        await until(lambda: all(link.names for link in (first, second, deaf, victim)))
        revoked = revoking(CA, [gone.certificate.serial_number], 4, WALL)
        first.machine.give(revoked)
        first._flush()
        await until(lambda: victim.end and CrlBrought(revoked.pem) in second.events)
        assert victim.end is not None
        assert victim.end.reason == "revoked"
        assert ground.kept.revoked == revoked
        late = await ground.link(client_credential("late"), crl=3)
        await until(lambda: CrlBrought(revoked.pem) in late.events)
        ahead = await ground.link(client_credential("ahead"), crl=9)
        await until(lambda: ahead.names)
        for link in (first, deaf, ahead):
            assert CrlBrought(revoked.pem) not in link.events
        second.machine.give(revoking(make_authority("another", WALL), [1], 5, WALL))
        second._flush()
        await until(lambda: second.end)
        assert second.end is not None
        assert (second.end.reason, second.end.text) == (
            "protocol",
            "the revocation list is not signed by this CA",
        )
        assert first.end is None
    finally:
        await ground.close()


@pytest.mark.parametrize("is_linked", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_name_is_not_shown_under_a_certificate_that_is_revoked_while_another_serves_it(
    is_linked: bool,
) -> None:
    ground = Ground()
    try:
        longer, shorter, shortest = (client_credential(name, days=days) for name, days in DAYS_OF.items())
        links = [await ground.link(one) for one in (longer, shorter, shortest)]
        await until(lambda: all(len(link.names) == 2 for link in links))
        assert ground.shown == dict.fromkeys(NAMES, longer.certificate_pem())
        if not is_linked:
            links[0].abort()
            await until(lambda: len(ground.server.status()["sessions"]) == 2)
        ground.told.clear()
        ground.server.revoke(RevocationList(1, frozenset([longer.certificate.serial_number])))
        assert ground.shown == dict.fromkeys(NAMES, shorter.certificate_pem())
        ground.server.revoke(RevocationList(2, frozenset([longer.certificate.serial_number])))
        assert ground.told == [("serving", name) for name in NAMES]
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_revoked_while_linked() -> None:
    ground = Ground()
    try:
        gone = client_credential("gone")
        link = await ground.link(gone)
        stays = await ground.link(client_credential("stays"))
        await until(lambda: link.names and stays.names)
        ground.server.revoke(RevocationList(1, frozenset([gone.certificate.serial_number])))
        await until(lambda: link.end)
        assert link.end is not None
        assert link.end.reason == "revoked"
        assert stays.end is None
    finally:
        await ground.close()


class JoinedVisitor:
    """A visitor joined through this client, and the client's end of his lane."""

    def __init__(self, ground: Ground, client_id: str) -> None:
        server: Any = ground.server
        (session,) = (one for one in server._links.sessions.values() if one.peer.id == client_id)
        (self._sock, near), (far, self._lane) = socket.socketpair(), socket.socketpair()
        self._sock.setblocking(False)
        for wire in (near, far):
            wire.setblocking(False)
            server._readiness.register(wire, lambda events: None)
        server._relay.join(near, far, among=session.joined)

    def is_cut(self) -> bool:
        try:
            return not self._sock.recv(1)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def leave(self) -> None:
        self._sock.close()
        self._lane.close()


def go_silent(link: LinkOnly) -> None:
    link.abort()


def say_goodbye(link: LinkOnly) -> None:
    link.machine.goodbye("stopping", "the client is stopping")
    link._flush()


def talk_nonsense(link: LinkOnly) -> None:
    link.send(b"{" * 1000 + b"\n")


@pytest.mark.parametrize("end", [go_silent, say_goodbye, talk_nonsense])
@pytest_twisted.ensureDeferred
async def test_revoked_when_the_link_is_over(end: Callable[[LinkOnly], None]) -> None:
    """Those joined through it have stayed, and may go on no longer."""
    ground = Ground()
    try:
        links: Any = ground.server._links
        credentials = [client_credential(name) for name in ("gone", "stays")]
        both = [await ground.link(one) for one in credentials]
        await until(lambda: all(link.names for link in both))
        of_revoked, first, second = (JoinedVisitor(ground, name) for name in ("gone", "stays", "stays"))
        for link in both:
            end(link)
        await until(lambda: not links.sessions)
        assert not any(visitor.is_cut() for visitor in (of_revoked, first, second))
        ground.server.revoke(RevocationList(1, frozenset([credentials[0].certificate.serial_number])))
        await until(of_revoked.is_cut)
        assert len(links._left) == 1
        first.leave()
        await until(lambda: len(ground.server._relay.joined) == 1)
        assert not second.is_cut()
        second.leave()
        await until(lambda: not ground.server._relay.joined)
        assert not links._left
        of_revoked.leave()
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_who_comes_back_takes_those_who_were_left() -> None:
    ground = Ground()
    try:
        links: Any = ground.server._links
        first = await ground.link(client_credential(), instance="ab" * 16)
        await until(lambda: first.names)
        visitor = JoinedVisitor(ground, "home")
        first.abort()
        await until(lambda: not links.sessions)
        second = await ground.link(client_credential(), instance="ab" * 16)
        await until(lambda: second.names)
        assert not links._left
        (session,) = ground.server.status()["sessions"]
        assert session["visitors"] == 1
        assert not visitor.is_cut()
        visitor.leave()
        await until(lambda: not ground.server._relay.joined)
        (session,) = ground.server.status()["sessions"]
        assert session["visitors"] == 0
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_expired_while_linked() -> None:
    ground = Ground()
    try:
        in_a_second = datetime.now(UTC) - timedelta(days=1) + timedelta(seconds=2)
        link = await ground.link(client_credential(wall=in_a_second, days=1))
        await until(lambda: link.end)
        assert link.end is not None
        assert link.end.reason == "expired"
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_challenges_stay_when_the_link_ends_and_strange_ones_are_refused() -> None:
    ground = Ground()
    try:
        link = await ground.link(client_credential())
        await until(lambda: link.names)
        for name in ("*.apps.example.com", "example.com", "www.example.com"):
            link.machine.challenge(name, "v" * 43, 600, "sig=")
        link.machine.challenge_over("www.example.com", "v" * 43)
        link.send(link.machine.data_to_send())
        await until(lambda: any(isinstance(event, ChallengeDenied) for event in link.events))
        await until(lambda: len(ground.challenges.status()) == 1)
        link.abort()
        await until(lambda: link.closed)
        (standing,) = ground.challenges.status()
        assert standing["name"] == "*.apps.example.com"
        ground.challenges.stop()
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_garbage_gets_a_goodbye() -> None:
    ground = Ground()
    try:
        link = await ground.link(client_credential(), answers=False)
        link.send(b"{" * 1000 + b"\n")
        await until(lambda: link.closed)
        assert b'"goodbye"' in link.octets
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_a_nameserver_gets_a_watch_and_a_client_does_not() -> None:
    ground = Ground()
    try:
        await ground.link(NAMESERVER, alpn=b"watch/1")
        await until(lambda: ground.watches)
        assert ground.watches[0].id == "n1"
        link = await ground.link(client_credential(), alpn=b"watch/1")
        await until(lambda: link.closed)
        assert b"wrong_usage" in link.octets
        assert len(ground.watches) == 1
    finally:
        await ground.close()
