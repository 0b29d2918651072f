from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.tsig
import dns.update
import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from appliance.dns import names
from appliance.dns.followed import Asked
from appliance.dns.numbers import MX, TXT, A
from appliance.dns.policy import Kind, Policy
from appliance.dns.serial import is_newer
from appliance.dns.tsig import Key, Signed, check
from appliance.dns.update import UpdateAsked, read_update
from appliance.dns.zone import RRset, Zone
from appliance.service.nameserver import updates as updates_module
from appliance.service.nameserver.tcp import TcpNameserver
from appliance.service.nameserver.udp import _Datagrams
from appliance.service.nameserver.updates import Updates
from appliance.service.nameserver.zonefiles import Zonefiles
from appliance.service.store import Store, StoreFailed
from tests.service.nameserver.demo import framed, unframed
from tests.service.nameserver.test_tcp import _Transport

APEX = names.from_text("demo.test")
WWW = names.from_text("www.demo.test")
LIVE = RRset(names.from_text("live.demo.test"), A, 15, (b"\x0a\x05\x00\x05",))
TEXT = """$ORIGIN demo.test.
$TTL 300
@ SOA ns1 hostmaster 1 3600 600 86400 300
@ NS ns1
ns1 A 192.0.2.53
www A 192.0.2.80
"""
KEY = Key(names.from_text("k1"), names.from_text("hmac-sha256"), bytes(32))
OTHER_KEY = Key(names.from_text("k2"), names.from_text("hmac-sha256"), bytes(32))
KEYS = {key.name: key for key in (KEY, OTHER_KEY)}


class Site:
    """One zone, a store, and who updates it."""

    def __init__(self, base: Path) -> None:
        self.directory = base / "zones"
        self.directory.mkdir()
        self.file = self.directory / "demo.zone"
        self.file.write_text(TEXT)
        self.clock = Clock()
        self.wall = 1_800_000_000.0
        self._state = base / "state.db"
        self._id = 0
        self.start()

    def start(self) -> None:
        self.store = Store(self._state, self.clock)
        self.store.open()
        self.zonefiles = Zonefiles(self.directory, self.store, self.clock, wall=lambda: self.wall)
        self.zonefiles.load()
        self.zonefiles.lay({(LIVE.name, A): LIVE})
        policies = {KEY.name: (Policy(Kind.UPDATE),)}
        self.updates = Updates(self.clock, self.store, self.zonefiles, policies, wall=lambda: self.wall)

    def restart(self) -> None:
        self.store.close()
        self.start()

    @property
    def zone(self) -> Zone:
        return self.zonefiles.responder.zones[APEX]

    def asked(self, *steps: tuple[Any, ...], key: Key = KEY) -> UpdateAsked:
        self._id += 1
        message = dns.update.UpdateMessage("demo.test", id=self._id)
        for verb, *arguments in steps:
            getattr(message, verb)(*arguments)
        message.use_tsig(dns.tsig.Key(names.to_text(key.name), key.secret, "hmac-sha256"))
        octets = message.to_wire()
        signed = check(octets, KEYS, int(self.wall))
        assert isinstance(signed, Signed), signed
        return UpdateAsked(signed, read_update(signed.message, APEX), octets[: 12 + len(APEX) + 4])

    def update(self, *steps: tuple[Any, ...], key: Key = KEY) -> str:
        return answer(self.updates.update(self.asked(*steps, key=key)))


def answer(done: Deferred[bytes]) -> str:
    """The rcode of an answer that is there."""
    answers: list[bytes] = []
    done.addCallback(answers.append)
    (octets,) = answers
    return dns.rcode.to_text(dns.rcode.Rcode(octets[3] & 0xF))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)  # dnspython signs with it
    site = Site(tmp_path)
    yield site
    site.store.close()


NEW = ("add", "new", 60, "A", "192.0.2.1")


def rdatas(site: Site, name: str, rtype: int = A) -> int:
    rrset = site.zone.node(names.from_text(name)).get(rtype)
    return len(rrset.rdatas) if rrset else 0


def test_a_change_is_served_at_a_new_serial_and_after_a_restart(site: Site) -> None:
    before = site.zone.serial
    assert site.update(("absent", "new"), NEW, ("delete", "www")) == "NOERROR"
    assert rdatas(site, "new.demo.test") == 1
    assert WWW not in site.zone.rrsets
    assert is_newer(site.zone.serial, before)
    assert rdatas(site, "live.demo.test") == 1
    (change,) = (site.zonefiles.journal(APEX).since(before) or ())[-1:]
    assert {rrset.name for rrset in (*change.removed, *change.added)} == {
        WWW,
        names.from_text("new.demo.test"),
    }
    last = site.zone.serial
    site.restart()
    assert rdatas(site, "new.demo.test") == 1
    assert WWW not in site.zone.rrsets
    assert is_newer(site.zone.serial, last)
    assert site.file.read_text() == TEXT
    assert site.updates.counters == {}


def test_a_refused_one_changes_nothing(site: Site) -> None:
    zone = site.zone
    assert site.update(("present", "nosuch"), NEW) == "NXDOMAIN"
    assert site.update(NEW, ("add", "live", 60, "A", "192.0.2.1")) == "REFUSED"
    assert site.update(NEW, key=OTHER_KEY) == "REFUSED"
    assert site.update() == "NOERROR"
    assert site.update(("delete", "nosuch")) == "NOERROR"
    assert site.zone is zone
    assert site.updates.counters == {"refused": 3, "done": 2}


def test_live_records_and_updates_do_not_disturb_each_other(site: Site) -> None:
    site.update(("add", "live", 60, "MX", "10 mail.demo.test."))
    assert set(site.zone.node(LIVE.name)) == {A, MX}
    site.zonefiles.lay({})
    assert set(site.zone.node(LIVE.name)) == {MX}
    site.zonefiles.lay({(LIVE.name, A): LIVE})
    site.update(("delete", "live"))
    assert set(site.zone.node(LIVE.name)) == {A}


def test_an_edit_of_the_file_wins_where_it_says_something_else(site: Site) -> None:
    site.update(NEW, ("add", "www", 300, "A", "192.0.2.81"), ("add", "www", 300, "TXT", "x"))
    site.file.write_text(TEXT.replace("192.0.2.80", "192.0.2.99") + "more A 192.0.2.100\n")
    assert site.zonefiles.reload() == []
    assert site.zone.node(WWW)[A].rdatas == (b"\xc0\x00\x02\x63",)
    assert rdatas(site, "www.demo.test", TXT) == 1
    assert rdatas(site, "new.demo.test") == 1
    assert rdatas(site, "more.demo.test") == 1
    site.restart()
    assert site.zone.node(WWW)[A].rdatas == (b"\xc0\x00\x02\x63",)
    assert rdatas(site, "new.demo.test") == 1
    site.file.write_text(TEXT)  # back: what was overruled once does not come back
    site.zonefiles.reload()
    assert site.zone.node(WWW)[A].rdatas == (b"\xc0\x00\x02\x50",)


def test_an_edit_while_the_appliance_was_stopped(site: Site) -> None:
    site.update(NEW, ("add", "www", 300, "A", "192.0.2.81"))
    site.store.close()
    site.file.write_text(TEXT.replace("www A 192.0.2.80\n", ""))
    site.start()
    assert WWW not in site.zone.rrsets
    assert rdatas(site, "new.demo.test") == 1


def test_a_bad_file_keeps_the_old_one_and_its_amendments(site: Site) -> None:
    site.update(NEW)
    site.file.write_text(TEXT + "bad A 192.0.2.999\n")
    assert site.zonefiles.reload()
    assert rdatas(site, "new.demo.test") == 1
    assert site.update(("delete", "new")) == "NOERROR"
    assert rdatas(site, "new.demo.test") == 0


def test_the_same_message_again_is_answered_and_not_done_again(site: Site) -> None:
    asked = site.asked(NEW)
    assert answer(site.updates.update(asked)) == "NOERROR"
    assert site.update(("delete", "new")) == "NOERROR"
    assert answer(site.updates.update(asked)) == "NOERROR"
    assert rdatas(site, "new.demo.test") == 0
    site.restart()
    assert answer(site.updates.update(asked)) == "NOERROR"
    assert rdatas(site, "new.demo.test") == 0
    refused = site.asked(("present", "later"), NEW)
    assert answer(site.updates.update(refused)) == "NXDOMAIN"
    site.update(("add", "later", 60, "A", "192.0.2.1"))
    assert answer(site.updates.update(refused)) == "NXDOMAIN"
    assert rdatas(site, "new.demo.test") == 0


def test_the_same_message_in_the_last_second_of_its_signature(site: Site) -> None:
    asked = site.asked(NEW)
    assert answer(site.updates.update(asked)) == "NOERROR"
    site.update(("delete", "new"))
    site.wall += 300.5
    assert answer(site.updates.update(asked)) == "NOERROR"
    assert rdatas(site, "new.demo.test") == 0


def test_what_is_remembered_ends_with_the_signature(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates_module, "MAX_REMEMBERED", 2)
    site.update(NEW)
    site.update(("delete", "new"))
    assert site.update(NEW) == "SERVFAIL"
    assert site.updates.counters["too many"] == 1
    late = site.asked(NEW)
    site.wall += 601
    assert answer(site.updates.update(late)) == "NOERROR"
    assert len(site.store.accepted()) == 0
    site.restart()
    assert len(site.store.accepted()) == 1


class Slow:
    """A store whose disk answers when the test says so."""

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        self._amend = site.store.amend
        self.waiting: list[tuple[Deferred[None], Callable[[], Deferred[None]]]] = []
        monkeypatch.setattr(site.store, "amend", self.amend)

    def amend(self, *arguments: Any, **named: Any) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self.waiting.append((done, lambda: self._amend(*arguments, **named)))
        return done

    def write(self) -> None:
        done, write = self.waiting.pop(0)
        write().addCallback(done.callback)

    def fail(self) -> None:
        self.waiting.pop(0)[0].errback(StoreFailed("the disk is full"))


def test_nothing_is_served_or_answered_before_the_disk_has_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Slow(site, monkeypatch)
    first_asked = site.asked(NEW)
    first = site.updates.update(first_asked)
    again = site.updates.update(first_asked)
    second = site.updates.update(site.asked(("present", "new"), ("delete", "new")))
    assert not first.called
    assert not second.called
    assert rdatas(site, "new.demo.test") == 0
    site.zonefiles.lay({})  # a live change does not wait
    disk.write()
    assert answer(first) == "NOERROR"
    assert answer(again) == "NOERROR"
    assert rdatas(site, "new.demo.test") == 1
    assert not second.called
    disk.write()
    assert answer(second) == "NOERROR"
    assert rdatas(site, "new.demo.test") == 0


def test_a_full_disk_refuses_the_change_and_the_next_one_may_succeed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Slow(site, monkeypatch)
    zone = site.zone
    asked = site.asked(NEW)
    first, second = (
        site.updates.update(asked),
        site.updates.update(site.asked(("add", "b", 60, "A", "192.0.2.2"))),
    )
    disk.fail()
    assert answer(first) == "SERVFAIL"
    assert site.zone is zone
    again = site.updates.update(asked)
    disk.write()
    assert answer(second) == "NOERROR"
    disk.write()
    assert answer(again) == "NOERROR"
    assert rdatas(site, "new.demo.test") == rdatas(site, "b.demo.test") == 1


def test_an_edit_while_the_disk_writes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Slow(site, monkeypatch)
    done = site.updates.update(site.asked(NEW, ("add", "www", 300, "A", "192.0.2.81")))
    site.file.write_text(TEXT.replace("192.0.2.80", "192.0.2.99"))
    site.zonefiles.reload()
    disk.write()
    assert answer(done) == "NOERROR"
    assert rdatas(site, "new.demo.test") == 1
    assert site.zone.node(WWW)[A].rdatas == (b"\xc0\x00\x02\x63",)


def test_a_zone_that_goes_while_the_disk_writes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Slow(site, monkeypatch)
    first = site.updates.update(site.asked(NEW))
    second = site.updates.update(site.asked(("delete", "new")))
    site.file.rename(site.directory / "demo.old")
    (site.directory / "other.zone").write_text(TEXT.replace("demo.test", "other.test"))
    site.zonefiles.reload()
    disk.write()
    assert answer(first) == "NOERROR"
    assert answer(second) == "NOTAUTH"
    (site.directory / "demo.old").rename(site.file)
    site.zonefiles.reload()
    assert rdatas(site, "new.demo.test") == 1


def test_who_asks_too_much_at_once_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Slow(site, monkeypatch)
    steps = [("add", f"n{number}", 60, "A", "192.0.2.1") for number in range(updates_module.MAX_WAITING)]
    waiting = [site.updates.update(site.asked(step)) for step in steps]
    assert site.update(NEW) == "SERVFAIL"
    for _ in waiting:
        disk.write()
    assert {answer(done) for done in waiting} == {"NOERROR"}
    assert rdatas(site, "n99.demo.test") == 1
    done = site.updates.update(site.asked(NEW))
    disk.write()
    assert answer(done) == "NOERROR"


def test_a_mistake_of_ours_costs_one_update(
    site: Site, monkeypatch: pytest.MonkeyPatch, logged_errors: list[Any]
) -> None:
    monkeypatch.setattr(updates_module, "changed", lambda *_, **__: 1 / 0)
    assert site.update(NEW) == "SERVFAIL"
    (error,) = logged_errors
    assert error["log_failure"].check(ZeroDivisionError)
    logged_errors.clear()
    monkeypatch.undo()
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    assert site.update(NEW) == "NOERROR"


class Answering:
    """A responder to which every message is the same UPDATE."""

    def __init__(self, asked: UpdateAsked) -> None:
        self._asked = asked

    def respond(self, message: bytes, **_: object) -> object:
        return self._asked if message[2] >> 3 else b"answer"


UPDATE, QUERY = b"\x00\x01\x28", b"\x00\x01\x00"


class Socket:
    """A kernel with one datagram."""

    def __init__(self) -> None:
        self.waiting = [UPDATE]
        self.sent: list[tuple[bytes, object]] = []

    def recvfrom(self, octets: int) -> tuple[bytes, tuple[str, int]]:
        if not self.waiting:
            raise BlockingIOError
        return self.waiting.pop(), ("192.0.2.1", 4000)

    def sendto(self, answer: bytes, where: object) -> None:
        self.sent.append((answer, where))


def test_over_udp_the_answer_goes_to_who_asked_when_it_is_there(site: Site) -> None:
    done: Deferred[bytes] = Deferred()
    responder: Any = Answering(site.asked(NEW))
    fake: Any = Socket()
    counters: Counter[str] = Counter()
    _Datagrams(fake, responder, counters, lambda: 0.0, lambda: 0.0, lambda _: done).doRead()
    assert fake.sent == []
    done.callback(b"done")
    assert fake.sent == [(b"done", ("192.0.2.1", 4000))]
    closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    closed.close()
    late = _Datagrams(closed, responder, counters, lambda: 0.0, lambda: 0.0)
    late._send(b"done", ("127.0.0.1", 4000))
    assert counters == {"send Bad file descriptor": 1}


class Connected:
    """A connection over TCP to somebody whose updates are done when the test says so."""

    def __init__(self, site: Site) -> None:
        self.doing: list[Deferred[bytes]] = []
        responder: Any = Answering(site.asked(NEW))
        self.nameserver = TcpNameserver(site.clock, responder, "127.0.0.1", 0, update=self.update)
        factory: Any = self.nameserver._factory
        self.protocol: Any = factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 4000))
        self.transport = _Transport(self.protocol)
        self.protocol.makeConnection(self.transport)

    def update(self, asked: Asked) -> Deferred[bytes]:
        self.doing.append(Deferred())
        return self.doing[-1]

    def answers(self) -> list[bytes]:
        return unframed(self.transport.value())  # type: ignore[no-untyped-call]


def test_over_tcp_other_answers_do_not_wait(site: Site) -> None:
    peer = Connected(site)
    peer.protocol.dataReceived(framed(UPDATE, QUERY, UPDATE, QUERY))
    assert peer.answers() == [b"answer"] * 2
    peer.doing[1].callback(b"second")
    peer.doing[0].callback(b"first")
    assert peer.answers() == [b"answer"] * 2 + [b"second", b"first"]
    peer.protocol.readConnectionLost()
    assert peer.nameserver.connections == 0


def test_over_tcp_a_half_close_waits_for_the_answers(site: Site) -> None:
    peer = Connected(site)
    peer.protocol.dataReceived(framed(UPDATE, UPDATE))
    peer.protocol.readConnectionLost()
    assert peer.nameserver.connections == 1
    peer.doing[0].callback(b"first")
    assert peer.nameserver.connections == 1
    peer.doing[1].callback(b"second")
    assert peer.answers() == [b"first", b"second"]
    assert peer.nameserver.connections == 0


def test_over_tcp_a_peer_that_is_gone_gets_nothing(site: Site) -> None:
    peer = Connected(site)
    peer.protocol.dataReceived(framed(UPDATE))
    peer.protocol.connectionLost(None)
    peer.doing[0].callback(b"first")
    assert peer.answers() == []
    assert peer.nameserver.connections == 0


def test_without_keys_everything_is_refused(site: Site) -> None:
    assert answer(updates_module.refused(site.asked(NEW))) == "REFUSED"


def test_amendments_are_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates_module, "MAX_AMENDMENTS", 2)
    assert site.update(NEW, ("add", "b", 60, "A", "192.0.2.2")) == "NOERROR"
    assert site.update(("add", "c", 60, "A", "192.0.2.2")) == "REFUSED"
    assert site.update(("add", "b", 60, "A", "192.0.2.3")) == "NOERROR"
