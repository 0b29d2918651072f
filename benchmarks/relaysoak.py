"""A long mixed load on the product, in a network where ports in TIME_WAIT are not used again.

The visitors and the origin do no cryptography (`soakvisitors`, `raworigin`), so that a million connections
fit into half an hour on two cores. Of both ends of the tunnel, memory and descriptors are looked at all the
time.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.accounting import cpu_seconds, descriptors, private_kibibytes
from benchmarks.relaybench import Bench
from benchmarks.relayidle import settled
from benchmarks.relaypeers import HTTP, ROOT, ours
from benchmarks.relayresults import OURS, Row
from tests.end_to_end.network import network
from tests.end_to_end.programs import Process, free_port, need
from tests.end_to_end.site import ZONE

LOOK_SECONDS = 5.0
SAY_SECONDS = 30.0
BACK_SECONDS = 330.0
"""Idle lanes halve every 30 s, from 256 at most to 2."""


def soak(bench: Bench, row: Row) -> None:
    with network(["127.0.0.1"]) as inside:
        subprocess.run([*inside, need("sysctl"), "-q", "-w", "net.ipv4.tcp_tw_reuse=0"], check=True)
        tls, http = free_port("tcp"), free_port("tcp")
        python = [*inside, sys.executable, "-m"]
        origin = [*python, "benchmarks.raworigin", str(tls), str(http), str(bench.web.big)]
        folder = bench.directory / "soak"
        folder.mkdir()
        with Process(origin, bench.directory / "origin.log", cwd=ROOT):
            tunnel = ours(folder, {"www": tls, HTTP: http}, inside)
            try:
                seconds = bench.minutes * 60
                where = [str(tunnel.ports["www"]), str(tunnel.ports[HTTP]), f"www.{ZONE}"]
                crowd = [*python, "benchmarks.soakvisitors", *where, str(bench.connections), str(seconds)]
                settled(lambda: descriptors(tunnel.pids))
                before, spent = descriptors(tunnel.pids), cpu_seconds(tunnel.pids)
                with Process(crowd, bench.directory / "crowd.log", cwd=ROOT) as visitors:
                    said = _watch(row, visitors, tunnel.pids)
                spent = cpu_seconds(tunnel.pids) - spent
                row.note("soak_connections", "connections", OURS, said["done"])
                row.note("soak_errors", "connections", OURS, sum(said["errors"].values()))
                for why, count in said["errors"].items():
                    print(f"  {count} times {why}", flush=True)
                row.note("soak_seconds", "s", OURS, said["seconds"])
                row.note("soak_cpu", "us", OURS, spent / max(said["done"], 1) * 1e6)
                row.note("soak_memory_growth", "x", OURS, _growth(row.series["memory"]))
                left = _back(tunnel.pids, before)
                row.note("soak_descriptors_left", "descriptors", OURS, left)
                row.note("soak_memory_after", "MiB", OURS, private_kibibytes(tunnel.pids) / 1024)
            finally:
                tunnel.kill()


def _watch(row: Row, visitors: Process, pids: tuple[int, int]) -> dict[str, Any]:
    """Until the crowd has gone; what it said last."""
    began = spoke = time.monotonic()
    memory = row.series.setdefault("memory", [])
    opened = row.series.setdefault("descriptors", [])
    while visitors.status is None:
        time.sleep(LOOK_SECONDS)
        now = time.monotonic()
        when = round(now - began, 1)
        memory.append((when, round(private_kibibytes(pids) / 1024, 2)))
        opened.append((when, descriptors(pids)))
        if now - spoke >= SAY_SECONDS:
            spoke = now
            last = visitors.output.rstrip().rpartition("\n")[2]
            print(f" {memory[-1][1]:.1f} MiB, {opened[-1][1]} descriptors, {last}", flush=True)
    lines = visitors.output.splitlines()
    if visitors.status or not lines:
        raise SystemExit(f"the visitors ended with {visitors.status}:\n{visitors.output[-2000:]}")
    said: dict[str, Any] = json.loads(lines[-1])
    return said


def _growth(memory: list[tuple[float, float]]) -> float:
    """The last tenth beside the second one: by then pools and allocators have had what they need."""
    tenth = max(len(memory) // 10, 1)
    second = statistics.median(mebibytes for _, mebibytes in memory[tenth : 2 * tenth] or memory)
    return statistics.median(mebibytes for _, mebibytes in memory[-tenth:]) / second


def _back(pids: tuple[int, int], before: int) -> int:
    """How many descriptors more than before are left."""
    end = time.monotonic() + BACK_SECONDS
    while (left := descriptors(pids) - before) > 0 and time.monotonic() < end:
        time.sleep(1)
    return left
