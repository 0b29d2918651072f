"""Visitors of a tunnel: h2load for many small requests, curl for one large one. Their cost is their own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accounting import cpu_seconds
from benchmarks.relayorigin import BULK_OCTETS
from benchmarks.relaypeers import Tunnel
from tests.end_to_end.programs import need

LIMIT_SECONDS = 120.0
GIGABYTE = 1e9


@dataclass(frozen=True)
class Cost:
    """What was done in a measured time, and the CPU that both ends of the tunnel took for it."""

    units: float
    seconds: float
    cpu: float
    failed: int = 0

    @property
    def each_microseconds(self) -> float:
        return self.cpu / self.units * 1e6

    @property
    def a_second(self) -> float:
        return self.units / self.seconds


class Failed(Exception):
    """A load was not served whole."""


def keep_alive(tunnel: Tunnel, label: str, connections: int, seconds: int) -> Cost:
    """Requests on connections that stay, as fast as they are answered; handshakes are not counted."""
    command = [*_h2load(tunnel, label, "/"), f"-c{connections}", f"-D{seconds}", "--warm-up-time=1"]
    before = after = 0.0
    said = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as load:
        assert load.stdout is not None
        for line in load.stdout:
            said += line
            if line.startswith("Main benchmark duration is started"):
                before = cpu_seconds(tunnel.pids)
            elif line.startswith("Main benchmark duration is over"):
                after = cpu_seconds(tunnel.pids)
    return Cost(_succeeded(said), seconds, after - before)


def new_connections(tunnel: Tunnel, label: str, at_once: int, count: int) -> Cost:
    """A connection and a full TLS handshake with the origin for each request.

    Those that fail are counted: each takes what was left to one of the visitors with it.
    """
    command = [*_h2load(tunnel, label, "/"), f"-c{at_once}", f"-n{count}", "-H", "Connection: close"]
    before = cpu_seconds(tunnel.pids)
    said = _run(command)
    spent = cpu_seconds(tunnel.pids) - before
    took = re.search(r"finished in ([\d.]+)(ms|s)", said)
    served = re.search(r"(\d+) succeeded", said)
    if took is None or served is None or not int(served[1]):
        raise Failed(said)
    seconds = float(took[1]) * (0.001 if took[2] == "ms" else 1)
    return Cost(int(served[1]), seconds, spent, count - int(served[1]))


def fixed_rate(
    tunnel: Tunnel, label: str, path: str, connections: int, a_second: float, seconds: int, log: Path
) -> list[float]:
    """The latencies in microseconds of requests that come at a fixed rate, sorted.

    Each of the connections has a request at a time: one that is due while another is under way waits, and is
    timed from when it is sent.
    """
    log.unlink(missing_ok=True)
    each = f"--rps={a_second / connections:.6f}"
    command = [*_h2load(tunnel, label, path), f"-c{connections}", f"-D{seconds}", "--warm-up-time=1", each]
    _succeeded(_run([*command, f"--log-file={log}"]))
    took = []
    for line in log.read_text().splitlines():
        _, status, microseconds = line.split("\t")[:3]
        if status != "200":
            raise Failed(f"a request had the status {status}")
        took.append(float(microseconds))
    if not took:
        raise Failed("no request was answered")
    return sorted(took)


def download(tunnel: Tunnel, label: str) -> Cost:
    """The large file once; the unit is a gigabyte."""
    return _bulk(tunnel, "-o", "/dev/null", "-w", "%{size_download}", tunnel.url(label, "/files/big"))


def upload(tunnel: Tunnel, label: str, big: Path) -> Cost:
    what = ("-X", "POST", "-H", "Expect:", "-T", str(big))
    return _bulk(tunnel, *what, "-o", "/dev/null", "-w", "%{size_upload}", tunnel.url(label, "/sink"))


def _bulk(tunnel: Tunnel, *arguments: str) -> Cost:
    command = [need("curl"), "-sSk", "--fail", "--connect-to", "::127.0.0.1:", *arguments]
    command[-2] += " %{time_total}"
    before = cpu_seconds(tunnel.pids)
    octets, seconds = _run(command).split()
    spent = cpu_seconds(tunnel.pids) - before
    if int(octets) != BULK_OCTETS:
        raise Failed(f"{octets} octets instead of {BULK_OCTETS}")
    return Cost(BULK_OCTETS / GIGABYTE, float(seconds), spent)


def _h2load(tunnel: Tunnel, label: str, path: str) -> list[str]:
    where = f"--connect-to=127.0.0.1:{tunnel.ports[label]}"
    return [need("h2load"), "--h1", where, tunnel.url(label, path)]


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    if done.returncode:
        raise Failed(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def _succeeded(said: str) -> int:
    """How many requests h2load says were answered well, when all of them were."""
    found = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", said)
    if found is None or not int(found[1]) or any(int(found[index]) for index in (2, 3, 4)):
        raise Failed(said)
    return int(found[1])
