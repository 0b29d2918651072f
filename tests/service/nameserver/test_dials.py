"""Dials over real TLS on loopback: a tunnel server in a process of its own, watched, and killed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as chosen
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from appliance.dns.zone import Sets
from appliance.service.nameserver.dials import Dial, Meeting
from appliance.service.nameserver.registry import Registry
from appliance.service.nameserver.watcher import Watcher
from appliance.service.nameserver.zonefiles import LiveChange, Zonefiles
from appliance.service.store import Store
from appliance.tunnel.certificates import SERVICE_NAME, Credential, issue_server
from appliance.tunnel.crl import RevocationList
from appliance.tunnel.discovery import ServerAddress
from tests.service.nameserver.bench import ZONE
from tests.tunnel.authority import CA, CLIENT, NAMESERVER, OTHER_CA, WALL
from tests.tunnel.lists import KeptList

reactor: Any = chosen
WWW = "www.example.org"
HOST, ELSEWHERE = "127.0.0.1", "127.0.0.2"
OURS = issue_server(CA, server_id="s1", service_name=SERVICE_NAME, addresses=[HOST], wall=WALL)


class Child(ProcessProtocol):
    """A tunnel server in a process of its own."""

    def __init__(self, directory: Path, credential: Credential, ca: Credential = CA) -> None:
        (directory / "ca.pem").write_bytes(ca.certificate_pem())
        (directory / "server.pem").write_bytes(credential.pem())
        (directory / "client.pem").write_bytes(CLIENT.certificate_pem())
        self.port: Deferred[int] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self.said = self.errors = b""
        arguments = [sys.executable, "-m", "tests.service.nameserver.tunnel_server", str(directory)]
        self.process = reactor.spawnProcess(self, sys.executable, arguments, env=None)

    def outReceived(self, data: bytes) -> None:
        self.said += data
        if self.said.endswith(b"\n"):
            self.port.callback(int(self.said))

    def errReceived(self, data: bytes) -> None:
        self.errors += data

    def processEnded(self, reason: Failure) -> None:
        if not self.port.called:
            self.port.errback(RuntimeError(self.errors.decode()))
        self.ended.callback(None)

    async def kill(self) -> None:
        if not self.ended.called:
            self.process.signalProcess("KILL")
            await self.ended


def meeting(revoked: RevocationList | None = None) -> Meeting:
    kept = KeptList(CA)
    kept.revoked = revoked or kept.revoked
    return Meeting(
        reactor,
        nameserver_id="ns1",
        service_name=SERVICE_NAME,
        identity=lambda: (NAMESERVER, CA.certificate),
        revocations=kept,
    )


async def until(condition: Callable[[], object], seconds: float = 10.0) -> float:
    """Turn the reactor until the condition holds; how long that took."""
    began = reactor.seconds()
    while not condition():
        assert reactor.seconds() - began < seconds, "it never came"
        turned: Deferred[None] = Deferred()
        reactor.callLater(0.002, turned.callback, None)
        await turned
    return float(reactor.seconds() - began)


class Heard:
    """What a dial said."""

    def __init__(self, address: ServerAddress, whom: Meeting) -> None:
        self.words: list[Any] = []
        self.dial = Dial(
            reactor,
            whom,
            address,
            refused=lambda _: self.words.append("refused"),
            failed=lambda _, text: self.words.append(text),
            heard=lambda _, events: self.words.extend(events),
            revoked=lambda: self.words.append("revoked"),
        )


@pytest_twisted.ensureDeferred
async def test_a_killed_server_is_out_of_the_zone_within_a_second(tmp_path: Path) -> None:
    child = Child(tmp_path, OURS)
    address = ServerAddress(HOST, await child.port)
    store = Store(tmp_path / "state.sqlite", reactor)
    store.open()
    (tmp_path / "demo.test.zone").write_text(ZONE)
    zonefiles = Zonefiles(tmp_path, store, reactor)
    zonefiles.load()
    laid: list[int] = []
    change = zonefiles.change

    def counted(
        changes: Iterable[LiveChange], sets: Callable[[], Sets] | None = None
    ) -> Deferred[None]:
        in_service = change(changes, sets)
        laid.append(len(zonefiles._live))
        return in_service

    zonefiles.change = counted  # type: ignore[method-assign]
    other = ServerAddress(ELSEWHERE)
    registry = Registry(reactor, store, zonefiles, listed=[address, other], private_addresses=True)
    registry.startService()
    registry.joined([other], "other", "1", {})
    watcher = Watcher(reactor, registry, [address], meeting())
    watcher.startService()

    def published() -> list[str]:
        servers = registry.status()["servers"]
        return [server["address"] for server in servers if server["published"]]

    try:
        await until(lambda: published() == [str(address), str(other)])
        assert registry.knows(WWW)
        laid.clear()
        child.process.signalProcess("KILL")
        assert await until(lambda: published() == [str(other)]) < 1.0
        assert laid == [1]
    finally:
        watcher.stopService()
        registry.stopService()
        await child.kill()
        await store.close()


@pytest_twisted.ensureDeferred
async def test_nobody_listens() -> None:
    with_nobody = ServerAddress(HOST, 1)
    heard = Heard(with_nobody, meeting())
    await until(lambda: heard.words)
    assert heard.words == ["refused"]


@pytest_twisted.ensureDeferred
async def test_a_revoked_server_is_refused_in_words(tmp_path: Path) -> None:
    revoked = RevocationList(1, frozenset({OURS.certificate.serial_number}))
    child = Child(tmp_path, OURS)
    address = ServerAddress(HOST, await child.port)
    try:
        heard = Heard(address, meeting(revoked))
        await until(lambda: len(heard.words) == 2)
        assert heard.words[0] == "revoked"
        assert "was revoked" in heard.words[1]
    finally:
        await child.kill()


@pytest.mark.parametrize(
    ("names", "ca", "words"),
    [
        ("tunnel.test", CA, "is for another name"),
        (SERVICE_NAME, OTHER_CA, "issued by another CA"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_not_our_server_is_no_server(
    tmp_path: Path, names: str, ca: Credential, words: str
) -> None:
    credential = issue_server(
        ca, server_id="s1", service_name=names, addresses=[HOST], wall=datetime.now(UTC)
    )
    child = Child(tmp_path, credential, ca)
    address = ServerAddress(HOST, await child.port)
    try:
        heard = Heard(address, meeting())
        await until(lambda: heard.words)
        assert words in heard.words[0]
    finally:
        await child.kill()


@pytest_twisted.ensureDeferred
async def test_a_server_refuses_a_nameserver_in_words(tmp_path: Path) -> None:
    child = Child(tmp_path, OURS)
    address = ServerAddress(HOST, await child.port)
    posing = Meeting(
        reactor,
        nameserver_id="ns1",
        service_name=SERVICE_NAME,
        identity=lambda: (CLIENT, CA.certificate),
        revocations=KeptList(CA),
    )
    try:
        heard = Heard(address, posing)
        await until(lambda: heard.words)
        (words,) = heard.words
        assert "not of a nameserver" in words
    finally:
        await child.kill()


@pytest_twisted.ensureDeferred
async def test_a_dial_that_is_dropped_says_nothing_more(tmp_path: Path) -> None:
    child = Child(tmp_path, OURS)
    address = ServerAddress(HOST, await child.port)
    try:
        early = Heard(address, meeting())
        early.dial.drop()
        watched = Heard(address, meeting())
        await until(lambda: len(watched.words) == 2)
        watched.dial.drop()
        await child.kill()
        last = Heard(address, meeting())
        await until(lambda: last.words)
        assert early.words == []
        assert len(watched.words) == 2
    finally:
        await child.kill()
