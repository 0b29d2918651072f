from __future__ import annotations

from pathlib import Path
from typing import Any

import dns.message
from twisted.internet.task import Clock

from appliance.dns.notify import Secondary
from appliance.service.nameserver.notifier import Notifier
from appliance.service.nameserver.zonefiles import Zonefiles
from appliance.service.store import Store

ZONE = "$ORIGIN demo.test.\n$TTL 300\n@ SOA ns1 hostmaster {} 1 1 1 1\n@ NS ns1\nns1 A 192.0.2.53\n"
ONE = Secondary("192.0.2.1", 53, None)
SIX = Secondary("2001:db8::1", 53, None)


class _Network(Clock):
    """A clock that sends datagrams into a list."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[bytes, tuple[str, int]]] = []
        self.interfaces: list[str] = []
        self.protocols: list[Any] = []
        self.fails = False

    def listenUDP(self, port: int, protocol: Any, interface: str = "") -> None:
        self.interfaces.append(interface)
        self.protocols.append(protocol)
        protocol.transport = self

    def write(self, octets: bytes, address: tuple[str, int]) -> None:
        if self.fails:
            raise OSError("no route")
        self.sent.append((octets, address))

    def stopListening(self) -> None:
        self.interfaces.append("stopped")


class _Site:
    def __init__(self, directory: Path, *secondaries: Secondary, hosts: tuple[str, ...] = ()) -> None:
        self.network = _Network()
        self.store = Store(directory / "state", self.network)
        self.store.open()
        self.file = directory / "demo.zone"
        self.file.write_text(ZONE.format(1))
        self.zonefiles = Zonefiles(directory, self.store, self.network, wall=lambda: 1_800_000_000.0)
        self.zonefiles.load()
        self.notifier = Notifier(self.network, self.zonefiles, secondaries, hosts)
        self.notifier.startService()

    def reload(self) -> None:
        self.file.write_text(ZONE.format(1) + "www A 192.0.2.1\n")
        assert not self.zonefiles.reload()

    def stop(self) -> None:
        self.notifier.stopService()
        self.store.close()
        assert not self.network.getDelayedCalls()


def test_the_start_and_every_version_are_told(tmp_path: Path) -> None:
    site = _Site(tmp_path, ONE, SIX, hosts=("192.0.2.7", "192.0.2.8"))
    assert site.network.interfaces == ["192.0.2.7", "::"] or site.network.interfaces == ["::", "192.0.2.7"]
    assert [address for _, address in site.network.sent] == [(ONE.host, 53), (SIX.host, 53)]
    site.reload()
    assert len(site.network.sent) == 2
    site.network.advance(1.0)
    assert len(site.network.sent) == 4, "a second later"
    read = dns.message.from_wire(site.network.sent[-1][0])
    serial = next(iter(site.zonefiles.responder.zones.values())).serial
    assert read.answer[0][0].serial == serial
    assert [one["serial"] for one in site.notifier.status()] == [None, None]
    for octets, (host, port) in site.network.sent[2:]:
        answer = dns.message.make_response(dns.message.from_wire(octets)).to_wire()
        site.network.protocols[0].datagramReceived(answer, (host, port))
    assert [one["serial"] for one in site.notifier.status()] == [serial, serial]
    site.network.advance(100.0)
    assert len(site.network.sent) == 4
    assert site.notifier.counters == {"sent": 4, "answered": 2}
    site.stop()
    assert site.network.interfaces.count("stopped") == 2


def test_refusals_and_silence_are_told_in_few_lines(tmp_path: Path, lines: list[str]) -> None:
    site = _Site(tmp_path, ONE)
    octets, _ = site.network.sent[0]
    answer = dns.message.make_response(dns.message.from_wire(octets))
    answer.set_rcode(dns.rcode.Rcode.NOTAUTH)
    site.network.protocols[0].datagramReceived(b"nothing", (ONE.host, 53))
    site.network.protocols[0].datagramReceived(answer.to_wire(), (ONE.host, 53))
    assert [line for line in lines if "NOTIFY" in line] == [
        "192.0.2.1:53: the secondary refuses NOTIFY of demo.test: the answer is rcode 9"
    ]
    site.network.fails = True
    site.reload()
    for _ in range(100):
        site.network.advance(1.0)
    assert lines[-1].startswith("192.0.2.1:53: the secondary does not answer NOTIFY of demo.test")
    assert site.notifier.counters == {
        "sent": 7, "refused": 1, "answers to nothing": 1, "not sent": 6, "given up": 1,
    }  # fmt: skip
    site.stop()


def test_without_secondaries_nothing_is_opened(tmp_path: Path) -> None:
    site = _Site(tmp_path)
    site.reload()
    assert not site.network.interfaces
    site.stop()
