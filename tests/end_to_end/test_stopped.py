"""Programs that are stopped (SIGSTOP): their kernels accept and acknowledge, and only a nonce tells.

A visitor who was connected to a stopped server learns nothing either: he tries the next address after 3 s, as
a browser's user does.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.end_to_end.programs import Process, wait_for
from tests.end_to_end.test_several import BACK_SECONDS, S1, S2, Fleet, lists, measured, sessions
from tests.end_to_end.visitors import Crowd

OUT_SECONDS = 15.0
PATIENCE_SECONDS = 3.0
STOPS = 10


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("stopped"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


def crowd(fleet: Fleet) -> Crowd:
    made = fleet.crowd(threads=4)
    made.patience_seconds = PATIENCE_SECONDS
    return made


def stop_server(fleet: Fleet, visitors: Crowd) -> float:
    """SIGSTOP of s2 and, when it is out, SIGCONT: the seconds until it was out of A and TXT."""
    process = running(fleet.s2.process)
    began = time.monotonic()
    process.tell(signal.SIGSTOP)
    try:
        wait_for(lambda: lists(fleet.s1, S1), OUT_SECONDS + 5, "the stopped server out of A and TXT")
        out = time.monotonic() - began
        wait_for(lambda: len(visitors.since(began)) > 30, 20, "visitors meanwhile")
    finally:
        process.tell(signal.SIGCONT)
    wait_for(lambda: lists(fleet.s1, S1, S2), BACK_SECONDS + 15, "s2 in the records again")
    wait_for(fleet.whole, BACK_SECONDS + 15, "every client at both servers")
    return out


def stop_client(fleet: Fleet, visitors: Crowd) -> float:
    """SIGSTOP of c and, when its sessions are gone, SIGCONT: the seconds until they were."""
    process = running(fleet.clients["c"].process)
    logs = [running(server.process) for server in (fleet.s1, fleet.s2)]
    said = [log.output.count("link of other ended: a ping was not answered") for log in logs]
    began = time.monotonic()
    process.tell(signal.SIGSTOP)
    try:
        for log, before in zip(logs, said, strict=True):
            wait_for(
                lambda log=log, before=before: (  # type: ignore[misc]
                    log.output.count("link of other ended: a ping was not answered") > before
                ),
                OUT_SECONDS + 5,
                "the end of the stopped client's session",
            )
        out = time.monotonic() - began
        assert "other" not in {session["client"] for session in sessions(fleet.s1)}
        after = time.monotonic()
        wait_for(lambda: len(visitors.since(after)) > 30, 20, "visitors meanwhile")
        assert "c" not in {visit.origin for visit in visitors.since(after)}
    finally:
        process.tell(signal.SIGCONT)
    wait_for(fleet.whole, BACK_SECONDS + 15, "every client at both servers")
    return out


def running(process: Process | None) -> Process:
    assert process is not None
    return process


def test_a_server_is_stopped(fleet: Fleet) -> None:
    with crowd(fleet) as visitors:
        wait_for(lambda: len(visitors.visits) > 30, 10, "visitors")
        out = stop_server(fleet, visitors)
    measured("stopped_server_out_of_the_records", out, "s")
    losses = visitors.check(fleet.origins)  # every one of them was answered in the end
    print(f"measured stopped_server_lost_without_retry {losses}")
    assert out <= OUT_SECONDS


@pytest.mark.slow
def test_a_client_is_stopped(fleet: Fleet) -> None:
    with crowd(fleet) as visitors:
        wait_for(lambda: len(visitors.visits) > 30, 10, "visitors")
        out = stop_client(fleet, visitors)
    measured("stopped_client_out", out, "s")
    losses = visitors.check(fleet.origins)
    print(f"measured stopped_client_lost_without_retry {losses}")
    assert out <= OUT_SECONDS


@pytest.mark.slow
def test_ten_stops_of_a_server_and_of_a_client(fleet: Fleet) -> None:
    with crowd(fleet) as visitors:
        wait_for(lambda: len(visitors.visits) > 30, 10, "visitors")
        servers = [stop_server(fleet, visitors) for _ in range(STOPS)]
        clients = [stop_client(fleet, visitors) for _ in range(STOPS)]
    measured(f"stopped_server_{STOPS}_times_out_worst", max(servers), "s")
    measured(f"stopped_client_{STOPS}_times_out_worst", max(clients), "s")
    print(f"measured stopped_{STOPS}_times_each_lost_without_retry {visitors.check(fleet.origins)}")
    assert max(servers + clients) <= OUT_SECONDS
