"""Two real appliances as nameservers of one zone: the static content of one, the live records of each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.programs import Process, free_port, need, wait_for
from tests.end_to_end.site import Appliance, Ports

KEY = 'key "all" { algorithm hmac-sha256; secret "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="; };\n'
SECONDS = 15
BIN = Path(sys.executable).parent


class Pair:
    """A primary at 127.0.0.1 and a peer at 127.0.0.2; each is a tunnel server, too."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.ports = Ports()
        self.key = base / "all.key"
        self.key.write_text(KEY)
        self.key.chmod(0o600)
        self.primary = Appliance(base / "s1", self.ports)
        settings = base / "s1" / "appliance.toml"
        settings.write_text(
            settings.read_text() + f'[[nameserver.keys]]\nfile = "{self.key}"\nkind = "update"\n'
        )
        self.primary.start()
        self.enrolment = base / "s2.toml"
        self.said = self.primary.command(
            "enroll",
            "--nameserver",
            "s2",
            f"127.0.0.2:{self.ports.tls}",
            "--dns-port",
            str(self.ports.dns),
            "--output",
            self.enrolment,
        )
        self.peer = Appliance(base / "s2", self.ports, "127.0.0.2", enrolment=self.enrolment)
        settings = base / "s2" / "appliance.toml"
        settings.write_text(
            settings.read_text().replace(
                "[server]",
                f'[nameserver]\nprivate_addresses = true\nlisten = ["127.0.0.2:{self.ports.dns}"]\n[server]',
            )
        )

    def nsupdate(self, host: str, *lines: str, key: Path | None = None) -> str:
        script = "\n".join((f"server {host} {self.ports.dns}", "zone site.test", *lines, "send", ""))
        done = subprocess.run(
            [need("nsupdate"), "-t", "15", "-k", key or self.key],
            input=script,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=40,
        )
        return done.stdout

    def at_both(self, name: str, rtype: str, found: list[str], seconds: float = SECONDS) -> None:
        for one in (self.primary, self.peer):
            wait_for(
                lambda one=one: one.dig(name, rtype) == found,  # type: ignore[misc]
                seconds,
                f"{name} {rtype} {found} at {one.address}, which has {one.dig(name, rtype)}",
            )

    def serial(self, one: Appliance) -> int:
        (soa,) = one.dig("site.test", "SOA")
        return int(soa.split()[2])


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    pair.primary.kill()
    pair.peer.kill()


def test_one_zone_two_nameservers(pair: Pair, start: Callable[..., Process], tmp_path: Path) -> None:
    primary, peer = pair.primary, pair.peer
    assert "[nameserver]" in pair.said
    assert "NS record" in pair.said
    peer.start()
    # The static zone, and the live records of both servers at both.
    pair.at_both("static.site.test", "A", ["192.0.2.80"])
    tls = pair.ports.tls
    texts = [f'"r=superprotocol;ip=127.0.0.{host};port={tls}"' for host in (1, 2)]
    pair.at_both("site.test", "TXT", texts, 30)
    assert (pair.serial(primary) % 8, pair.serial(peer) % 8) == (0, 1)

    # NOTIFY: a file that the operator changed, and an update at the primary.
    zone = primary.directory / "zones" / "site.test.zone"
    zone.write_text(zone.read_text() + "more A 192.0.2.81\n")
    primary.command("reload")
    pair.at_both("more.site.test", "A", ["192.0.2.81"])
    assert pair.nsupdate("127.0.0.1", "update add _acme-challenge.site.test 60 TXT one") == ""
    pair.at_both("_acme-challenge.site.test", "TXT", ['"one"'])

    # An update at the peer: passed on, and at both; what the primary refuses is refused at the peer.
    assert pair.nsupdate("127.0.0.2", "update add _acme-challenge.site.test 60 TXT two") == ""
    pair.at_both("_acme-challenge.site.test", "TXT", ['"one"', '"two"'])
    wrong = pair.nsupdate("127.0.0.2", "prereq nxdomain static.site.test", "update delete static.site.test")
    assert "YXDOMAIN" in wrong
    bad = tmp_path / "bad.key"
    bad.write_text(KEY.replace("AAEC", "BBEC"))
    bad.chmod(0o600)
    assert "BADSIG" in pair.nsupdate("127.0.0.2", "update delete static.site.test", key=bad)
    assert peer.dig("static.site.test", "A") == ["192.0.2.80"]

    # Without the primary the peer serves on, also after its own restart; an update is refused.
    assert primary.process is not None
    primary.process.kill()
    pair.peer.kill()
    pair.peer.start()
    assert peer.dig("static.site.test", "A") == ["192.0.2.80"]
    assert peer.dig("_acme-challenge.site.test", "TXT") == ['"one"', '"two"']
    before = pair.serial(peer)
    assert pair.nsupdate("127.0.0.2", "update delete static.site.test") != ""
    assert peer.process is not None
    peer.process.says("an UPDATE was not passed on, for the primary does not answer")
    # And without the peer the primary takes updates, which the peer has when it is back.
    peer.kill()
    primary.start()
    assert pair.nsupdate("127.0.0.1", "update delete _acme-challenge.site.test") == ""
    peer.start()
    pair.at_both("_acme-challenge.site.test", "TXT", [])
    assert (pair.serial(peer) - before) % (1 << 32) < 1 << 31
    pair.at_both("site.test", "TXT", texts, 30)


def test_a_peer_without_a_good_key_has_no_zone(pair: Pair) -> None:
    text = pair.enrolment.read_text()
    (line,) = [one for one in text.splitlines() if one.startswith("key_secret")]
    pair.enrolment.write_text(text.replace(line, 'key_secret = "AAECAwQFBgcICQoLDA0ODw=="'))
    process = pair.peer.start()
    process.says("our signature was refused: BADSIG")
    assert pair.peer.dig("static.site.test", "A") == []
    # Taken back: the right key is no longer one.
    pair.primary.command("revoke", "s2")
    pair.enrolment.write_text(text)
    pair.peer.kill()
    pair.peer.start().says("our signature was refused: BADKEY")


def test_nsd_follows_the_peer(pair: Pair, start: Callable[..., Process]) -> None:
    nsd = need("nsd")
    key = pair.base / "follow.key"
    key.write_text(KEY.replace('"all"', '"follow"'))
    key.chmod(0o600)
    port = free_port("both")
    settings = pair.peer.directory / "appliance.toml"
    tables = f'[[nameserver.keys]]\nfile = "{key}"\nkind = "transfer"\n'
    tables += f'[[nameserver.secondaries]]\naddress = "127.0.0.3:{port}"\nkey = "follow"\n'
    settings.write_text(settings.read_text() + tables)
    pair.peer.start()
    pair.at_both("static.site.test", "A", ["192.0.2.80"])
    directory = pair.base / "nsd"
    directory.mkdir()
    (directory / "nsd.conf").write_text(f"""\
server:
  ip-address: 127.0.0.3
  port: {port}
  username: ""
  chroot: ""
  zonesdir: "{directory}"
  database: ""
  pidfile: "{directory}/nsd.pid"
  xfrdfile: "{directory}/xfrd.state"
  zonelistfile: "{directory}/zone.list"
  xfrdir: "{directory}"
  logfile: "{directory}/log"
remote-control:
  control-enable: no
key:
  name: follow
  algorithm: hmac-sha256
  secret: "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
zone:
  name: site.test
  zonefile: site.test
  request-xfr: 127.0.0.2@{pair.ports.dns} follow
  allow-notify: 127.0.0.2 follow
""")
    start(nsd, "-d", "-c", directory / "nsd.conf")

    def at_nsd(name: str, rtype: str) -> list[str]:
        asked = [need("dig"), "@127.0.0.3", "-p", str(port), name, rtype, "+short", "+tries=1", "+time=1"]
        return sorted(subprocess.run(asked, capture_output=True, text=True).stdout.splitlines())

    wait_for(lambda: at_nsd("static.site.test", "A") == ["192.0.2.80"], SECONDS, "the zone at NSD")
    assert pair.nsupdate("127.0.0.1", "update add new.site.test 60 A 192.0.2.99") == ""
    wait_for(lambda: at_nsd("new.site.test", "A") == ["192.0.2.99"], SECONDS, "the update at NSD")
    wait_for(
        lambda: at_nsd("site.test", "SOA") == pair.peer.dig("site.test", "SOA"), SECONDS, "the same serial"
    )
