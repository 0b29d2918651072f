from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from appliance.dns import names
from appliance.dns.followed import NotifyHeard
from appliance.dns.journal import Journal, difference
from appliance.dns.question import read_question
from appliance.dns.transfer import Transfer, read_transfer
from appliance.dns.tsig import Signed, check
from appliance.dns.zone import Zone
from appliance.dns.zonefile import read_zone
from appliance.service.nameserver.following import Following, Primary
from appliance.service.nameserver.zonefiles import Zonefiles
from appliance.service.store import Store, StoreFailed
from tests.dns.transferring import KEY

WALL = 1_800_000_000.0
APEX = names.from_text("demo.test")
WWW = names.from_text("www.demo.test")
TEXT = """\
$ORIGIN demo.test.
$TTL 300
@ SOA ns1 hostmaster {} 3600 600 86400 300
@ NS ns1
ns1 A 192.0.2.53
""" + "".join(f"filler{number} A 192.0.2.99\n" for number in range(30))


def zone(serial: int, records: str = "") -> Zone:
    return read_zone(TEXT.format(serial) + records, filename="z")


class Site:
    """A follower, and a primary that answers when the test says so."""

    def __init__(self, directory: Path) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.wall = WALL
        self._path = directory / "state"
        self.zones_changed = 0
        self.start()

    def start(self) -> None:
        self.store = Store(self._path, object())
        self.store.open()
        self.zonefiles = Zonefiles(None, self.store, self.reactor, index=1, wall=lambda: self.wall)
        self.zonefiles.load()
        self.following = Following(
            self.reactor,
            self.store,
            self.zonefiles,
            Primary((APEX,), (("192.0.2.1", 53), ("192.0.2.2", 53)), KEY),
            message_id=lambda: 4711,
            zones_changed=self._changed,
            wall=lambda: self.wall,
        )
        self.following.load()
        self.following.startService()

    def _changed(self) -> None:
        self.zones_changed += 1

    def stop(self) -> None:
        self.following.stopService()
        self.store.close()
        assert not self.reactor.getDelayedCalls()

    def restart(self) -> None:
        self.stop()
        self.start()

    def pass_seconds(self, seconds: float) -> None:
        self.wall += seconds
        self.reactor.advance(seconds)

    @property
    def asked(self) -> int:
        return len(self.reactor.tcpClients)

    @property
    def serial(self) -> int | None:
        found: int | None = self.following.status()[0]["serial"]
        return found

    def answer(self, served: Zone, *versions: Zone, but: int = 0) -> None:
        """What a primary says that has `served`, and before it had `versions`; `but` so many last octets."""
        changes = Journal()
        for old, new in pairwise((*versions, served)):
            changes.add(difference(old, new))
        protocol = self.reactor.tcpClients[-1][2].buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        query = transport.value()[2:]
        signed = check(query, {KEY.name: KEY}, int(self.wall))
        assert isinstance(signed, Signed)
        asked = read_transfer(query, read_question(query), signed, udp=False, source="192.0.2.9")
        transfer = Transfer(asked, served, changes)
        self.kind = transfer.kind.value
        messages = list(iter(lambda: transfer.next_message(int(self.wall)), None))
        stream = b"".join(len(message).to_bytes(2, "big") + message for message in messages)
        protocol.dataReceived(stream[: len(stream) - but])

    def refuse(self) -> None:
        self.reactor.tcpClients[-1][2].clientConnectionFailed(None, Failure(ConnectionRefusedError()))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.stop()


def test_a_zone_is_copied_kept_and_followed(site: Site) -> None:
    first, second = zone(100), zone(108, "www A 192.0.2.80\n")
    site.answer(first)
    assert (site.kind, site.serial, site.zones_changed) == ("AXFR", 100, 1)
    assert site.zonefiles.zones[APEX].serial % 8 == 1
    site.following.heard(NotifyHeard(APEX, b""))
    site.answer(second, first)
    assert (site.kind, site.serial, site.zones_changed) == ("IXFR", 108, 1)
    assert WWW in site.zonefiles.zones[APEX].rrsets
    site.restart()
    assert (site.serial, site.asked) == (108, 3)
    assert WWW in site.zonefiles.zones[APEX].rrsets
    site.answer(second)
    assert site.kind == "IXFR: up to date"
    assert site.following.status()[0]["confirmed_seconds_ago"] == 0
    site.pass_seconds(3600)
    assert site.asked == 4


def test_a_cut_transfer_is_nothing(site: Site) -> None:
    site.answer(zone(100), but=1)
    assert (site.serial, site.zonefiles.apexes) == (None, frozenset())
    site.reactor.advance(10)
    assert site.following.counters == {"failed": 1}


def test_each_address_is_asked_in_turn(site: Site) -> None:
    for seconds in (1, 2, 4):
        site.refuse()
        site.pass_seconds(seconds)
    hosts = [client[0] for client in site.reactor.tcpClients]
    assert hosts == ["192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.2"]


def test_changes_that_do_not_go_with_what_we_have(site: Site) -> None:
    site.answer(zone(100))
    site.following.ask(APEX)
    site.answer(zone(108), zone(100, "www A 192.0.2.80\n"))
    assert site.serial == 100
    site.pass_seconds(1)
    site.answer(zone(108, "www A 192.0.2.80\n"))
    assert (site.kind, site.serial) == ("AXFR", 108)


def test_a_notice_during_a_transfer_is_not_lost(site: Site) -> None:
    site.following.heard(NotifyHeard(APEX, b""))
    assert site.asked == 1
    site.answer(zone(100))
    assert site.asked == 2
    site.answer(zone(100))
    assert site.asked == 2


def test_a_zone_that_is_too_old_is_not_served(site: Site) -> None:
    site.answer(zone(100))
    site.following.ask(APEX)
    while site.reactor.seconds() < 86400 + 10:
        if site.following._copies[APEX].is_busy:
            site.refuse()
        site.pass_seconds(60)
    assert site.zonefiles.apexes == frozenset()
    assert site.zones_changed == 2
    site.restart()
    assert site.zonefiles.apexes == frozenset()
    site.answer(zone(100))
    assert site.kind == "IXFR: up to date"
    assert site.zonefiles.apexes == {APEX}


def test_a_zone_that_the_disk_does_not_let_go_is_tried_at_each_attempt(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.answer(zone(100))
    tries = []

    def full(apex: bytes) -> None:
        tries.append(site.reactor.seconds())
        raise StoreFailed("the disk is full")

    monkeypatch.setattr(site.zonefiles, "drop", full)
    site.following.ask(APEX)
    while site.reactor.seconds() < 86400 + 3600:
        if site.following._copies[APEX].is_busy:
            site.refuse()
        site.pass_seconds(60)
    assert 2 <= len(tries) <= 130  # of sixty attempts; and no turn of the reactor by itself
    assert site.following.counters["expired"] == 1
    monkeypatch.undo()
    while APEX in site.zonefiles.apexes:
        assert site.reactor.seconds() < 86400 + 7200
        if site.following._copies[APEX].is_busy:
            site.refuse()
        site.pass_seconds(60)


def test_other_zones_are_not_asked_for(site: Site) -> None:
    site.answer(zone(100))
    site.following.ask(names.from_text("other.test"))
    assert site.asked == 1
    site.following.ask_all()
    assert site.asked == 2
