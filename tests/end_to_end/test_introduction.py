"""Real servers that nobody lists: they come with one file, are published, and go; two nameservers decide."""

from __future__ import annotations

import json
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.end_to_end.programs import need, wait_for
from tests.end_to_end.site import ZONE, Appliance, Client, Nginx, Ports, follower

NS1, NS2, T1, T2 = (f"127.0.0.{number}" for number in (1, 2, 3, 4))
NAME = f"www.{ZONE}"
TTL_SECONDS = 15
ADDED_SECONDS = TTL_SECONDS + 5.0
"""From the start of a server until it is in the A records of a name that its clients serve (figure 13)."""
SECONDS = 30.0


def status(one: Appliance) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(one.command("status", "--json"))
    return found


class Site:
    """ns1 has the CA, ns2 follows it: nameservers only, which list nobody. Tunnel servers are added."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.ports = Ports()
        self.ca = trustme.CA()
        self.ns1 = Appliance(base / "ns1", self.ports, NS1, server=False)
        self.ns2: Appliance
        self.running: list[Appliance | Client | Nginx] = [self.ns1]

    def follow(self) -> None:
        """Add ns2."""
        self.ns2 = follower(self.ns1, self.base / "ns2", NS2)
        self.running.append(self.ns2)
        self.ns2.start(SECONDS)
        wait_for(lambda: self.ns2.dig(f"static.{ZONE}", "A") == ["192.0.2.80"], SECONDS, "the copied zone")

    def enroll(self, server_id: str, address: str, *lines: str) -> Appliance:
        """A further tunnel server, not started; `lines` are more of its settings."""
        enrolment = self.base / f"{server_id}.toml"
        self.ns1.command("enroll", server_id, f"{address}:{self.ports.tls}", "--output", enrolment)
        made = Appliance(self.base / server_id, self.ports, address, enrolment=enrolment)
        settings = made.directory / "appliance.toml"
        settings.write_text(settings.read_text() + "".join(f"{line}\n" for line in lines))
        self.running.append(made)
        return made

    def key(self, server_id: str, nameserver: str = "ns1") -> Path:
        """The server's key, as a file for nsupdate."""
        table = tomllib.loads((self.base / f"{server_id}.toml").read_text())["introduction"]
        first, *others = table["nameservers"]  # ns1 is called after this machine
        secret = first["secret"] if nameserver == "ns1" else others[0]["secret"]
        path = self.base / f"{server_id}.key"
        path.write_text(f'key "{table["key_name"]}" {{ algorithm hmac-sha256; secret "{secret}"; }};\n')
        path.chmod(0o600)
        return path

    def nsupdate(self, server_id: str, *lines: str, host: str = NS1, nameserver: str = "ns1") -> str:
        script = "\n".join((f"server {host} {self.ports.dns}", f"zone {ZONE}", *lines, "send", ""))
        done = subprocess.run(
            [need("nsupdate"), "-t", "10", "-k", self.key(server_id, nameserver)],
            input=script,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
        )
        return done.stdout

    def listed(self, *addresses: str) -> list[str]:
        return [f'"r=superprotocol;ip={address};port={self.ports.tls}"' for address in addresses]

    def wait_listed(self, *addresses: str, at: Appliance | None = None, seconds: float = SECONDS) -> None:
        for one in (self.ns1, self.ns2) if at is None else (at,):
            wait_for(
                lambda one=one: one.dig(ZONE, "TXT") == self.listed(*addresses),  # type: ignore[misc]
                seconds,
                f"{addresses} in the TXT at {one.address}, which has {one.dig(ZONE, 'TXT')}",
            )

    def kill(self) -> None:
        for one in reversed(self.running):
            one.kill()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        site.ns1.start(SECONDS)
        yield site
    finally:
        site.kill()


def test_a_server_is_added_at_run_time_and_nobody_else_is_touched(site: Site) -> None:
    site.follow()
    t1 = site.enroll("t1", T1)
    t1.start(SECONDS)
    site.ns1.invite(NAME)
    site.wait_listed(T1)
    untouched = Untouched(site.ns1, site.ns2, t1)
    t2 = site.enroll("t2", T2)
    process = t2.start(SECONDS)
    began = time.monotonic()
    site.wait_listed(T1, T2)
    print(f"measured server_added_in_txt_at_both_nameservers {time.monotonic() - began:.2f} s")
    wait_for(lambda: site.ns1.dig(NAME, "A") == [T1, T2], SECONDS, "t2 in A of a name without a client")
    print(f"measured server_added_in_a_of_a_name_without_a_client {time.monotonic() - began:.2f} s")
    untouched.check()
    process.says("takes what we announce")
    assert [one["answer"] for one in status(t2)["announcements"]] == ["taken", "taken"]

    # It dies, and comes back as another start on an empty disk: known again as soon as it says so.
    t2.kill()
    site.wait_listed(T1)
    subprocess.run(["rm", "-r", t2.directory / "state"], check=True)
    t2.start(SECONDS)
    began = time.monotonic()
    site.wait_listed(T1, T2)
    print(f"measured server_back_on_an_empty_disk {time.monotonic() - began:.2f} s")

    # Revoked: out at the nameserver that has the CA, and its announcements are refused.
    site.ns1.command("revoke", "t2")
    site.wait_listed(T1, at=site.ns1)
    assert [one["server"] for one in status(site.ns1)["introduced"]] == ["t1"]
    assert "REFUSED" in site.nsupdate("t2", *introducing("t2", site, "b", 10**9))


@pytest.mark.slow
def test_a_server_that_is_added_serves_within_the_ttl_and_five_seconds(site: Site) -> None:
    site.follow()
    t1 = site.enroll("t1", T1)
    t1.start(SECONDS)
    origin = Nginx(site.base / "origin", [NAME], site.ca)
    origin.start()
    where = ("--tls-origin", f"127.0.0.1:{origin.tls}")
    client = Client(site.base / "client", site.ns1.invite(NAME), site.ns1, *where)
    site.running += [origin, client]
    said = client.start("t1")
    both = (site.ns1, site.ns2)
    for one in both:
        wait_for(lambda one=one: one.dig(NAME, "A") == [T1], SECONDS, "t1 in A")  # type: ignore[misc]
    untouched = Untouched(site.ns1, site.ns2, t1)
    site.enroll("t2", T2).start(SECONDS)
    began = time.monotonic()
    said.says("joined server t2 ", ADDED_SECONDS)
    for one in both:
        wait_for(
            lambda one=one: one.dig(NAME, "A") == [T1, T2],  # type: ignore[misc]
            ADDED_SECONDS,
            f"t2 in A at {one.address}",
        )
    served = time.monotonic() - began
    print(f"measured server_added_in_a_of_a_served_name {served:.2f} s")
    assert served < ADDED_SECONDS
    untouched.check()


class Untouched:
    """These appliances go on running with the settings that they have."""

    def __init__(self, *appliances: Appliance) -> None:
        self._before = [(one, one.process, self._settings(one)) for one in appliances]

    def check(self) -> None:
        for one, process, settings in self._before:
            assert one.process is process
            assert process is not None
            assert process.status is None
            assert self._settings(one) == settings

    @staticmethod
    def _settings(one: Appliance) -> str:
        return (one.directory / "appliance.toml").read_text()


def introducing(server_id: str, site: Site, boot: str, n: int, *at: str) -> list[str]:
    """What to tell nsupdate. (That of BIND 9.18 cannot ask for a lease; it is given one all the same.)"""
    places = "".join(f";ip={address};port={site.ports.tls}" for address in at or (T2,))
    owner = f"{server_id}._tunnel.{ZONE}"
    return [f"update delete {owner} TXT", f'update add {owner} 60 TXT "boot={boot};n={n}{places}"']


def test_nsupdate_introduces_a_server_as_well(site: Site) -> None:
    # Enrolled before ns2 and without a key of it; it announces itself to nobody who is there.
    silent = f'nameservers = ["127.0.0.9:{site.ports.dns}"]'
    t1 = site.enroll("t1", T1, silent)
    site.follow()
    t2 = site.enroll("t2", T2, silent)
    t1.start(SECONDS)
    t2.start(SECONDS).says("does not take what we announce: no answer")
    site.wait_listed(T1, at=site.ns2)  # who was enrolled before is known from the enrolment of ns2
    assert site.ns1.dig(ZONE, "TXT") == []

    # Whatever start it says: the watch says which one it is.
    assert site.nsupdate("t1", *introducing("t1", site, "by-hand", 7, T1)) == ""
    assert site.nsupdate("t2", *introducing("t2", site, "by-hand", 7), host=NS2, nameserver="ns2") == ""
    site.wait_listed(T1, at=site.ns1)
    site.wait_listed(T1, T2, at=site.ns2)
    assert site.nsupdate("t2", *introducing("t2", site, "by-hand", 7)) == ""
    site.wait_listed(T1, T2, at=site.ns1)
    assert site.ns1.dig(f"t2._tunnel.{ZONE}", "TXT") == []  # leased, not served

    # Late, another's record, another nameserver's key, more than its record.
    assert "YXRRSET" in site.nsupdate("t2", *introducing("t2", site, "by-hand", 6, NS2))
    assert "REFUSED" in site.nsupdate("t2", *introducing("t1", site, "by-hand", 9))
    assert "BADSIG" in site.nsupdate("t2", *introducing("t2", site, "by-hand", 9), nameserver="ns2")
    for line in (f"update add x.{ZONE} 60 TXT x", f"update delete static.{ZONE}"):
        assert "REFUSED" in site.nsupdate("t2", *introducing("t2", site, "by-hand", 9), line)
    assert site.ns1.dig(f"static.{ZONE}", "A") == ["192.0.2.80"]

    # The leases outlive a crash of the nameserver; nobody announces anything meanwhile.
    site.ns1.kill()
    site.ns1.start(SECONDS)
    assert site.ns1.dig(ZONE, "TXT") == site.listed(T1, T2)
    wait_for(
        lambda: {one["standing"] for one in status(site.ns1)["servers"]} == {"up"}, SECONDS, "both met again"
    )
    assert "YXRRSET" in site.nsupdate("t2", *introducing("t2", site, "by-hand", 6, NS2))
    t2.kill()
    site.wait_listed(T1)
