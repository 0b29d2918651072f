"""What every row needs: a folder, a web server, tunnels that run, how many rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.relayload import Failed, new_connections
from benchmarks.relayorigin import WebServer
from benchmarks.relaypeers import HTTP, Tunnel, present, start
from benchmarks.relayresults import Row

WARMING = 200
"""Connections before anything is counted: pools have grown, code is warm."""


@dataclass
class Bench:
    directory: Path
    rounds: int
    web: WebServer
    only: Sequence[str] = ()
    """The tunnels to measure, where not all are."""
    minutes: float = 30
    connections: int = 1_000_000
    """Of the soak."""

    @property
    def origins(self) -> Mapping[str, int]:
        return {"www": self.web.tls}

    @property
    def origins_with_http(self) -> Mapping[str, int]:
        return {**self.origins, HTTP: self.web.http}

    @contextmanager
    def tunnels(self, wanted: Sequence[str], origins: Mapping[str, int]) -> Iterator[list[Tunnel]]:
        """Those that can be had, running and warm."""
        with ExitStack() as running:
            made = []
            for name in present([one for one in wanted if not self.only or one in self.only]):
                tunnel = start(name, self.directory, origins)
                running.callback(tunnel.kill)
                if "www" in origins:
                    new_connections(tunnel, "www", 32, WARMING)
                made.append(tunnel)
                print(f" {name}: server {tunnel.server}, client {tunnel.client}", flush=True)
            yield made

    def turns(self, row: Row, wanted: Sequence[str], origins: Mapping[str, int]) -> Iterator[Tunnel]:
        """Every tunnel once in each round, in turns that begin with another one each time."""
        with self.tunnels(wanted, origins) as tunnels:
            for number in range(self.rounds):
                print(f" {row.name}, round {number + 1} of {self.rounds}", flush=True)
                first = number % len(tunnels)
                yield from tunnels[first:] + tunnels[:first]


@contextmanager
def told(what: str) -> Iterator[None]:
    """A load that failed is said, and its figure is missing from the round."""
    try:
        yield
    except Failed as failed:
        print(f"FAILED {what}: {str(failed)[-600:]}", flush=True)
