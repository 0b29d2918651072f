from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import pytest
import pytest_twisted
from twisted.internet.interfaces import IReactorCore
from twisted.internet.threads import deferToThread

from appliance.service.appliance import Appliance, EnrolmentUnreadable
from appliance.service.store import StoreRefused
from appliance.settings import ApplianceSettings, Listen, NameserverSettings, ServerSettings, read_appliance
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import read_invitation
from tests.end_to_end.programs import free_port

ZONE = """\
$ORIGIN t.test.
$TTL 300
@ SOA ns1 hostmaster 1 3600 600 604800 15
@ NS ns1
ns1 A 127.0.0.1
"""


@pytest.fixture
def reactor() -> IReactorCore:
    from twisted.internet import reactor

    return reactor


@pytest.fixture
def settings(tmp_path: Path) -> ApplianceSettings:
    zones = tmp_path / "zones"
    zones.mkdir()
    (zones / "t.zone").write_text(ZONE)
    tls, http, dns_port = free_port(), free_port(), free_port()
    return ApplianceSettings(
        state=tmp_path / "state",
        nameserver=NameserverSettings(
            zones=zones, listen=(Listen("127.0.0.1", dns_port),), private_addresses=True
        ),
        server=ServerSettings(
            id="s1",
            addresses=(ServerAddress("127.0.0.1", tls),),
            tls=(Listen("127.0.0.1", tls),),
            http=(Listen("127.0.0.1", http),),
            https_port=tls,
        ),
    )


def ask(state: Path, **request: object) -> dict[str, Any]:
    """What the control socket answers; blocks."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(10)
        asking.connect(str(state / "control"))
        asking.sendall(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(asking.makefile("rb").readline())
        return answer


def texts(settings: ApplianceSettings, name: str, rtype: str) -> list[str]:
    """The rdatas of an answer; blocks. Over TCP, where asking again and again is not limited."""
    assert settings.nameserver is not None
    listen = settings.nameserver.listen[0]
    answer = dns.query.tcp(dns.message.make_query(name, rtype), listen.host, port=listen.port, timeout=10)
    return [str(rdata) for rrset in answer.answer for rdata in rrset]


@pytest_twisted.ensureDeferred
async def test_a_whole_appliance(reactor: Any, settings: ApplianceSettings, tmp_path: Path) -> None:
    appliance = Appliance(reactor, settings)
    assert not settings.state.exists()
    appliance.privilegedStartService()
    assert not settings.state.exists()
    appliance.startService()
    try:
        assert settings.server is not None
        port = settings.server.tls[0].port
        server = f'"r=superprotocol;ip=127.0.0.1;port={port}"'
        while await deferToThread(texts, settings, "t.test", "TXT") != [server]:
            pass  # the server in this process is verified within a few turns of the reactor
        invited = await deferToThread(ask, settings.state, command="invite", names=["www.t.test"])
        invitation = read_invitation(invited["result"]["invitation"])
        assert invitation.discovery == "t.test"
        assert invitation.servers == settings.server.addresses
        status = (await deferToThread(ask, settings.state, command="status"))["result"]
        assert status["server"] == "s1"
        assert [zone["zone"] for zone in status["zones"]] == ["t.test"]
        assert len(status["listening"]) == 3
        (tmp_path / "zones" / "u.zone").write_text(ZONE.replace("t.test", "u.test"))
        assert (await deferToThread(ask, settings.state, command="reload")) == {"result": {"errors": []}}
        assert await deferToThread(texts, settings, "u.test", "TXT") == [server]
        (tmp_path / "zones" / "u.zone").write_text("nonsense")
        errors = (await deferToThread(ask, settings.state, command="reload"))["result"]["errors"]
        assert "u.zone:1" in errors[0]
        assert await deferToThread(texts, settings, "u.test", "TXT") == [server]
        await published(settings, "www.t.test")
        assert await deferToThread(ask, settings.state, command="forget", name="www.t.test") == {
            "result": {"name": "www.t.test"}
        }
        assert "error" in await deferToThread(ask, settings.state, command="forget", name="www.t.test")
        assert "result" in await deferToThread(ask, settings.state, command="revoke", id="www.t.test")
    finally:
        await appliance.stopService()


@pytest_twisted.ensureDeferred
async def test_the_only_appliance_drains_at_once(reactor: Any, settings: ApplianceSettings) -> None:
    appliance = Appliance(reactor, settings)
    appliance.startService()
    try:
        await published_servers(settings)
        began = reactor.seconds()
        asked: list[bool] = []
        appliance.asked_to_drain = lambda: asked.append(True)
        assert await deferToThread(ask, settings.state, command="drain") == {"result": {"seconds": 50.0}}
        assert asked == [True]
        await appliance.drain()
        assert reactor.seconds() - began < 5  # no TTL: nobody takes over
        await published_servers(settings)  # and it was never taken out
        assert appliance.status()["draining"]["state"] == "over"
    finally:
        await appliance.stopService()


async def published_servers(settings: ApplianceSettings) -> None:
    assert settings.server is not None
    server = f'"r=superprotocol;ip=127.0.0.1;port={settings.server.tls[0].port}"'
    while await deferToThread(texts, settings, "t.test", "TXT") != [server]:
        pass


async def published(settings: ApplianceSettings, name: str) -> None:
    """Ask until the name has an address; conftest bounds it."""
    while await deferToThread(texts, settings, name, "A") != ["127.0.0.1"]:
        pass


@pytest_twisted.ensureDeferred
async def test_a_second_start(reactor: Any, settings: ApplianceSettings) -> None:
    """Serials rise, the CA stays, and two at once are refused."""
    serials, authorities = [], []
    for _ in range(2):
        appliance = Appliance(reactor, settings)
        appliance.startService()
        try:
            serials.append(int((await deferToThread(texts, settings, "t.test", "SOA"))[0].split()[2]))
            authorities.append(appliance.authority.ca)
            second = Appliance(reactor, ApplianceSettings(state=settings.state))
            with pytest.raises(StoreRefused, match="in use by another"):
                second.startService()
            await second.stopService()
        finally:
            await appliance.stopService()
    assert serials[0] < serials[1]
    assert authorities[0] == authorities[1]


@pytest_twisted.ensureDeferred
async def test_one_part_alone(reactor: Any, settings: ApplianceSettings) -> None:
    server = Appliance(reactor, ApplianceSettings(state=settings.state, server=settings.server))
    server.startService()
    try:
        assert await server.reload() == []
        answer = await deferToThread(ask, settings.state, command="forget", name="a.test")
        assert "no nameserver" in answer["error"]
        invited = await deferToThread(ask, settings.state, command="invite", names=["*.a.test"])
        assert read_invitation(invited["result"]["invitation"]).discovery == "a.test"
    finally:
        await server.stopService()
    nameserver = Appliance(reactor, ApplianceSettings(state=settings.state, nameserver=settings.nameserver))
    nameserver.startService()
    try:
        assert await deferToThread(texts, settings, "ns1.t.test", "A") == ["127.0.0.1"]
        assert nameserver.status()["server"] == ""
    finally:
        await nameserver.stopService()


@pytest_twisted.ensureDeferred
async def test_a_further_server(reactor: Any, settings: ApplianceSettings, tmp_path: Path) -> None:
    """Enrolled, started, published beside the first one, and revoked."""
    assert settings.nameserver is not None
    port = free_port()
    address = ServerAddress("127.0.0.2", port)
    first = Appliance(reactor, settings)  # which lists nobody
    first.startService()
    further: Appliance | None = None
    try:
        enrolled = await deferToThread(
            ask, settings.state, command="enroll", id="s2", addresses=[f"127.0.0.2:{port}"]
        )
        (tmp_path / "s2.toml").write_text(enrolled["result"]["enrolment"])
        (tmp_path / "appliance.toml").write_text(
            f'[server]\nenrolment = "s2.toml"\ntls = ["{address}"]\nhttp = ["127.0.0.2:{free_port()}"]\n'
        )
        further = Appliance(
            reactor, read_appliance(tmp_path / "appliance.toml", {"state": str(tmp_path / "s2")})
        )
        further.startService()
        both = {f'"r=superprotocol;ip={host};port={port}"' for host, port in every_address(settings, address)}
        while set(await deferToThread(texts, settings, "t.test", "TXT")) != both:
            pass
        assert "error" in await deferToThread(ask, tmp_path / "s2", command="invite", names=["a.test"])
        status = (await deferToThread(ask, settings.state, command="status"))["result"]
        assert [(one["server"], one["met"]) for one in status["introduced"]] == [("s2", True)]
        status = (await deferToThread(ask, tmp_path / "s2", command="status"))["result"]
        assert [(one["nameserver"], one["answer"]) for one in status["announcements"]] == [("s1", "taken")]
        assert "result" in await deferToThread(ask, settings.state, command="revoke", id="s2")
        while len(await deferToThread(texts, settings, "t.test", "TXT")) != 1:
            pass
        status = (await deferToThread(ask, settings.state, command="status"))["result"]
        assert status["introduced"] == []
        assert further.announcer is not None
        assert further.announcer.running
        further.drain()
        assert not further.announcer.running
    finally:
        if further is not None:
            await further.stopService()
        await first.stopService()


def every_address(settings: ApplianceSettings, further: ServerAddress) -> list[tuple[str, int]]:
    assert settings.server is not None
    return [(one.host, one.port) for one in (*settings.server.addresses, further)]


def test_an_enrolment_that_cannot_be_read(tmp_path: Path) -> None:
    server = ServerSettings(id="s2", enrolment=tmp_path / "absent")
    with pytest.raises(EnrolmentUnreadable, match="absent"):
        Appliance(None, ApplianceSettings(state=tmp_path, server=server))
