"""Announcing to several nameservers: when, with which key, and what is said of it; on a clock."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock

from appliance.dns import names
from appliance.dns.numbers import NOERROR, REFUSED, SERVFAIL
from appliance.dns.responder import Responder
from appliance.dns.update import UpdateAsked
from appliance.dns.updatelease import lease_option
from appliance.fleet.announcement import Announcement, read_update
from appliance.fleet.serverkeys import ServerKeys, key_name, key_of
from appliance.service.server import announcer as module
from appliance.service.server.announcer import Announcer
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import Introduction, NameserverKey
from tests.dns.asking import zone

EPOCH = 1_800_000_000.0
BAD_TIME = "our signature was refused: BADTIME: its clock or ours is wrong by more than 5 minutes"
HERE = (ServerAddress("203.0.113.9"),)
SECRETS = {"ns1": bytes(32), "ns2": bytes(range(32)), "two": bytes(32)}
AT = {
    "ns1": (ServerAddress("192.0.2.1", 5353),),
    "ns2": (ServerAddress("192.0.2.2", 53),),
    "two": (ServerAddress("192.0.2.7", 53), ServerAddress("192.0.2.1", 5353)),
}


class Nameserver:
    """Answers announcements as it is told."""

    def __init__(self, secret: bytes) -> None:
        self.responder = Responder([zone("", "demo.test")])
        self.responder.introducers = ServerKeys(secret)
        self.rcode = NOERROR
        self.lag = 0.0
        self.heard: list[Announcement] = []

    def answer(self, octets: bytes, wall: float) -> bytes:
        asked = self.responder.respond(octets, udp=True, source="203.0.113.9", now=0.0, wall=wall + self.lag)
        if isinstance(asked, UpdateAsked):
            self.heard.append(read_update(asked.update, "s2"))
            return asked.answer(self.rcode, wall + self.lag, lease_option(60))
        assert isinstance(asked, bytes)
        return asked


class Network:
    """In the place of Asking: an answer comes after 10 ms, or silence ends after 2 s."""

    def __init__(self, clock: Clock, up: dict[str, Nameserver]) -> None:
        self.clock = clock
        self.up = up
        self.asked: list[tuple[float, str, int]] = []
        self.messages: list[bytes] = []

    def __call__(
        self,
        reactor: Any,
        host: str,
        port: int,
        message: bytes,
        *,
        heard: Callable[[bytes], bool],
        ended: Callable[[str | None], None],
    ) -> Any:
        self.asked.append((round(self.clock.seconds(), 2), host, port))
        self.messages.append(message)

        def answer() -> None:
            nameserver = self.up[host]
            is_heard = heard(nameserver.answer(message, EPOCH + self.clock.seconds()))
            ended(None if is_heard else "no answer")

        if host in self.up:
            call = self.clock.callLater(0.01, answer)
        else:
            call = self.clock.callLater(2.0, ended, "no answer")

        class Asked:
            def stop(self) -> None:
                if call.active():
                    call.cancel()

        return Asked()


class Lookups:
    """In the place of Nameservers: the test says what is found."""

    def __init__(self, reactor: Any, zone: str, asked: Any, found: Any) -> None:
        self.zone, self.asked, self.found = zone, asked, found
        self.running = False

    def startService(self) -> None:
        self.running = True

    def stopService(self) -> None:
        self.running = False


class Site:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.ns1, self.ns2 = Nameserver(SECRETS["ns1"]), Nameserver(SECRETS["ns2"])
        self.network = Network(self.clock, {"192.0.2.1": self.ns1, "192.0.2.2": self.ns2})
        monkeypatch.setattr(module, "Asking", self.network)
        monkeypatch.setattr(module, "Nameservers", Lookups)
        self.made: list[Announcer] = []

    def start(self, *known: str, **more: Any) -> Announcer:
        keys = tuple(
            NameserverKey(one, AT[one], base64.b64encode(key_of(SECRETS[one], "s2", 7).secret).decode())
            for one in known or ("ns1", "ns2")
        )
        introduction = Introduction("demo.test", names.to_text(key_name("s2", 7)), keys)
        made = Announcer(
            self.clock,
            server_id="s2",
            boot="b1",
            addresses=HERE,
            introduction=introduction,
            chance=lambda: 0.0,
            wall=lambda: EPOCH + self.clock.seconds(),
            **more,
        )
        made.startService()
        self.made.append(made)
        return made

    def run(self, seconds: float) -> None:
        self.clock.pump([0.01] * round(seconds * 100))

    def hosts(self) -> list[str]:
        return [host for _, host, _ in self.network.asked]

    def times(self, host: str) -> list[float]:
        return [when for when, asked, _ in self.network.asked if asked == host]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(monkeypatch)
    yield site
    for one in site.made:
        one.stopService()
    assert not site.clock.getDelayedCalls()


def test_every_nameserver_at_once_and_again_at_80_percent(site: Site) -> None:
    announcer = site.start()
    site.run(100)
    assert site.times("192.0.2.1") == pytest.approx([0.0, 48.01, 96.02], abs=0.02)
    assert site.times("192.0.2.2") == pytest.approx([0.0, 48.01, 96.02], abs=0.02)
    assert [said.n for said in site.ns1.heard] == [1, 3, 5]
    assert {(said.boot, said.addresses) for said in site.ns2.heard} == {("b1", HERE)}
    first, _ = announcer.status()
    assert first == {
        "nameserver": "ns1",
        "addresses": ["192.0.2.1:5353"],
        "answer": "taken",
        "seconds": pytest.approx(4, abs=0.1),
    }


def test_silence_is_tried_again_every_two_seconds_at_the_next_address(site: Site) -> None:
    del site.network.up["192.0.2.1"]
    site.start("ns1", nameservers=())
    site.run(7)
    assert site.times("192.0.2.1") == pytest.approx([0, 2, 4, 6], abs=0.05)
    site.network.up["192.0.2.1"] = site.ns1
    site.run(2)
    assert len(site.ns1.heard) == 1
    site.start("two")
    site.run(2.1)
    assert site.hosts()[-2:] == ["192.0.2.7", "192.0.2.1"]
    assert len(site.ns1.heard) == 2


def test_an_answer_is_named_once_and_again_when_it_changes(site: Site, lines: list[str]) -> None:
    site.ns1.rcode = REFUSED
    site.ns2.lag = -400.0
    announcer = site.start()
    site.run(40)
    assert [one["answer"] for one in announcer.status()] == [
        "REFUSED",
        BAD_TIME,
    ]
    site.ns1.rcode = SERVFAIL
    site.run(20)
    site.ns2.lag = 0.0  # the clock is right again: known within 2 s
    site.run(2.1)
    site.ns1.rcode = NOERROR
    site.run(20)
    assert [line for line in lines if "announce" in line] == [
        "nameserver ns1 does not take what we announce: REFUSED",
        f"nameserver ns2 does not take what we announce: {BAD_TIME}",
        "nameserver ns1 does not take what we announce: SERVFAIL",
        "nameserver ns2 takes what we announce",
        "nameserver ns1 takes what we announce",
    ]


def test_no_message_is_sent_twice(site: Site) -> None:
    del site.network.up["192.0.2.2"]
    site.start()
    site.run(60)
    assert len(set(site.network.messages)) == len(site.network.messages) > 25


def test_the_ns_set_adds_whom_the_enrolment_does_not_know(site: Site) -> None:
    announcer = site.start("ns1")
    lookups: Any = announcer._nameservers
    site.run(0.1)
    assert (lookups.zone, lookups.running) == ("demo.test", True)
    assert lookups.asked() == [("192.0.2.1", 5353)]
    # ns1 under its name, one that moved (it has ns1's key) and one that is known to nobody.
    moved = site.network.up["192.0.2.8"] = Nameserver(SECRETS["ns1"])
    stranger = site.network.up["2001:db8::3"] = Nameserver(b"x" * 32)
    lookups.found(
        {"ns1.demo.test": ("192.0.2.1",), "a.test": ("192.0.2.8",), "b.test": ("2001:db8::3",), "c.test": ()}
    )
    site.run(0.1)
    assert [one["nameserver"] for one in announcer.status()] == ["ns1", "a.test", "b.test"]
    assert (len(site.ns1.heard), len(moved.heard), len(stranger.heard)) == (1, 1, 0)
    assert ("2001:db8::3", 53) in {(host, port) for _, host, port in site.network.asked}
    assert "BADSIG" in announcer.status()[2]["answer"]
    assert lookups.asked()[-1] == ("2001:db8::3", 53)  # who takes what we say is asked first
    lookups.found({"ns1.demo.test": ("192.0.2.1",)})
    assert [one["nameserver"] for one in announcer.status()] == ["ns1"]
    heard = len(moved.heard)
    site.run(60)
    assert len(moved.heard) == heard


def test_a_configured_list_is_all_that_is_told(site: Site) -> None:
    listed = (ServerAddress("192.0.2.2", 53), ServerAddress("192.0.2.1", 5300))
    announcer = site.start(nameservers=listed)
    site.run(3)
    assert announcer._nameservers is None
    assert [one["answer"] for one in announcer.status()] == ["taken", "taken"]
    assert ("192.0.2.1", 5300) in {(host, port) for _, host, port in site.network.asked}
    # One that is at another address than when the server was enrolled: its key is found.
    site.network.up["192.0.2.77"] = moved = Nameserver(SECRETS["ns2"])
    site.start(nameservers=(ServerAddress("192.0.2.77", 53),))
    site.run(3)
    assert len(moved.heard) == 1


def test_a_nameserver_in_this_very_appliance_is_not_told(site: Site) -> None:
    announcer = site.start(own=("192.0.2.2",))
    lookups: Any = announcer._nameservers
    lookups.found({"ns2.demo.test": ("192.0.2.2",)})
    site.run(1)
    assert site.hosts() == ["192.0.2.1"]


def test_after_the_end_nothing_is_said(site: Site) -> None:
    announcer = site.start()
    site.made.clear()
    announcer.stopService()
    said = len(site.network.asked)
    site.run(100)
    assert len(site.network.asked) == said
