"""What is revoked at the CA ends everywhere: two servers and two clients, and one that is away meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.programs import wait_for
from tests.end_to_end.site import Appliance
from tests.end_to_end.test_several import BACK_SECONDS, S1, S2, Fleet, lists, measured, sessions

OBEYED_SECONDS = 5.0


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.kill()


def linked(appliance: Appliance) -> set[str]:
    return {session["client"] for session in sessions(appliance)}


def number(directory: Path) -> bytes:
    path = directory / "state" / "revoked.pem"
    return path.read_bytes() if path.exists() else b""


def revoke(fleet: Fleet, what: str) -> float:
    began = time.monotonic()
    assert "revoked" in fleet.s1.command("revoke", what)
    return began


def test_a_revoked_client_and_a_stolen_server_are_cut_everywhere(fleet: Fleet) -> None:
    clients = {called: client.process for called, client in fleet.clients.items()}
    # While a is away, c's grant goes; s2 was never told by hand.
    fleet.clients["b"].kill()
    began = revoke(fleet, "other")
    for server in (fleet.s1, fleet.s2):
        assert server.process is not None
        server.process.says("other: link ended: the client's certificate was revoked", OBEYED_SECONDS)
    measured("revoked_client_cut_at_every_server", time.monotonic() - began, "s")
    assert "other" not in linked(fleet.s1) | linked(fleet.s2)
    assert clients["c"] is not None
    clients["c"].says("was revoked", BACK_SECONDS)
    assert number(fleet.s2.directory) == number(fleet.s1.directory) != b""
    wait_for(lambda: number(fleet.clients["a"].directory) == number(fleet.s1.directory), 5, "the list at a")

    # A server's key is stolen: a is told over its link to s1, leaves s2, and never comes back.
    assert clients["a"] is not None
    began = revoke(fleet, "s2")
    clients["a"].says("left server s2", OBEYED_SECONDS)
    wait_for(lambda: lists(fleet.s1, S1), OBEYED_SECONDS, "s2 out of A and TXT")
    measured("stolen_server_left_and_out", time.monotonic() - began, "s")
    clients["a"].says("cannot join the server at 127.0.0.2", BACK_SECONDS)
    assert linked(fleet.s2) == set()

    # b comes back: the list is with the one server that it may still join. A new start remembers it.
    fleet.clients["b"].start("s1")
    wait_for(lambda: number(fleet.clients["b"].directory) == number(fleet.s1.directory), 5, "the list at b")
    assert fleet.fetch(S1).split()[0] in "ab"
    assert linked(fleet.s2) == set()


def test_a_server_that_was_away_obeys_when_it_is_back(fleet: Fleet) -> None:
    fleet.s2.kill()
    wait_for(lambda: lists(fleet.s1, S1), 5, "s2 out of A and TXT")
    revoke(fleet, "other")
    wait_for(lambda: number(fleet.clients["a"].directory) != b"", 5, "the list at a")
    fleet.s2.start()
    began = time.monotonic()
    wait_for(
        lambda: number(fleet.s2.directory) == number(fleet.s1.directory), OBEYED_SECONDS, "the list at s2"
    )
    measured("list_at_a_server_that_was_away", time.monotonic() - began, "s")
    wait_for(lambda: lists(fleet.s1, S1, S2), BACK_SECONDS, "s2 in the records again")
    wait_for(lambda: linked(fleet.s2) == {"home"}, BACK_SECONDS, "the clients that may")
    status = json.loads(fleet.s2.command("status", "--json"))
    assert {session["client"] for session in status["sessions"]} == {"home"}
