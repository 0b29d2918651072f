"""What the checkers of the trade say of a zone with live names: zonemaster and dnsviz, in an internet of its
own with a root and a TLD by BIND."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.end_to_end.network import network
from tests.end_to_end.primaries import Bind
from tests.end_to_end.programs import Process, need, wait_for

# The amateur radio network's range for tests: checkers want globally routable addresses, these are nobody's.
ROOT, TLD = "44.128.1.1", "44.129.2.1"
OURS = "44.128.0.53", "44.129.0.53"
ZONE = "example.org"
LAME = "lame.org"
LIVE = f"tunnel.{ZONE}", f"x.apps.{ZONE}"
BIN = Path(sys.executable).parent
CHECK_SECONDS = 120
LEVELS = ("NOTICE", "WARNING", "ERROR", "CRITICAL")

REVERSE = "".join(
    f"{'.'.join(reversed(address.split('.')))}.in-addr.arpa. PTR {name}.\n"
    for address, name in (
        (ROOT, "a.root.test"),
        (TLD, "a.nic.org"),
        (OURS[0], f"ns1.{ZONE}"),
        (OURS[1], f"ns2.{ZONE}"),
    )
)
ROOT_ZONE = f"""\
$TTL 86400
. SOA a.root.test. nobody.root.test. 1 14400 3600 604800 3600
. NS a.root.test.
a.root.test. A {ROOT}
org. NS a.nic.org.
a.nic.org. A {TLD}
{REVERSE}"""
TLD_ZONE = f"""\
$TTL 3600
org. SOA a.nic.org. nobody.nic.org. 1 14400 3600 604800 3600
org. NS a.nic.org.
a.nic.org. A {TLD}
{ZONE}. NS ns1.{ZONE}.
{ZONE}. NS ns2.{ZONE}.
ns1.{ZONE}. A {OURS[0]}
ns2.{ZONE}. A {OURS[1]}
{LAME}. NS ns1.{ZONE}.
{LAME}. NS ns2.{ZONE}.
"""
OUR_ZONE = f"""\
$ORIGIN {ZONE}.
$TTL 3600
@ SOA ns1 hostmaster 1 14400 3600 1209600 300
@ NS ns1
@ NS ns2
@ MX 10 mail
ns1 A {OURS[0]}
ns2 A {OURS[1]}
mail A 44.128.0.25
deep.below.empty A 44.128.0.80
*.wild A 44.128.0.81
alias CNAME mail
"""


class Internet:
    """Our appliance with live names, below a TLD and a root."""

    def __init__(self, base: Path, running: ExitStack) -> None:
        self.inside = running.enter_context(network((ROOT, TLD, *OURS)))
        for name, zones, address in (
            ("root", {".": ROOT_ZONE}, ROOT),
            ("tld", {"org": TLD_ZONE}, TLD),
        ):
            bind = Bind(base / name, zones, address=address, port=53, wrapped=self.inside)
            running.callback(bind.kill)
            bind.process.says("running")
        zones_directory = base / "zones"
        zones_directory.mkdir()
        (zones_directory / "ours.zone").write_text(OUR_ZONE)
        (base / "appliance.toml").write_text(
            f'state = "{base}/state"\n[nameserver]\nzones = "{zones_directory}"\n'
            f'listen = ["{OURS[0]}", "{OURS[1]}"]\n[server]\nid = "one"\naddresses = ["{OURS[0]}"]\n'
        )
        self.base = base
        self.ours = Process(
            [
                *self.inside,
                *(BIN / "twistd", "-n", "--pidfile=", "tunnel-appliance", "--config", "appliance.toml"),
            ],
            base / "appliance.log",
            cwd=base,
        )
        running.callback(self.ours.kill)
        self.ours.says("ready")
        self.run(
            *(BIN / "tunnel-appliance", "--config", "appliance.toml", "invite"),
            *(f"tunnel.{ZONE}", f"*.apps.{ZONE}", "--client", "home", "--output", base / "invitation.toml"),
        )
        wait_for(lambda: self.dig(f"tunnel.{ZONE}", "TXT"), 10, "live records")

    def run(self, *arguments: str | Path) -> str:
        """What a program in this internet says."""
        done = subprocess.run(
            [*self.inside, *arguments],
            cwd=self.base,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CHECK_SECONDS,
        )
        assert done.returncode == 0, done
        return done.stdout

    def dig(self, name: str, rtype: str) -> list[str]:
        return self.run(need("dig"), f"@{OURS[0]}", "+short", "+tries=1", name, rtype).splitlines()


@pytest.fixture(scope="module")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    with ExitStack() as running:
        yield Internet(tmp_path_factory.mktemp("internet"), running)


def zonemaster(internet: Internet, zone: str) -> list[tuple[str, str]]:
    """What zonemaster has to say beyond "as it should be": level and tag of each message."""
    hints = internet.base / "hints"
    hints.write_text(f". 3600000 NS a.root.test.\na.root.test. 3600000 A {ROOT}\n")
    options = ("--no-ipv6", "--no-progress", "--show-testcase", "--raw", "--level", "NOTICE")
    text = internet.run(need("zonemaster-cli"), zone, "--hints", hints, *options)
    print(text)
    words = [line.split() for line in text.splitlines()]
    return [(level, tag) for _, level, _, tag, *_ in (line for line in words if line) if level in LEVELS]


def test_zonemaster_has_no_warning(internet: Internet) -> None:
    said = zonemaster(internet, ZONE)
    assert not [one for one in said if one[0] != "NOTICE"]
    assert {tag for _, tag in said} == {
        "NEITHER_DNSKEY_NOR_DS",
        "NOT_SIGNED",
        "NO_IPV6_NS_CHILD",  # as nothing in this internet has it
        "NO_IPV6_NS_DEL",
        "SOA_DEFAULT_TTL_MAXIMUM_VALUE_LOWER",  # where names come and go, a "no" is good for 15 s
    }


def test_zonemaster_would_say_so(internet: Internet) -> None:
    assert any(level in ("ERROR", "CRITICAL") for level, _ in zonemaster(internet, LAME))


def dnsviz(internet: Internet, *names: str) -> Mapping[str, object]:
    """What dnsviz warns of, by zone; nothing where all is as it should be."""
    dnsviz = need("dnsviz")
    how = ("-4", "-A", "-E", "-n", "-x", f".+:a.root.test={ROOT}", "-R", "SOA,A,AAAA,TXT,NS,MX,CNAME")
    internet.run(dnsviz, "probe", *how, "-o", "probe.json", *names)
    found: dict[str, object] = json.loads(
        internet.run(dnsviz, "grok", "-l", "warning", "-r", "probe.json") or "{}"
    )
    return found


def test_dnsviz_warns_of_nothing(internet: Internet) -> None:
    names = (ZONE, *LIVE, f"alias.{ZONE}", f"below.empty.{ZONE}", f"nosuch.{ZONE}", f"y.wild.{ZONE}")
    assert dnsviz(internet, *names) == {}
    seen = internet.run(need("dnsviz"), "print", "-r", "probe.json")
    for name in LIVE:
        assert f"{name}\n  [-]  A: {OURS[0]}\n" in seen
    assert seen.count("r=superprotocol;ip=") == 1 + len(LIVE)


def test_dnsviz_would_say_so(internet: Internet) -> None:
    assert "error" in json.dumps(dnsviz(internet, LAME)).lower()
