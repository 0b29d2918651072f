"""`make bench-dns`: our nameserver beside NSD, Knot, PowerDNS and BIND, one thread each, the same zone,
dnsperf.

One run, servers in turn, several rounds, medians. CPU is the servers' own accounting (user and system, with
their children) per query answered, at the rate that one dnsperf gets out of each. Every server answers on
loopback at a port of its own; a peer that is not installed is left out with one line. The last lines are `bar
NAME VALUE GOAL ok|MISS`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accounting import cpu_seconds, proportional_mebibytes
from benchmarks.dnshostile import worst
from tests.end_to_end.programs import Process, free_port

ZONE = "bench.test"
NAMES = 30_000
LARGE = 1_000_000
LIVE_SIZES = (10, 10_000, LARGE)
HALF_LOAD = 30_000  # a second: what the slowest of them can do on one core is about twice as much
PROBES_A_SECOND = 200
ROUNDS = 5
SECONDS = 3
BIN = Path(sys.executable).parent
SEARCH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def zone_text(names: int) -> str:
    """A zone with this many names, each with A, AAAA and TXT, a wildcard, and HTTPS at every fifth."""
    lines = [
        f"$ORIGIN {ZONE}.",
        "$TTL 300",
        "@ SOA ns1 hostmaster 1 7200 900 1209600 60",
        "@ NS ns1",
        "ns1 A 127.0.0.1",
        "*.wild A 192.0.2.99",
    ]
    for number in range(names):
        address = f"{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        lines.append(f"n{number} A 10.{address}")
        lines.append(f"n{number} AAAA 2001:db8::{number >> 16:x}:{number & 0xFFFF:x}")
        lines.append(f'n{number} TXT "r=superprotocol;ip=10.{address}"')
        if number % 5 == 0:
            lines.append(f"n{number} HTTPS 1 . alpn=h2")
    return "\n".join(lines) + "\n"


def queries(names: int) -> str:
    """The mix: A 60 %, TXT 10 %, AAAA 10 %, names that are not there 10 %, wildcard 5 %, HTTPS 5 %."""
    step = 7919  # a prime: spread over the zone
    lines = []
    for number in range(2_000):
        name = f"n{number * step % names}.{ZONE}"
        kind = number % 20
        if kind < 12:
            lines.append(f"{name} A")
        elif kind < 14:
            lines.append(f"{name} TXT")
        elif kind < 16:
            lines.append(f"{name} AAAA")
        elif kind < 18:
            lines.append(f"no{number}.{ZONE} A")
        elif kind < 19:
            lines.append(f"w{number}.wild.{ZONE} A")
        else:
            lines.append(f"{name} HTTPS")
    return "\n".join(lines) + "\n"


@dataclass
class Server:
    """One server, running, with its port."""

    name: str
    port: int
    process: Process
    load_seconds: float = 0.0

    def cpu_seconds(self) -> float:
        """User and system time of the process and of all its children so far."""
        return cpu_seconds([self.process.pid])

    def resident_mebibytes(self) -> float:
        return proportional_mebibytes([self.process.pid])


def _configured(directory: Path, files: dict[str, str]) -> Path:
    directory.mkdir(exist_ok=True)
    directory.chmod(0o777)
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


def ours(base: Path, zone: Path, port: int) -> list[str | Path]:
    directory = _configured(
        base / "ours",
        {
            "appliance.toml": f'[nameserver]\nzones = "zones"\nlisten = ["127.0.0.1:{port}"]\n'
            "private_addresses = true\nrate_limit = 0\n"  # as the others: dnsperf is one source
        },
    )
    (directory / "zones").mkdir(exist_ok=True)
    shutil.copy(zone, directory / "zones" / f"{ZONE}.zone")
    config = directory / "appliance.toml"
    return [BIN / "twistd", "-n", "--pidfile=", "tunnel-appliance", "--config", config]


def nsd(base: Path, zone: Path, port: int) -> list[str | Path]:
    directory = base / "nsd"
    _configured(
        directory,
        {
            "nsd.conf": f"""server:
  ip-address: 127.0.0.1@{port}
  server-count: 1
  username: ""
  pidfile: "{directory}/nsd.pid"
  zonesdir: "{directory}"
  zonelistfile: "{directory}/zone.list"
  database: ""
  xfrdfile: "{directory}/xfrd.state"
  rrl-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: {ZONE}
  zonefile: {zone}
"""
        },
    )
    return ["nsd", "-d", "-c", directory / "nsd.conf"]


def knot(base: Path, zone: Path, port: int) -> list[str | Path]:
    directory = base / "knot"
    _configured(
        directory,
        {
            "knot.conf": f"""server:
  listen: 127.0.0.1@{port}
  rundir: {directory}
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
database:
  storage: {directory}
log:
  - target: stderr
    any: warning
zone:
  - domain: {ZONE}
    file: {zone}
"""
        },
    )
    return ["knotd", "-c", directory / "knot.conf"]


def pdns(base: Path, zone: Path, port: int) -> list[str | Path]:
    directory = base / "pdns"
    _configured(
        directory,
        {"named.conf": f'zone "{ZONE}" {{ type master; file "{zone}"; }};\n'},
    )
    return [
        "pdns_server",
        "--no-config",
        "--launch=bind",
        f"--bind-config={directory}/named.conf",
        "--local-address=127.0.0.1",
        f"--local-port={port}",
        f"--socket-dir={directory}",
        "--receiver-threads=1",
        "--distributor-threads=1",
        "--daemon=no",
        "--guardian=no",
    ]


def bind(base: Path, zone: Path, port: int) -> list[str | Path]:
    directory = base / "bind"
    _configured(
        directory,
        {
            "named.conf": f"""options {{
  directory "{directory}"; pid-file "{directory}/named.pid"; session-keyfile "{directory}/session.key";
  listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
  recursion no; dnssec-validation no; notify no; allow-transfer {{ none; }};
}};
controls {{ }};
zone "{ZONE}" {{ type primary; file "{zone}"; }};
"""
        },
    )
    return ["named", "-f", "-n", "1", "-c", directory / "named.conf"]


MAKERS: dict[str, tuple[str, Callable[[Path, Path, int], list[str | Path]]]] = {
    "ours": ("", ours),
    "nsd": ("nsd", nsd),
    "knot": ("knotd", knot),
    "pdns": ("pdns_server", pdns),
    "bind": ("named", bind),
}


def start(base: Path, zone: Path, wanted: Sequence[str], title: str = "") -> list[Server]:
    """Start each server that there is, and wait until it answers."""
    servers = []
    for name in wanted:
        program, make = MAKERS[name]
        if program and shutil.which(program, path=SEARCH) is None:
            print(f"left out: {program} is not installed")
            continue
        port = free_port("both")
        arguments = make(base, zone, port)
        arguments[0] = shutil.which(str(arguments[0]), path=SEARCH) or arguments[0]
        began = time.monotonic()
        server = Server(name, port, Process(arguments, base / f"{name}.log"))
        servers.append(server)
        while not _answers(port):
            if server.process.status is not None or time.monotonic() - began > 300:
                raise SystemExit(f"{name} does not answer:\n{server.process.output[-2000:]}")
            time.sleep(0.05)
        server.load_seconds = time.monotonic() - began
        print(f"measured {title or name}_load_seconds {server.load_seconds:.3g} s", flush=True)
    return servers


def _answers(port: int) -> bool:
    asked = ["dig", "@127.0.0.1", "-p", str(port), ZONE, "SOA", "+short", "+tries=1", "+timeout=1"]
    return bool(subprocess.run(asked, capture_output=True, text=True).stdout.strip().endswith("60"))


def dnsperf(port: int, queries_file: Path, *options: str) -> int:
    """Ask for some seconds as fast as one dnsperf can; the queries that were answered."""
    asked = ["dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", str(queries_file), "-l", str(SECONDS)]
    done = subprocess.run([*asked, *options], capture_output=True, text=True, check=True)
    figures = dict(line.strip().split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    return int(figures["Queries completed"].split()[0])


PLAIN = ("-c", "4", "-q", "200")
WITH_COOKIE = ("-c", "4", "-q", "200", "-E", "10:0123456789abcdef")
OVER_TCP = ("-m", "tcp", "-c", "4", "-q", "200")


def cpu_per_query(server: Server, queries_file: Path, *ways: Sequence[str]) -> float:
    """Microseconds of CPU per query; each of ``ways`` is one dnsperf beside the others."""
    before = server.cpu_seconds()
    if len(ways) == 1:
        answered = dnsperf(server.port, queries_file, *ways[0])
    else:
        with ThreadPoolExecutor(len(ways)) as pool:
            answered = sum(pool.map(lambda way: dnsperf(server.port, queries_file, *way), ways))
    return (server.cpu_seconds() - before) / answered * 1e6


def compare_once(servers: list[Server], title: str, queries_file: Path) -> dict[str, float]:
    """CPU per query of servers that were just started, when nothing is asked twice."""
    found = {}
    for server in servers:
        found[server.name] = cpu_per_query(server, queries_file, (*PLAIN, "-n", "1", "-l", "60"))
        print(f"measured {title}_{server.name} {found[server.name]:.2f} us", flush=True)
    return found


def compare(servers: list[Server], title: str, queries_file: Path, *ways: Sequence[str]) -> dict[str, float]:
    """The median CPU per query of each server, printed."""
    rounds: dict[str, list[float]] = {server.name: [] for server in servers}
    for _ in range(ROUNDS):
        for server in servers:
            rounds[server.name].append(cpu_per_query(server, queries_file, *ways))
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    for name, value in medians.items():
        print(f"measured {title}_{name} {value:.2f} us", flush=True)
    return medians


def bar(name: str, value: float, goal: float) -> None:
    print(f"bar {name} {value:.2f} {goal:g} {'ok' if value <= goal else 'MISS'}", flush=True)


def cold_queries(names: int) -> str:
    """Each name once, in an order that no cache likes: an answer is never the one before."""
    step = 7919
    return "".join(f"n{number * step % names}.{ZONE} A\n" for number in range(names))


def slow_answers(port: int, queries_file: Path, rate: int) -> float:
    """The latency in microseconds that 1 % of answers exceed, beside a dnsperf that asks so many a second."""
    load = ["dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", str(queries_file), "-l", str(SECONDS + 1)]
    busy = subprocess.Popen([*load, "-Q", str(rate), "-c", "4"], stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    names = queries_file.read_text().splitlines()
    took = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.connect(("127.0.0.1", port))
        asker.settimeout(2)
        for number in range(SECONDS * PROBES_A_SECOND):
            name = names[number % len(names)].split()[0]
            labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
            began = time.perf_counter()
            asker.send(number.to_bytes(2, "big") + b"\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1")
            asker.recv(4096)
            took.append(time.perf_counter() - began)
            time.sleep(max(0.0, 1 / PROBES_A_SECOND - took[-1]))
    busy.wait()
    return statistics.quantiles(took, n=100)[-1] * 1e6


def large(base: Path, names: int) -> None:
    """Load time and memory of ours and of NSD with so many names, ours once more from what it kept."""
    zone, asked = base / "large-zone", base / "large-queries"
    zone.write_text(zone_text(names))
    asked.write_text(queries(names))
    took: dict[str, float] = {}
    memory: dict[str, float] = {}
    for name, title in (("nsd", "nsd"), ("ours", "cold"), ("ours", "kept")):
        folder = base / f"large-{name}"
        folder.mkdir(exist_ok=True)
        for server in start(folder, zone, [name], f"large_{title}"):
            took[title] = server.load_seconds
            dnsperf(server.port, asked, *PLAIN)
            memory[title] = server.resident_mebibytes()
            print(f"measured large_{title}_memory {memory[title]:.1f} MiB", flush=True)
            server.process.kill()
    if "nsd" in took:
        bar("large_cold_load_to_nsd", took["cold"] / took["nsd"], 15)
        bar("large_start_to_nsd", took["kept"] / took["nsd"], 3)
        bar("large_memory_to_nsd", max(memory["cold"], memory["kept"]) / memory["nsd"], 4)


def live(base: Path, sizes: Sequence[int]) -> None:
    """What a live change costs in zones of these sizes, and what stops the reactor for how long."""
    found: dict[int, dict[str, float]] = {}
    for names in sizes:
        zone = base / f"zone-{names}"
        zone.write_text(zone_text(names))
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.dnszones", zone], capture_output=True, text=True, check=True
        )
        found[names] = {}
        for line in done.stdout.splitlines():
            _, title, value, unit = line.split()
            found[names][title] = float(value)
            print(f"measured {title}_at_{names} {value} {unit}", flush=True)
    smallest, largest = min(sizes), max(sizes)
    bar("live_change_large_to_small", found[largest]["live_change"] / found[smallest]["live_change"], 1.2)
    bar(
        "live_change_beside_visitors_large_to_small",
        found[largest]["live_change_beside_visitors"] / found[smallest]["live_change_beside_visitors"],
        1.2,
    )
    bar("death_of_a_server_seconds", max(one["death_seconds"] for one in found.values()), 1)
    turns = [value for one in found.values() for title, value in one.items() if title.endswith("_turn")]
    bar("longest_turn_ms", max(turns), 50)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--names", type=int, default=NAMES)
    options.add_argument("--servers", default=",".join(MAKERS))
    options.add_argument("--large", type=int, default=LARGE, help="0: leave the large zone out")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        base.chmod(0o777)
        zone, asked, once = base / "zone", base / "queries", base / "once"
        zone.write_text(zone_text(chosen.names))
        asked.write_text(queries(chosen.names))
        once.write_text(cold_queries(chosen.names))
        servers = start(base, zone, chosen.servers.split(","))
        try:
            cold = compare_once(servers, "udp_cold", once)
            for server in servers:
                dnsperf(server.port, asked, *PLAIN)  # warm
                print(f"measured {server.name}_memory {server.resident_mebibytes():.1f} MiB")
            plain = compare(servers, "udp_plain", asked, PLAIN)
            mixed = compare(servers, "udp_half_cookies", asked, PLAIN, WITH_COOKIE)
            tcp = compare(servers, "tcp_plain", asked, OVER_TCP)
            rate = HALF_LOAD
            for server in servers:
                slow = statistics.median(slow_answers(server.port, asked, rate) for _ in range(3))
                print(f"measured p99_at_{rate}_{server.name} {slow:.0f} us", flush=True)
        finally:
            for server in servers:
                server.process.kill()
    for title, figures, peer, goal in (
        ("udp_plain_to_nsd", plain, "nsd", 1.1),
        ("udp_half_cookies_to_nsd", mixed, "nsd", 1.4),
        ("udp_plain_to_pdns", plain, "pdns", 1.0),
        ("udp_plain_to_bind", plain, "bind", 1.0),
        ("udp_half_cookies_to_pdns", mixed, "pdns", 1.0),
        ("udp_half_cookies_to_bind", mixed, "bind", 1.0),
        ("tcp_plain_to_nsd", tcp, "nsd", 1.4),
        ("udp_cold_to_pdns", cold, "pdns", 2.0),
    ):
        if peer in figures:
            bar(title, figures["ours"] / figures[peer], goal)
    seconds, what = worst()
    print(f"measured longest_message {seconds * 1e3:.2f} ms: {what}")
    bar("longest_message_ms", seconds * 1e3, 5)
    if chosen.large:
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder)
            base.chmod(0o777)
            live(base, [*(size for size in LIVE_SIZES if size < chosen.large), chosen.large])
            large(base, chosen.large)


if __name__ == "__main__":
    main()
