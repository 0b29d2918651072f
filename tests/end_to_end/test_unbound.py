"""A strict resolver asks us what it asks BIND: from the root down, names minimised and in random case.

Two internets with the same addresses, in which all but the server of the zone is the same: what unbound makes
of our answers is what it makes of BIND's.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.end_to_end.network import network
from tests.end_to_end.primaries import Bind
from tests.end_to_end.programs import Process, need
from tests.end_to_end.test_dns_tools import run

ROOT, TLD, ZONES, CHILDREN, RESOLVER = "44.128.1.1", "44.129.2.1", "44.128.0.53", "44.130.0.53", "44.128.9.9"
ZONE = "example.org"
TWISTD = Path(sys.executable).parent / "twistd"
CHILD_COUNT = 6
TYPES = ("A", "A", "A", "AAAA", "TXT", "MX", "CNAME", "HTTPS", "NS", "SOA", "DS")

HEAD = """\
$ORIGIN {zone}.
$TTL 300
@ SOA ns1 hostmaster 1 14400 3600 1209600 300
@ NS ns1
ns1 A {address}
"""
ROOT_ZONE = f"""\
$TTL 86400
. SOA a.root.test. nobody.root.test. 1 14400 3600 604800 3600
. NS a.root.test.
a.root.test. A {ROOT}
org. NS a.nic.org.
a.nic.org. A {TLD}
"""
TLD_ZONE = f"""\
$TTL 3600
org. SOA a.nic.org. nobody.nic.org. 1 14400 3600 604800 3600
org. NS a.nic.org.
a.nic.org. A {TLD}
{ZONE}. NS ns1.{ZONE}.
ns1.{ZONE}. A {ZONES}
"""
UNBOUND = """
server:
    directory: "{directory}"
    pidfile: ""
    chroot: ""
    username: ""
    use-syslog: no
    verbosity: 2
    num-threads: 1
    interface: {resolver}
    outgoing-interface: {resolver}
    access-control: 0.0.0.0/0 allow
    do-ip6: no
    module-config: "iterator"
    root-hints: "{directory}/hints"
    qname-minimisation: yes
    qname-minimisation-strict: yes
    use-caps-for-id: yes
    harden-below-nxdomain: yes
    harden-glue: yes
    harden-referral-path: no
remote-control:
    control-enable: no
"""


def generated(choose: random.Random) -> tuple[str, dict[str, str], list[str]]:
    """A zone with wildcards, empty non-terminals, aliases and delegations; those delegated; names in them."""
    lines: list[str] = []
    names: list[str] = []

    def put(owner: str, rtype: str, data: str) -> None:
        lines.append(f"{owner} {choose.choice((60, 300, 900))} {rtype} {data}")
        names.append(owner)

    def address() -> str:
        return f"192.0.2.{choose.randrange(1, 255)}"

    for number in range(30):
        put(f"h{number}", "A", address())
        if number % 2:
            put(f"h{number}", "AAAA", f"2001:db8::{number}")
        if number % 3 == 0:
            put(f"h{number}", "TXT", f'"text {number}"')
            put(f"h{number}", "MX", f"10 h{number + 1}")
        if number % 5 == 0:
            put(f"h{number}", "HTTPS", "1 . alpn=h2")
        put(f"a.b{number % 4}.empty{number}", "A", address())
    for number in range(15):
        put(f"*.wild{number}", "A", address())
        put(f"there.wild{number}", "TXT", '"hides the wildcard"')
        put(f"*.deep.wild{number}", "TXT", f'"deeper {number}"')
        put(f"*.alias{number}", "CNAME", f"h{number}")
        put(f"c{number}", "CNAME", f"c{number + 1}" if number % 3 else f"h{number}")
        put(f"to-wild{number}", "CNAME", f"x.y.wild{number}")
        put(f"to-nothing{number}", "CNAME", f"nothing{number}")
        put(f"moved{number}", "DNAME", f"empty{number}")
    put("c15", "CNAME", "h15")
    put("large", "TXT", " ".join(f'"{number:0200}"' for number in range(20)))
    children = {}
    for number in range(CHILD_COUNT):
        child = f"child{number}" if number % 2 else f"child{number}.under.empty"
        put(child, "NS", f"ns1.{child}")
        lines.append(f"ns1.{child} A {CHILDREN}")
        put(f"to-child{number}", "CNAME", f"www.{child}")
        text = HEAD.format(zone=f"{child}.{ZONE}", address=CHILDREN)
        children[f"{child}.{ZONE}"] = text + f"www A {address()}\n*.w A {address()}\na.b A {address()}\n"
        names += [f"www.{child}", f"b.{child}", f"x.w.{child}"]
    return HEAD.format(zone=ZONE, address=ZONES) + "\n".join(lines) + "\n", children, names


def questions(choose: random.Random, names: Sequence[str], count: int) -> list[tuple[str, str]]:
    """What is asked: names that are there, and names beside, above and below them."""
    asked: list[tuple[str, str]] = []
    while len(asked) < count:
        name = choose.choice(names)
        match choose.randrange(5):
            case 0:
                name = f"{choose.choice('xyz')}.{name}"
            case 1:
                name = f"{choose.choice('xyz')}.{choose.choice('xyz')}.{name}"
            case 2 if "." in name:
                name = name.split(".", 1)[1]
            case 3:
                name = name.replace("*", choose.choice("xyz"))
        asked.append((f"{name}.{ZONE}", choose.choice(TYPES)))
    return asked


class Resolved(NamedTuple):
    """What the resolver said; without TTLs, which it counts down, serials, and the random
    case that it asked in, which is in what a DNAME makes."""

    rcode: str
    answer: tuple[str, ...]
    authority: tuple[str, ...]


def read(text: str) -> list[Resolved]:
    """Of dig's output."""
    found = []
    for part in text.split(";; ->>HEADER<<-")[1:]:
        (rcode,) = re.findall(r"status: (\w+)", part)
        sections = []
        for title in ("ANSWER", "AUTHORITY"):
            lines = part.partition(f";; {title} SECTION:\n")[2].partition("\n\n")[0].splitlines()
            words = [line.split(None, 4) for line in lines]
            sections.append(
                tuple(
                    sorted(
                        f"{owner} {rtype} {'' if rtype == 'SOA' else data}".lower()
                        for owner, _, _, rtype, data in words
                    )
                )
            )
        found.append(Resolved(rcode, *sections))
    return found


def ours(base: Path, zone: str, inside: tuple[str, ...]) -> Process:
    """The appliance with its defaults."""
    (base / "zones").mkdir()
    (base / "zones" / "ours.zone").write_text(zone)
    (base / "appliance.toml").write_text(
        f'state = "{base}/state"\n[nameserver]\nzones = "{base}/zones"\nlisten = ["{ZONES}"]\n'
    )
    arguments = ("-n", "--pidfile=", "tunnel-appliance", "--config", base / "appliance.toml")
    process = Process([*inside, TWISTD, *arguments], base / "appliance.log", cwd=base)
    process.says("ready")
    return process


def bind(base: Path, zone: str, inside: tuple[str, ...]) -> Process:
    theirs = Bind(base / "zones", {ZONE: zone}, address=ZONES, port=53, wrapped=inside)
    theirs.process.says("running")
    return theirs.process


Serve = Callable[[Path, str, tuple[str, ...]], Process]


def resolve(
    base: Path, serve: Serve, zone: str, children: dict[str, str], asked: Sequence[tuple[str, str]]
) -> list[Resolved]:
    """What unbound makes of the zone as `serve` serves it."""
    base.mkdir()
    with ExitStack() as running:
        inside = running.enter_context(network((ROOT, TLD, ZONES, CHILDREN, RESOLVER)))
        for name, zones, address in (
            ("root", {".": ROOT_ZONE}, ROOT),
            ("tld", {"org": TLD_ZONE}, TLD),
            ("children", children, CHILDREN),
        ):
            upper = Bind(base / name, zones, address=address, port=53, wrapped=inside)
            running.callback(upper.kill)
            upper.process.says("running")
        running.callback(serve(base, zone, inside).kill)
        (base / "hints").write_text(f". 3600000 NS a.root.test.\na.root.test. 3600000 A {ROOT}\n")
        (base / "unbound.conf").write_text(UNBOUND.format(directory=base, resolver=RESOLVER))
        unbound = Process([*inside, need("unbound"), "-d", "-c", base / "unbound.conf"], base / "log")
        running.callback(unbound.kill)
        unbound.says("start of service")
        (base / "questions").write_text("".join(f"{name} {rtype}\n" for name, rtype in asked))
        how = ("+tries=1", "+time=20", "+noall", "+comments", "+answer", "+authority")
        text = run(*inside, need("dig"), f"@{RESOLVER}", *how, "-f", str(base / "questions"))
        assert not re.search("capsforid|caps fallback", unbound.output, re.IGNORECASE)  # the case was right
        return read(text)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
def test_what_unbound_finds_is_what_it_finds_at_bind(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    zone, children, names = generated(choose)
    asked = questions(choose, names, 500)
    with ThreadPoolExecutor(2) as together:
        both = [
            together.submit(resolve, tmp_path / serve.__name__, serve, zone, children, asked)
            for serve in (ours, bind)
        ]
    found, expected = (one.result() for one in both)
    assert len(found) == len(expected) == len(asked)
    wrong = [
        f"{question}\n  ours {one}\n  bind {other}"
        for question, one, other in zip(asked, found, expected, strict=True)
        if one != other
    ]
    assert not wrong, f"{len(wrong)} of {len(asked)}:\n" + "\n".join(wrong[:8])
    kinds = [(one.rcode, bool(one.answer)) for one in expected]
    print({kind: kinds.count(kind) for kind in sorted(set(kinds))})
    for kind, least in ((("NOERROR", True), 80), (("NOERROR", False), 80), (("NXDOMAIN", False), 20)):
        assert kinds.count(kind) >= least, kind
    assert "SERVFAIL" not in {one.rcode for one in expected}
