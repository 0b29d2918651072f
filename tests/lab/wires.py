"""Hosts in network namespaces, one router between them, and what the router drops.

Every host has an address of its own and one cable, to the router; the router has no other. Faults are rules
of the router's packet filter, and each has a counter: a fault that touched no packet did not happen.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path

from tests.end_to_end.namespaces import Namespaces, cable
from tests.end_to_end.programs import Process, need

# 44.128.0.0/16 is the amateur radio network's for tests: globally routable in form, and routed by nobody.
NETWORK = "44.128"
PROGRAMS = ("unshare", "nsenter", "ip", "nft")
_LINK_SECONDS = 5.0

_HOLD = """
set -e
ip link set lo up
echo $$
while read -r _; do :; done
"""
_ROUTER = """
set -e
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
"""
_FILTER = """
table inet fault {
  counter cut { }
  counter lost { }
  set cut { type ipv4_addr . ipv4_addr; }
  set lossy { type ipv4_addr . ipv4_addr; }
  chain forward {
    type filter hook forward priority 0; policy accept;
    ip saddr . ip daddr @cut counter name "cut" drop
    ip saddr . ip daddr @lossy numgen random mod 100 < PERCENT counter name "lost" drop
  }
}
"""
LOSS_PERCENT = 10


class Host:
    """One host: a network of its own, and an address that every other host reaches."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.address = f"{NETWORK}.{number}.2"
        self.gateway = f"{NETWORK}.{number}.1"
        self.network = Namespaces(("--net",), _HOLD)
        self.inside = self.network.inside("--net")

    @property
    def pid(self) -> int:
        return self.network.pid

    def run(self, *command: str | Path, script: str = "") -> str:
        """Run a command there; what it said."""
        done = subprocess.run(
            [*self.inside, *command],
            input=script,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=20,
        )
        assert done.returncode == 0, f"{self.name}: {command}\n{done.stdout}"
        return done.stdout


class Wires:
    """The router, and a host for each name that is asked for."""

    def __init__(self, directory: Path, running: ExitStack) -> None:
        for program in PROGRAMS:
            need(program)
        self._directory = directory
        self._running = running
        self._hosts: dict[str, Host] = {}
        self._links: dict[str, Path] = {}
        self.router = Host("router", 0)
        running.callback(self.router.network.end)
        self.router.run("bash", "-c", _ROUTER)
        self._filter(_FILTER.replace("PERCENT", str(LOSS_PERCENT)))

    def host(self, name: str, *, slow: bool = False) -> Host:
        """A new host; with `slow` its link can be slowed."""
        host = self._hosts[name] = Host(name, len(self._hosts) + 1)
        self._running.callback(host.network.end)
        if slow:
            self._slow_link(host)
        else:
            cable(self.router.pid, name, host.pid, "eth0")
            self.router.run("ip", "address", "add", f"{host.gateway}/30", "dev", name)
            host.run("ip", "address", "add", f"{host.address}/30", "dev", "eth0")
        self.router.run("ip", "link", "set", name, "up")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "route", "add", "default", "via", host.gateway)
        return host

    # Faults

    def cut(self, some: Iterable[Host], others: Iterable[Host]) -> None:
        """From now on nothing comes from some to others, nor back: it is dropped without a word."""
        self._elements("add", "cut", _pairs(some, others) | _pairs(others, some))

    def cut_one_way(self, some: Iterable[Host], others: Iterable[Host]) -> None:
        """The same, in this direction only."""
        self._elements("add", "cut", _pairs(some, others))

    def join(self, some: Iterable[Host], others: Iterable[Host]) -> None:
        """What was cut between these is so no more."""
        self._elements("delete", "cut", _pairs(some, others) | _pairs(others, some))

    def silence(self, host: Host) -> None:
        """Nothing comes to this host, nor from it."""
        self.cut([host], [one for one in self._hosts.values() if one is not host])

    def lose(self) -> None:
        """From now on every link loses LOSS_PERCENT each way."""
        hosts = self._hosts.values()
        self._elements("add", "lossy", {(a, b) for a, b in _pairs(hosts, hosts) if a != b})

    def heal(self) -> None:
        """Nothing is dropped any more."""
        self._filter("flush set inet fault cut\nflush set inet fault lossy\n")

    def slow(self, name: str, **what: float) -> None:
        """Change a slow link: `delay` and `jitter` in milliseconds and `loss` in percent, each way."""
        self._links[name].with_suffix(".new").write_text(json.dumps(what))
        self._links[name].with_suffix(".new").rename(self._links[name])

    def dropped(self, counter: str) -> int:
        """How many packets a fault (`cut`, `lost`) has taken."""
        said = json.loads(self.router.run("nft", "-j", "list", "counter", "inet", "fault", counter))
        (packets,) = [one["counter"]["packets"] for one in said["nftables"] if "counter" in one]
        return int(packets)

    def _elements(self, what: str, of: str, pairs: Collection[tuple[str, str]]) -> None:
        listed = ", ".join(f"{one} . {other}" for one, other in sorted(pairs))
        self._filter(f"{what} element inet fault {of} {{ {listed} }}\n")

    def _filter(self, script: str) -> None:
        self.router.run("nft", "-f", "-", script=script)

    def _slow_link(self, host: Host) -> None:
        state = self._links[host.name] = self._directory / f"{host.name}.link"
        state.write_text("{}")
        program = Path(__file__).with_name("slowlink.py")
        ends = [str(self.router.pid), host.name, str(host.pid), "eth0"]
        link = Process([sys.executable, program, *ends, state], self._directory / f"{host.name}.link.log")
        self._running.enter_context(link)
        link.says("linked", _LINK_SECONDS)
        for one, own, other in (
            (self.router, host.gateway, host.address),
            (host, host.address, host.gateway),
        ):
            device = "eth0" if one is host else host.name
            one.run("ip", "address", "add", own, "peer", f"{other}/32", "dev", device)


def _pairs(some: Iterable[Host], others: Iterable[Host]) -> set[tuple[str, str]]:
    return {(one.address, other.address) for one in list(some) for other in list(others)}
