"""Ours against NSD and Knot: the same generated zones, the same questions, the same answers."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.dns import names
from appliance.dns.lookup import zone_for
from appliance.dns.responder import Responder
from tests.dns.asking import Reply, opt, outcome, query, reply, valid_zone, zone_lines

APEX = "z{}.test"
TYPES = ("A", "A", "AAAA", "TXT", "CNAME", "NS", "MX", "SOA", "DS", "DNAME", "SRV", "TYPE65280")


@dataclass(frozen=True)
class Corpus:
    """Generated zones: our responder over them, and their texts for the others."""

    responder: Responder
    texts: dict[str, str]
    seed: int

    def apex(self, name: str) -> bytes | None:
        zone = zone_for(self.responder.zones, names.from_text(name), 0)
        return None if zone is None else zone.apex

    def questions(self, each: int) -> Iterator[tuple[str, str]]:
        choose = random.Random(self.seed + 1)
        for apex, zone in zip(self.texts, self.responder.zones.values(), strict=True):
            known = [names.to_text(name) for name in zone.rrsets]
            for _ in range(each):
                name = choose.choice(known)
                match choose.randrange(6):
                    case 0:
                        name = f"{choose.choice('abcx*')}.{name}"
                    case 1:
                        name = f"{choose.choice('abcx')}.{choose.choice('abcx')}.{name}"
                    case 2 if name != apex:
                        name = name.split(".", 1)[1]
                    case 3 if name != apex:
                        name = f"{choose.choice('abcx*')}.{name.split('.', 1)[1]}"
                yield name, choose.choice(TYPES)


def corpus(count: int, seed: int) -> Corpus:
    choose = random.Random(seed)
    zones, texts = [], {}
    for number in range(count):
        apex = APEX.format(number)
        other = APEX.format(choose.randrange(count))
        lines = zone_lines(choose, (f"a.{other}.", f"x.a.{other}.") if choose.random() < 0.3 else ())
        zone, text = valid_zone(lines, apex)
        zones.append(zone)
        texts[apex] = text
        # A child zone of its own in front of some delegations: both sides of a cut are ours.
        if choose.random() < 0.3 and zone.cuts:
            cut = names.to_text(min(zone.cuts))
            child, text = valid_zone(zone_lines(choose), cut)
            zones.append(child)
            texts[cut] = text
    return Corpus(Responder(zones), texts, seed)


def installed(program: str) -> str:
    found = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail(f"{program} is not installed, and CI must have it")
        pytest.skip(f"{program} is not installed")
    return found


def free_port() -> int:
    """A port that is free for UDP and for TCP."""
    for _ in range(50):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            udp.bind(("127.0.0.1", 0))
            port: int = udp.getsockname()[1]
            try:
                tcp.bind(("127.0.0.1", port))
            except OSError:
                continue  # taken for TCP
            return port
    raise AssertionError("no port is free for both")


@contextmanager
def running(command: list[str], port: int, apex: str, log: Path) -> Iterator[Callable[[bytes], Reply]]:
    """A server of somebody else's; yields how to ask it."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))

        def ask(message: bytes, seconds: float = 5.0) -> Reply:
            sock.settimeout(seconds)
            sock.send(message)
            while (octets := sock.recv(65535))[:2] != message[:2]:
                pass
            return reply(octets)

        try:
            deadline = time.monotonic() + 20
            while True:
                try:
                    # An ID that no question below has: a late answer is not taken for one of theirs.
                    if ask(query(apex, "SOA", ident=0xFFFF), 0.2).rcode == "NOERROR":
                        break
                except OSError:
                    time.sleep(0.05)  # refused: it is not listening yet, and nothing tells us when it will be
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"{command[0]} did not start: {log.read_text()[-2000:]}")
            yield ask
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def nsd(texts: dict[str, str], where: Path) -> Iterator[Callable[[bytes], Reply]]:
    program, port = installed("nsd"), free_port()
    config = f"""
server:
  ip-address: 127.0.0.1@{port}
  username: ""
  database: ""
  zonesdir: "{where}"
  logfile: "{where}/nsd.out"
  pidfile: "{where}/nsd.pid"
  xfrdfile: "{where}/xfrd.state"
  zonelistfile: "{where}/zone.list"
  xfrdir: "{where}"
  minimal-responses: yes
  rrl-ratelimit: 0
  server-count: 1
remote-control:
  control-enable: no
"""
    for apex, text in texts.items():
        (where / apex).write_text(text)
        config += f'zone:\n  name: "{apex}"\n  zonefile: "{apex}"\n'
    (where / "nsd.conf").write_text(config)
    with running(
        [program, "-d", "-c", str(where / "nsd.conf")], port, next(iter(texts)), where / "log"
    ) as ask:
        yield ask


@contextmanager
def knot(texts: dict[str, str], where: Path) -> Iterator[Callable[[bytes], Reply]]:
    program, port = installed("knotd"), free_port()
    config = f"""
server:
  listen: 127.0.0.1@{port}
  rundir: "{where}"
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
database:
  storage: "{where}"
template:
  - id: default
    storage: "{where}"
    journal-content: none
    zonefile-load: whole
    zonefile-sync: -1
zone:
"""
    for apex, text in texts.items():
        (where / apex).write_text(text)
        config += f'  - domain: "{apex}"\n    file: "{apex}"\n'
    (where / "knot.conf").write_text(config)
    with running([program, "-c", str(where / "knot.conf")], port, next(iter(texts)), where / "log") as ask:
        yield ask


SERVERS = {"nsd": nsd, "knot": knot}


def unlike(ours: Reply, theirs: Reply) -> list[str]:
    """What differs and matters. NS of the apex in the authority section is optional, and we leave it out."""
    differences = []
    for what in ("rcode", "aa", "tc", "answer"):
        if getattr(ours, what) != getattr(theirs, what):
            differences.append(what)
    theirs_authority = theirs.authority
    if theirs.aa and theirs.answer and not ours.authority:
        theirs_authority = [line for line in theirs_authority if " NS " not in line]
    if ours.authority != theirs_authority:
        differences.append("authority")
    if not ours.aa and ours.additional != theirs.additional:
        differences.append("glue")
    return differences


def compare(server: str, count: int, each: int, seed: int, where: Path) -> None:
    made = corpus(count, seed)
    wrong = []
    asked = 0
    with SERVERS[server](made.texts, where) as ask:
        for name, kind in made.questions(each):
            asked += 1
            message = query(name, kind, ident=asked & 0xFFFF, edns=opt(1232))
            octets = outcome(made.responder, message)
            assert isinstance(octets, bytes)
            ours, theirs = reply(octets), ask(message)
            found = unlike(ours, theirs)
            if found and not excused(server, made, name, ours, theirs):
                wrong.append(f"{name} {kind}: {found}\n  ours   {ours}\n  theirs {theirs}")
    assert not wrong, f"{len(wrong)} of {asked}:\n" + "\n".join(wrong[:8])


def excused(server: str, made: Corpus, name: str, ours: Reply, theirs: Reply) -> bool:
    """Where a server is known to do otherwise.

    NSD keeps all zones in one tree of names: what a parent zone has below the cut makes names exist in
    the child, or the child refused. Knot stops where a chain leaves the zone, and goes five times round a
    DNAME that leads below itself.
    """
    if server == "nsd":
        passed = [name, *(line.split()[3] for line in theirs.answer if " CNAME " in line)]
        apexes = [apex for name in passed if (apex := made.apex(name)) is not None]
        return any(made.apex(names.to_text(names.parent(apex))) is not None for apex in apexes)
    if theirs.rcode != "NOERROR":
        return False
    steps = [line.split() for line in theirs.answer]
    if any(kind == "DNAME" and f".{target}".endswith(f".{owner}.") for owner, _, kind, target, *_ in steps):
        return set(ours.answer) < set(theirs.answer)
    first = {owner for owner, _, kind, *_ in steps if kind == "CNAME"}
    targets = [
        target for _, _, kind, target, *_ in steps if kind == "CNAME" and target.rstrip(".") not in first
    ]
    if len(targets) != 1 or not set(theirs.answer) <= set(ours.answer):
        return False
    left = {made.apex(owner) for owner in first}
    return len(left) == 1 and made.apex(targets[0]) not in left


@pytest.mark.parametrize("server", SERVERS)
def test_answers_are_those_of(server: str, tmp_path: Path) -> None:
    compare(server, 24, 20, seed=1, where=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_many_answers_are_those_of(server: str, seed: int, tmp_path: Path) -> None:
    compare(server, 150, 60, seed=seed, where=tmp_path)
