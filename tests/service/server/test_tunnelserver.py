"""The server as a whole: it starts, says what it has, and stops without a trace."""

from __future__ import annotations

import socket

import pytest_twisted

from tests.service.server.linked import NAMES, Ground, client_credential, until


@pytest_twisted.ensureDeferred
async def test_stopped_it_says_goodbye_and_leaves_nothing() -> None:
    ground = Ground()
    link = await ground.link(client_credential())
    visitor = socket.create_connection(("127.0.0.1", ground.server.ports[1]))
    await until(lambda: link.names == NAMES)
    tls_port = ground.server.ports[0]
    await ground.close()
    assert link.end is not None
    assert link.end.reason == "stopping"
    assert ground.told[2:] == [("not serving", name) for name in NAMES]
    with visitor:
        visitor.settimeout(5)
        assert visitor.recv(1) == b""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", tls_port)) != 0


@pytest_twisted.ensureDeferred
async def test_its_status() -> None:
    ground = Ground()
    try:
        status = ground.server.status()
        assert (status["sessions"], status["joined"], status["visitors"]) == ([], 0, [])
        assert status["entry"]["open"] == 0
        link = await ground.link(client_credential())
        await until(lambda: link.names == NAMES)
        (session,) = ground.server.status()["sessions"]
        assert (session["client"], session["address"], session["visitors"]) == ("home", "127.0.0.1", 0)
    finally:
        await ground.close()
