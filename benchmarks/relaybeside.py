"""What one visitor costs another: small requests beside bulky streams, and beside one who does not read."""

from __future__ import annotations

import sys
from contextlib import nullcontext

from benchmarks.relaybench import Bench, told
from benchmarks.relayidle import visitors
from benchmarks.relayload import fixed_rate
from benchmarks.relaypeers import ROOT, Tunnel
from benchmarks.relayresults import Row
from tests.end_to_end.programs import Process, free_port, wait_for
from tests.end_to_end.site import ZONE, listens

STREAMS = 8
SMALL_RATE = 400.0
"""A second: far below what the slowest can, so that what is seen is waiting and not work."""
SMALL_CONNECTIONS = 16
OTHERS = 63
SECONDS = 5


def besides(bench: Bench, row: Row) -> None:
    """p99 of small requests, alone and while bulky streams run in the same tunnel.

    The streams come from an origin of their own (`raworigin`) that costs next to nothing, so that what delays
    the small ones is the tunnel.
    """
    bulk, unused = free_port("tcp"), free_port("tcp")
    command = [sys.executable, "-m", "benchmarks.raworigin", str(bulk), str(unused), str(bench.web.big)]
    with Process(command, bench.directory / "raworigin.log", cwd=ROOT):
        wait_for(lambda: listens(bulk), 10, "the raw origin")
        origins = {**bench.origins, "bulk": bulk}
        for tunnel in bench.turns(row, ("ours", "haproxy", "frp", "rathole"), origins):
            where = [str(tunnel.ports["bulk"]), f"bulk.{ZONE}", str(STREAMS)]
            _alone_and_beside(bench, row, tunnel, "besides", "/", SMALL_CONNECTIONS, ["stream", *where])


def stalled(bench: Bench, row: Row) -> None:
    """63 visitors of a client, alone and beside one more who asks for a large file and does not read it."""
    for tunnel in bench.turns(row, ("ours", "frp", "rathole"), bench.origins):
        where = [str(tunnel.ports["www"]), f"www.{ZONE}", "1"]
        _alone_and_beside(bench, row, tunnel, "stalled", "/files/small", OTHERS, ["stare", *where])


def _alone_and_beside(
    bench: Bench, row: Row, tunnel: Tunnel, title: str, path: str, connections: int, neighbour: list[str]
) -> None:
    log = bench.directory / "latencies"
    p99: dict[str, float] = {}
    for beside in (False, True):
        here = bench.directory / "neighbour"
        with visitors(here, *neighbour) if beside else nullcontext(), told(f"{title}, {tunnel.name}"):
            took = fixed_rate(tunnel, "www", path, connections, SMALL_RATE, SECONDS, log)
            kind = title if beside else f"{title}_alone"
            p99[kind] = took[len(took) * 99 // 100]
            row.note(f"{kind}_p50", "us", tunnel.name, took[len(took) // 2])
            row.note(f"{kind}_p99", "us", tunnel.name, p99[kind])
            row.note(f"{kind}_served", "of 1", tunnel.name, len(took) / SMALL_RATE / SECONDS)
    if len(p99) == 2:
        row.note(f"{title}_times", "x", tunnel.name, p99[title] / p99[f"{title}_alone"])
