"""`make bench-tls`: TLS that ends at the tunnel client, beside nginx that ends it behind the same tunnel.

Both ways lead through one tunnel server to one plain nginx, with an ECDSA P-256 certificate each:

    ours    visitor - server - client (ends TLS, frames requests, says who the visitor is) - plain nginx
    nginx   visitor - server - client (passes TLS on) - nginx (ends TLS, proxy_pass) - plain nginx

Counted is the CPU of everything between the visitor and the plain nginx: server and client; and in the second
way nginx, too. The visitors (h2load, curl, and Python for handshakes) and the plain nginx cost nothing in it.
Rounds in turn, medians. The lines `home` leave the tunnel server out; the lines `end` count only the process
that ends TLS: our client, which is an end of the tunnel as well, against nginx, which is none. The last lines
are `bar NAME VALUE GOAL ok|MISS`, VALUE the ratio of ours to nginx; the exit status is 1 if one was missed.
"""

from __future__ import annotations

import argparse
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.certificates import issue
from tests.end_to_end.joined import Joined
from tests.end_to_end.programs import Process, free_port, need, wait_for
from tests.end_to_end.site import ZONE, Client, tls_context

ROUNDS = 5
CONNECTIONS = 600
REQUESTS = 12_000
BULK_MEBIBYTES = 256
GOALS = {"handshake": 2.0, "resumption": 2.0, "keep_alive": 4.0, "bulk_down": 3.0, "bulk_up": 3.0}
WAYS = ("ours", "nginx")


@dataclass(frozen=True)
class Cost:
    """CPU seconds of a round: all in all, without the tunnel server, and where TLS ends."""

    whole: float
    home: float
    end: float


def cpu_seconds(process: Process) -> float:
    """What the kernel counted for a program and its threads; it has no children (schedstat: nanoseconds)."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) * 1e-9
        for task in Path(f"/proc/{process.pid}/task").iterdir()
    )


class Bench(Joined):
    """The two ways."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.plain_port = free_port("tcp")
        self.terminator_port = free_port("tcp")
        self.measured: dict[str, list[Process]] = {}
        self.server: Process

    def start(self) -> None:
        super().start()
        assert self.appliance.process is not None
        self.server = self.appliance.process
        certificates = {way: (self.directory / f"{way}.pem", self.directory / f"{way}.key") for way in WAYS}
        for way, files in certificates.items():
            issue(self.ca, f"{way}.{ZONE}").write(*files)
        (self.directory / "root").mkdir()
        (self.directory / "root" / "1k").write_bytes(os.urandom(512).hex().encode())
        (self.directory / "root" / "bulk").write_bytes(os.urandom(1 << 20) * BULK_MEBIBYTES)
        self._nginx("plain", PLAIN.format(port=self.plain_port, directory=self.directory))
        certificate, key = certificates["nginx"]
        nginx = self._nginx(
            "terminator",
            TERMINATOR.format(
                port=self.terminator_port, plain=self.plain_port, certificate=certificate, key=key
            ),
        )
        certificate, key = certificates["ours"]
        ours = self.join(
            "home", {"ours": {"http_origin": self.plain_port, "certificate": certificate, "key": key}}
        )
        passing = self.join("passing", {"nginx": {"tls_origin": self.terminator_port}})
        self.measured = {"ours": [_process(ours)], "nginx": [_process(passing), nginx]}

    def _nginx(self, name: str, servers: str) -> Process:
        directory = self.directory / name
        directory.mkdir()
        (directory / "nginx.conf").write_text(NGINX.format(directory=directory, servers=servers))
        process = self.running.enter_context(
            Process(
                [need("nginx"), "-p", directory, "-e", "stderr", "-c", directory / "nginx.conf"],
                directory / "log",
            )
        )
        wait_for((directory / "nginx.pid").exists, 10, f"nginx, {name}")
        return process

    def cost(self, way: str, load: Callable[[str], None]) -> Cost:
        """Of one round of this load."""
        before = [cpu_seconds(process) for process in (self.server, *self.measured[way])]
        load(way)
        after = [cpu_seconds(process) for process in (self.server, *self.measured[way])]
        server, *home = (late - early for early, late in zip(before, after, strict=True))
        return Cost(server + sum(home), sum(home), home[-1])

    # The loads

    def handshakes(self, way: str) -> None:
        """Each a connection of its own, one request on it."""
        self._connect(way, resumed=False)

    def resumptions(self, way: str) -> None:
        """The same with a ticket."""
        self._connect(way, resumed=True)

    def _connect(self, way: str, *, resumed: bool) -> None:
        host = f"{way}.{ZONE}"
        asked = f"GET /1k HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        context = tls_context(self.ca)
        context.set_alpn_protocols(["http/1.1"])

        def visit(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
            raw = socket.create_connection((self.appliance.address, self.ports.tls), timeout=20)
            with context.wrap_socket(raw, server_hostname=host, session=session) as tls:
                tls.sendall(asked)
                got = b""
                while octets := tls.recv(65536):
                    got += octets
                assert len(got) > 1024
                assert b" 200 " in got[:15]
                assert tls.session_reused is (session is not None)
                return tls.session

        first = visit(None) if resumed else None
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: visit(first), range(CONNECTIONS)))

    def keep_alive(self, way: str) -> None:
        """32 connections."""
        self._h2load(way, "-n", str(REQUESTS), "-c", "32")

    def bulk_down(self, way: str) -> None:
        """One connection."""
        self.curl(f"https://{way}.{ZONE}/bulk", "-o", "/dev/null")

    def bulk_up(self, way: str) -> None:
        """One connection."""
        bulk = self.directory / "root" / "bulk"
        self.curl(f"https://{way}.{ZONE}/upload", "-T", bulk, "-H", "Expect:", "-o", "/dev/null")

    def _h2load(self, way: str, *options: str) -> None:
        address = f"{self.appliance.address}:{self.ports.tls}"
        done = subprocess.run(
            [need("h2load"), "--h1", "-t", "1", *options, f"--connect-to={address}", f"https://{way}.{ZONE}/1k"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert f"{REQUESTS} 2xx" in done.stdout, done.stdout + done.stderr


NGINX = """\
daemon off; pid {directory}/nginx.pid; error_log stderr; worker_processes 1; master_process off;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_max_body_size 0; sendfile on; keepalive_requests 1000000; server_tokens off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
{servers}
}}
"""
PLAIN = """\
  server {{
    listen 127.0.0.1:{port};
    root {directory}/root;
    location = /upload {{ dav_methods PUT; }}
  }}
"""
TERMINATOR = """\
  upstream plain {{ server 127.0.0.1:{plain}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {certificate}; ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    location / {{
      proxy_pass http://plain; proxy_http_version 1.1; proxy_request_buffering off;
      proxy_max_temp_file_size 0;
      proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
    }}
  }}
"""


def _process(client: Client) -> Process:
    assert client.process is not None
    return client.process


def measure(bench: Bench, names: Sequence[str], rounds: int) -> dict[str, float]:
    """The ratio of ours to nginx by load; each figure is printed as it comes."""
    loads = {
        "handshake": (bench.handshakes, CONNECTIONS, 1e6, "us"),
        "resumption": (bench.resumptions, CONNECTIONS, 1e6, "us"),
        "keep_alive": (bench.keep_alive, REQUESTS, 1e6, "us"),
        "bulk_down": (bench.bulk_down, BULK_MEBIBYTES / 1024, 1.0, "s/GiB"),
        "bulk_up": (bench.bulk_up, BULK_MEBIBYTES / 1024, 1.0, "s/GiB"),
    }
    ratios = {}
    for name in names:
        load, count, scale, unit = loads[name]
        costs: dict[str, list[Cost]] = {way: [] for way in WAYS}
        for way in WAYS:
            load(way)  # warm
        for _ in range(rounds):
            for way in WAYS:
                costs[way].append(bench.cost(way, load))
        for kind in ("end", "home", "whole"):
            ours, nginx = (
                statistics.median(getattr(cost, kind) for cost in costs[way]) / count * scale for way in WAYS
            )
            print(f"measured {name}_{kind} {ours:.3g} to {nginx:.3g} {unit}, {ours / nginx:.2f}", flush=True)
            ratios[name] = ours / nginx
    return ratios


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--loads", default=",".join(GOALS))
    options.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        Path(folder).chmod(0o755)
        bench = Bench(Path(folder))
        with bench.running:
            bench.start()
            ratios = measure(bench, chosen.loads.split(","), chosen.rounds)
    missed = 0
    for name, ratio in ratios.items():
        ok = ratio <= GOALS[name]
        missed += not ok
        print(f"bar {name}_ours_to_nginx {ratio:.2f} {GOALS[name]:g} {'ok' if ok else 'MISS'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
