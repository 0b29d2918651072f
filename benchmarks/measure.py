"""`make measure`: what one appliance with one client costs, one line each: `measured NAME VALUE UNIT`.

CPU is the processes' own accounting (user and system), divided by the units of work; the load comes from
other processes, so its cost is not in the figures. Medians of several rounds. Absolute figures hold for one
machine in one hour: compare them with figures of the same run only.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import trustme

from tests.end_to_end.programs import Process
from tests.end_to_end.site import ZONE, Appliance, Client, Nginx, Ports, tls_context

NAME = f"www.{ZONE}"
ROUNDS = 5
THREADS = 8
REQUESTS = 4_000
CONNECTIONS = 800
QUERIES_A_SECOND = 3_000
QUERY_SECONDS = 3

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(process: Process) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_SECONDS


def resident_mebibytes(process: Process) -> float:
    """What a process has for itself alone, in memory."""
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no Pss in smaps_rollup")


def report(name: str, value: float, unit: str) -> None:
    print(f"measured {name} {value:.3g} {unit}", flush=True)


def cpu_each(work: Callable[[], int], *processes: Process) -> float:
    """Microseconds of CPU of these processes for each unit that ``work`` says it did; the median of the
    rounds.
    """
    work()  # warm: tables, pools, code
    rounds = []
    for _ in range(ROUNDS):
        before = sum(map(cpu_seconds, processes))
        units = work()
        rounds.append((sum(map(cpu_seconds, processes)) - before) / units * 1e6)
    return statistics.median(rounds)


class Visitors:
    """Many visitors of the site at once."""

    def __init__(self, appliance: Appliance, ca: trustme.CA) -> None:
        self._appliance = appliance
        self._ca = ca
        self._pool = ThreadPoolExecutor(THREADS)

    def _connection(self, context: ssl.SSLContext) -> http.client.HTTPSConnection:
        address, port = self._appliance.address, self._appliance.ports.tls
        connection = http.client.HTTPSConnection(NAME, port, context=context, timeout=30)
        # The name is the visitor's own business; the address is what our DNS would have told him.
        connection._create_connection = lambda _, *more: _connect((address, port), *more)  # type: ignore[attr-defined]
        return connection

    def _ask(self, count: int, keep: bool) -> None:
        context = tls_context(self._ca)
        connection = self._connection(context)
        for _ in range(count):
            connection.request("GET", "/")
            response = connection.getresponse()
            assert response.status == 200, response.status
            response.read()
            if not keep:
                connection.close()
        connection.close()

    def keep_alive(self) -> int:
        """Requests on connections that stay."""
        list(self._pool.map(lambda _: self._ask(REQUESTS // THREADS, True), range(THREADS)))
        return REQUESTS

    def new_connections(self) -> int:
        """A TLS handshake with the origin for each request."""
        list(self._pool.map(lambda _: self._ask(CONNECTIONS // THREADS, False), range(THREADS)))
        return CONNECTIONS


def _connect(address: tuple[str, int], *_: object) -> socket.socket:
    return socket.create_connection(address, 30)


def dns_load(appliance: Appliance, directory: Path) -> Callable[[], int]:
    """dnsperf with a mix: names that exist, that do not, and types that do not."""
    queries = directory / "queries"
    queries.write_text(f"{NAME} A\n{NAME} TXT\n{NAME} AAAA\n{ZONE} SOA\nno.such.{ZONE} A\nstatic.{ZONE} A\n")

    command = ["dnsperf", "-s", appliance.address, "-p", str(appliance.ports.dns), "-d", str(queries)]

    def load() -> int:
        done = subprocess.run(
            [*command, "-l", str(QUERY_SECONDS), "-Q", str(QUERIES_A_SECOND), "-e"],
            capture_output=True,
            text=True,
            check=True,
        )
        figures = dict(line.strip().split(":", 1) for line in done.stdout.splitlines() if ":" in line)
        assert figures["Queries lost"].split()[0] == "0", done.stdout
        return int(figures["Queries completed"].split()[0])

    return load


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        directory.chmod(0o755)
        ca = trustme.CA()
        nginx = Nginx(directory / "nginx", [NAME], ca)
        appliance = Appliance(directory / "s1", Ports())
        try:
            measure(directory, ca, nginx, appliance)
        finally:
            appliance.kill()
            nginx.kill()


def measure(directory: Path, ca: trustme.CA, nginx: Nginx, appliance: Appliance) -> None:
    nginx.start()
    starts = []
    for _ in range(ROUNDS):
        began = time.monotonic()
        server = appliance.start()
        starts.append(time.monotonic() - began)
        if len(starts) < ROUNDS:
            server.stop()
    report("appliance_start", statistics.median(starts), "s")
    origins = ["--tls-origin", f"127.0.0.1:{nginx.tls}", "--http-origin", f"127.0.0.1:{nginx.http}"]
    home = Client(directory / "client", appliance.invite(NAME), appliance, *origins)
    try:
        began = time.monotonic()
        client = home.start("s1")
        report("client_start_to_joined", time.monotonic() - began, "s")
        report("appliance_memory_at_rest", resident_mebibytes(server), "MiB")
        report("client_memory_at_rest", resident_mebibytes(client), "MiB")
        report("cpu_per_dns_query", cpu_each(dns_load(appliance, directory), server), "us")
        visitors = Visitors(appliance, ca)
        report("cpu_per_keep_alive_request", cpu_each(visitors.keep_alive, server, client), "us")
        report("cpu_per_new_connection", cpu_each(visitors.new_connections, server, client), "us")
    finally:
        home.kill()


if __name__ == "__main__":
    main()
