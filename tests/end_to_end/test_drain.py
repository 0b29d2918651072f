"""Orderly ends under load: visitors who believe the DNS and do not try again lose nothing.

The live TTL is what it is in production, so a drain of a server takes its 20 s.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import time
from collections.abc import Iterator

import pytest

from tests.end_to_end.programs import wait_for
from tests.end_to_end.resolving import NoRetry
from tests.end_to_end.test_several import BACK_SECONDS, NAME, S1, S2, Fleet, Watching, hosts, lists, measured

DRAINS = 20
REQUESTS = 10_000
SLACK_SECONDS = 5.0
"""For what takes no time: telling, a last look, the end of a process on a busy machine."""
LAST_SECONDS = 20.0
"""The TTL and 5 s more."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("drain"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


def crowd(fleet: Fleet, threads: int = 3) -> NoRetry:
    return NoRetry(fleet.context, NAME, fleet.s1, fleet.ports.tls, threads=threads)


def come(crowd: NoRetry, number: int) -> None:
    """Wait until so many more visitors are served."""
    now = time.monotonic()
    wait_for(lambda: len(crowd.since(now)) >= number, 120, f"{number} visitors")


def lost_of(crowd: NoRetry) -> str:
    return f"{len(crowd.lost)} of {len(crowd.visits)} requests"


@contextlib.contextmanager
def held(fleet: Fleet, address: str) -> Iterator[ssl.SSLSocket]:
    """A connection that stays, as browsers keep them."""
    with (
        socket.create_connection((address, fleet.ports.tls), timeout=20) as raw,
        fleet.context.wrap_socket(raw, server_hostname=NAME) as tls,
    ):
        ask(tls)
        yield tls


def ask(held: ssl.SSLSocket) -> None:
    held.sendall(f"GET /who HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
    assert b" 200 " in held.recv(4096)


def drain_server(fleet: Fleet, *, by_command: bool = False) -> tuple[float, float]:
    """Drain s2 and start it again: the seconds until it was out of the DNS, and until it had ended."""
    process = fleet.s2.process
    assert process is not None
    with held(fleet, S2) as last:
        began = time.monotonic()
        if by_command:
            assert "after 50 s at most" in fleet.s2.command("drain")
        else:
            process.tell(signal.SIGTERM)
        wait_for(lambda: lists(fleet.s1, S1), 5, "s2 out of A and TXT")
        out = time.monotonic() - began
        wait_for(
            lambda: "the last visitors finish" in process.output, LAST_SECONDS + SLACK_SECONDS, "the caches"
        )
        ask(last)
    wait_for(lambda: process.status is not None, SLACK_SECONDS, "the end of s2")
    ended = time.monotonic() - began
    assert process.status in (0, -signal.SIGTERM)
    assert "Traceback" not in process.output
    fleet.s2.start()
    wait_for(lambda: lists(fleet.s1, S1, S2), BACK_SECONDS, "s2 in the records again")
    wait_for(fleet.whole, BACK_SECONDS + 5, "every client at both servers")
    return out, ended


def drain_client(fleet: Fleet, called: str) -> float:
    """Drain a client and start it again: the seconds until it had ended."""
    process = fleet.clients[called].process
    assert process is not None
    began = time.monotonic()
    assert process.stop() in (0, -signal.SIGTERM)
    ended = time.monotonic() - began
    assert "Traceback" not in process.output
    fleet.clients[called].start("s1", "s2")
    return ended


def test_a_drained_server_loses_nobody(fleet: Fleet) -> None:
    assert fleet.s1.process is not None
    with Watching(fleet.s1) as watching, crowd(fleet) as visitors:
        come(visitors, 50)
        out, ended = drain_server(fleet)
        come(visitors, 50)
    measured("drained_server_out_of_the_records", out, "s")
    measured("drained_server_ended", ended, "s")
    print(f"measured drained_server_lost {lost_of(visitors)}")
    assert not visitors.lost, visitors.lost[:5]
    assert visitors.empty == 0
    assert set() not in watching.sets
    assert watching.serials == sorted(watching.serials)
    assert {S1, S2} <= {visit.addresses[0] for visit in visitors.visits}
    assert out < 1.0
    assert LAST_SECONDS <= ended < LAST_SECONDS + SLACK_SECONDS
    for client in fleet.clients.values():
        assert client.process is not None
        assert "server s2 at" in client.process.output
        assert "is leaving" in client.process.output
        assert "left server s1" not in client.process.output


def test_a_drained_client_loses_nobody(fleet: Fleet) -> None:
    with crowd(fleet) as visitors:
        come(visitors, 50)
        ended = drain_client(fleet, "a")
        come(visitors, 50)
    measured("drained_client_ended", ended, "s")
    print(f"measured drained_client_lost {lost_of(visitors)}")
    assert not visitors.lost, visitors.lost[:5]
    assert ended < SLACK_SECONDS


def test_a_second_sigterm_ends_a_drain_at_once(fleet: Fleet) -> None:
    process = fleet.s2.process
    assert process is not None
    process.tell(signal.SIGTERM)
    process.says("out of the DNS, and serving whoever still comes")
    status = json.loads(fleet.s2.command("status", "--json"))
    assert status["draining"]["state"] == "out of the DNS, and serving whoever still comes"
    began = time.monotonic()
    assert process.stop() in (0, -signal.SIGTERM)
    measured("second_sigterm_ended", time.monotonic() - began, "s")
    assert time.monotonic() - began < SLACK_SECONDS
    assert hosts(fleet.s1) == {S1}
    fleet.s2.start()
    wait_for(fleet.whole, BACK_SECONDS + 5, "every client at both servers")


def test_sigint_waits_for_nobody(fleet: Fleet) -> None:
    process = fleet.s2.process
    assert process is not None
    began = time.monotonic()
    with held(fleet, S2):
        assert process.stop(signal.SIGINT) in (0, -signal.SIGINT)
    assert time.monotonic() - began < SLACK_SECONDS
    fleet.s2.start()
    wait_for(fleet.whole, BACK_SECONDS + 5, "every client at both servers")


@pytest.mark.slow
def test_twenty_drains_of_a_server(fleet: Fleet) -> None:
    with Watching(fleet.s1) as watching, crowd(fleet) as visitors:
        come(visitors, 50)
        counted = [drain_server(fleet, by_command=bool(turn % 2)) for turn in range(DRAINS)]
        wait_for(lambda: len(visitors.visits) >= REQUESTS, 300, f"{REQUESTS} requests")
    measured(f"drained_server_{DRAINS}_times_out_of_the_records_worst", max(out for out, _ in counted), "s")
    measured(f"drained_server_{DRAINS}_times_ended_worst", max(ended for _, ended in counted), "s")
    print(
        f"measured drained_server_{DRAINS}_times_lost {len(visitors.lost)} of {len(visitors.visits)} requests"
    )
    assert not visitors.lost, visitors.lost[:5]
    assert visitors.empty == 0
    assert set() not in watching.sets


@pytest.mark.slow
def test_twenty_drains_of_a_client(fleet: Fleet) -> None:
    with crowd(fleet) as visitors:
        come(visitors, 50)
        counted = []
        for turn in range(DRAINS):
            counted.append(drain_client(fleet, "abc"[turn % 3]))
            come(visitors, REQUESTS // DRAINS)
    measured(f"drained_client_{DRAINS}_times_ended_worst", max(counted), "s")
    print(
        f"measured drained_client_{DRAINS}_times_lost {len(visitors.lost)} of {len(visitors.visits)} requests"
    )
    assert not visitors.lost, visitors.lost[:5]
