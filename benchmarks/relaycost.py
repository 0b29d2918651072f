"""What a tunnel costs: CPU of both ends for octets, requests and connections, and the wait of a visitor."""

from __future__ import annotations

import statistics

from benchmarks.relaybench import Bench, told
from benchmarks.relayload import download, fixed_rate, keep_alive, new_connections, upload
from benchmarks.relaypeers import HTTP
from benchmarks.relayresults import Row

SECONDS = 3
LATENCY_SECONDS = 5
CONNECTIONS = (32, 512)
NEW_AT_ONCE = 32
NEW_COUNT = 3_000
BULK_TUNNELS = ("ours", "haproxy", "haproxy_splice", "frp", "frp_plain", "rathole")
TUNNELS = ("ours", "haproxy", "frp", "frp_plain", "rathole")


def bulk(bench: Bench, row: Row) -> None:
    """The large file down and up, over TLS."""
    for tunnel in bench.turns(row, BULK_TUNNELS, bench.origins):
        with told(f"bulk down, {tunnel.name}"):
            cost = download(tunnel, "www")
            row.note("bulk_down", "s/GB", tunnel.name, cost.cpu / cost.units)
            row.note("bulk_down_speed", "GB/s", tunnel.name, cost.a_second)
        with told(f"bulk up, {tunnel.name}"):
            cost = upload(tunnel, "www", bench.web.big)
            row.note("bulk_up", "s/GB", tunnel.name, cost.cpu / cost.units)
            row.note("bulk_up_speed", "GB/s", tunnel.name, cost.a_second)


def keepalive(bench: Bench, row: Row) -> None:
    """Small requests over TLS connections that stay."""
    for tunnel in bench.turns(row, TUNNELS, bench.origins):
        for connections in CONNECTIONS:
            with told(f"keep-alive, {tunnel.name}, {connections}"):
                cost = keep_alive(tunnel, "www", connections, SECONDS)
                row.note(f"keepalive_{connections}", "us", tunnel.name, cost.each_microseconds)
                row.note(f"keepalive_{connections}_rate", "1/s", tunnel.name, cost.a_second)


def new(bench: Bench, row: Row) -> None:
    """A connection with a full TLS handshake for each request."""
    for tunnel in bench.turns(row, TUNNELS, bench.origins):
        with told(f"new connections, {tunnel.name}"):
            cost = new_connections(tunnel, "www", NEW_AT_ONCE, NEW_COUNT)
            row.note("new", "us", tunnel.name, cost.each_microseconds)
            row.note("new_rate", "1/s", tunnel.name, cost.a_second)
            row.note("new_lost", "connections", tunnel.name, cost.failed)


def http(bench: Bench, row: Row) -> None:
    """Plain HTTP: our port 80, and frp's own HTTP proxy."""
    for tunnel in bench.turns(row, ("ours", "frp"), bench.origins_with_http):
        with told(f"HTTP keep-alive, {tunnel.name}"):
            cost = keep_alive(tunnel, HTTP, 32, SECONDS)
            row.note("http_keepalive", "us", tunnel.name, cost.each_microseconds)
            row.note("http_keepalive_rate", "1/s", tunnel.name, cost.a_second)
        with told(f"HTTP bulk, {tunnel.name}"):
            cost = download(tunnel, HTTP)
            row.note("http_bulk", "s/GB", tunnel.name, cost.cpu / cost.units)
            row.note("http_bulk_speed", "GB/s", tunnel.name, cost.a_second)


def latency(bench: Bench, row: Row) -> None:
    """p50 and p99 at half of what the slower of the two can do; the others at the same rate."""
    capacity: dict[str, list[float]] = {}
    with bench.tunnels(TUNNELS, bench.origins) as tunnels:
        for tunnel in tunnels:
            if tunnel.name in ("ours", "rathole"):
                for _ in range(bench.rounds):
                    capacity.setdefault(tunnel.name, []).append(keep_alive(tunnel, "www", 32, 2).a_second)
        rate = min(statistics.median(values) for values in capacity.values()) / 2
        for number in range(bench.rounds):
            print(f" latency at {rate:.0f} a second, round {number + 1} of {bench.rounds}", flush=True)
            for tunnel in tunnels:
                with told(f"latency, {tunnel.name}"):
                    log = bench.directory / "latencies"
                    took = fixed_rate(tunnel, "www", "/", 32, rate, LATENCY_SECONDS, log)
                    row.note("latency_p50", "us", tunnel.name, took[len(took) // 2])
                    row.note("latency_p99", "us", tunnel.name, took[len(took) * 99 // 100])
                    row.note("latency_rate", "1/s", tunnel.name, len(took) / (LATENCY_SECONDS))
