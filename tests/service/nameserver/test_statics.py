from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from appliance.dns import names
from appliance.dns.numbers import A
from appliance.dns.serial import is_newer
from appliance.dns.transfer import Grant, Receiver, TransferAsked
from appliance.dns.zone import RRset, Zone
from appliance.service.nameserver.statics import Statics
from appliance.service.nameserver.transfers import Transfers
from appliance.service.nameserver.zonefiles import Zonefiles
from appliance.service.store import Store
from tests.dns.transferring import KEY, Asker

TEXT = "$ORIGIN demo.test.\n$TTL 300\n@ SOA ns1 hostmaster 1 3600 600 86400 300\n@ NS ns1\nns1 A 192.0.2.53\n"
APEX = names.from_text("demo.test")
LIVE = RRset(names.from_text("live.demo.test"), A, 15, (b"\xc0\x00\x02\x01",))


class Site:
    def __init__(self, directory: Path) -> None:
        self.file = directory / "demo.zone"
        self.file.write_text(TEXT)
        self.clock = Clock()
        self.store = Store(directory / "state", self.clock)
        self.store.open()
        self.zonefiles = Zonefiles(directory, self.store, self.clock, index=2, wall=lambda: 1_800_000_000.0)
        self.statics = Statics(self.zonefiles, 2)
        self.told: list[int] = []
        self.statics.on_published(lambda zone: self.told.append(zone.serial))
        self.zonefiles.load()

    @property
    def zone(self) -> Zone:
        return self.statics.zones[APEX]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.store.close()


def test_live_records_are_not_in_it(site: Site) -> None:
    before = site.zone
    assert before.serial == site.zonefiles.zones[APEX].serial
    site.zonefiles.lay({(LIVE.name, A): LIVE})
    assert is_newer(site.zonefiles.zones[APEX].serial, before.serial)
    assert site.zone is before
    assert LIVE.name not in before.rrsets
    site.file.write_text(TEXT + "www A 192.0.2.80\n")
    assert not site.zonefiles.reload()
    assert site.zone.serial == site.zonefiles.zones[APEX].serial
    assert set(site.zone.rrsets) - set(before.rrsets) == {names.from_text("www.demo.test")}
    (change,) = site.statics.journal(APEX).since(before.serial) or ()
    assert [rrset.name for rrset in change.added] == [names.from_text("www.demo.test")]
    assert site.told == [before.serial, site.zone.serial]


def test_a_file_that_says_the_same_is_no_new_version(site: Site) -> None:
    before = site.zone
    assert not site.zonefiles.reload()
    assert site.zone is before


def test_no_serial_stands_for_two_contents(site: Site) -> None:
    """What a live record hides changes nothing that is published, but is another static version."""
    before = site.zone
    site.file.write_text(TEXT.replace("300\n@ NS", "299\n@ NS"))
    live = RRset(names.from_text("www.demo.test"), A, 15, (b"\xc0\x00\x02\x01",))
    site.zonefiles.lay({(live.name, A): live})
    site.statics._changed(before, before.serial)
    published = site.zonefiles.zones[APEX].serial
    other, _ = before.changed({names.from_text("x.demo.test"): {A: RRset(LIVE.name, A, 1, LIVE.rdatas)}})
    site.statics._changed(other, before.serial)
    assert is_newer(site.zone.serial, before.serial)
    assert site.zone.serial % 8 == 2
    assert site.zonefiles.zones[APEX].serial == published


def test_a_zone_that_is_gone(site: Site) -> None:
    site.file.rename(site.file.with_name("other.zone"))
    site.file.with_name("other.zone").write_text(TEXT.replace("demo.test", "other.test"))
    assert not site.zonefiles.reload()
    assert set(site.statics.zones) == {names.from_text("other.test")}


def test_it_is_what_a_peer_copies(site: Site) -> None:
    site.zonefiles.lay({(LIVE.name, A): LIVE})
    responder = site.zonefiles.responder
    responder.keys = {KEY.name: KEY}
    transfers = Transfers(site.clock, site.zonefiles, statics=site.statics, wall=time.time)
    for is_peer, served in ((True, site.zone), (False, site.zonefiles.zones[APEX])):
        responder.receivers = {KEY.name: Receiver((Grant(),), is_peer)}
        asker = Asker("demo.test")
        query = asker.question(1)
        asked = responder.respond(query, udp=True, source="192.0.2.1", now=0.0, wall=time.time())
        assert isinstance(asked, TransferAsked)
        assert asked.is_peer is is_peer
        message = asker.read(transfers.datagram(asked))
        assert int(message.answer[0][0].serial) == served.serial
    assert site.zone.serial != site.zonefiles.zones[APEX].serial
