"""From a bare socket to a known peer: who dawdles, who is one too many, who has no certificate."""

from __future__ import annotations

import socket
import struct
import time
from typing import Any

import pytest
import pytest_twisted
from OpenSSL import SSL

from appliance.service.server import adoption
from appliance.tunnel.certificates import SERVICE_NAME, Credential, make_authority
from tests.service.server.linked import NAMESERVER, WALL, Ground, Mute, client_credential, ended, until

RESET = struct.pack("ii", 1, 0)


def hello(ground: Ground, alpn: bytes = b"tunnel/1", *, source: str = "127.0.0.1") -> socket.socket:
    """A connection whose ClientHello is sent, and nothing behind it."""
    connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    connection.set_connect_state()
    connection.set_tlsext_host_name(SERVICE_NAME.encode())
    connection.set_alpn_protos([alpn])
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    sock = socket.create_connection(("127.0.0.1", ground.server.ports[0]), source_address=(source, 0))
    sock.sendall(connection.bio_read(65536))
    sock.setblocking(False)
    return sock


@pytest_twisted.ensureDeferred
async def test_links_begin_their_handshakes_a_few_at_a_time() -> None:
    ground = Ground()
    try:
        adopted: Any = ground.server._adoption
        began: list[float] = []
        adopt = ground.server._line._adopt  # type: ignore[union-attr]

        def watched(sock: socket.socket, octets: bytes) -> None:
            began.append(time.monotonic())
            adopt(sock, octets)

        ground.server._line._adopt = watched  # type: ignore[union-attr]
        socks = [hello(ground) for _ in range(25)]
        watch = hello(ground, b"watch/1")
        await until(lambda: adopted._handshakes.total() >= 11)  # the watch is not in the line
        await until(lambda: len(began) == 25)
        for first, last in zip(began, began[10:], strict=False):
            assert last - first >= 0.0999
        for sock in (*socks, watch):
            sock.close()
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_a_handshake_that_is_not_finished_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "_HANDSHAKE_SECONDS", 0.05)
    ground = Ground()
    try:
        sock = hello(ground)
        await until(lambda: ended(sock))
        sock.close()
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_too_many_handshakes_of_one_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "_OF_ONE_SOURCE", 2)
    ground = Ground()
    try:
        socks = [hello(ground, b"watch/1", source="127.0.0.66") for _ in range(3)]
        await until(lambda: ended(socks[2]))
        link = await ground.link(client_credential())
        await until(lambda: link.names)
        assert [ended(sock) for sock in socks] == [False, False, True]
        for sock in socks:
            sock.close()
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_too_many_handshakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "_HANDSHAKES_AT_MOST", 2)
    ground = Ground()
    try:
        socks = [hello(ground) for _ in range(3)]
        await until(lambda: ended(socks[2]))
        for sock in socks:
            sock.close()
        adopted: Any = ground.server._adoption
        await until(lambda: not adopted._handshakes)
        link = await ground.link(client_credential())
        await until(lambda: link.names)
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_a_connection_that_was_reset_meanwhile_is_dropped() -> None:
    ground = Ground()
    try:
        adopted: Any = ground.server._adoption
        with socket.create_server(("127.0.0.1", 0)) as listening:
            near = socket.create_connection(listening.getsockname())
            far, _ = listening.accept()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        near.close()  # a reset
        far.setblocking(False)
        with pytest.raises(ConnectionResetError):
            far.recv(1)
        ground.server._readiness.register(far, lambda events: None)
        adopted.adopt(far, b"")
        assert far.fileno() < 0
        assert not adopted._handshakes
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_no_certificate_at_all() -> None:
    ground = Ground()
    try:
        link = await ground.link(None)
        await until(lambda: link.closed)
        assert b"no_certificate" in link.octets
    finally:
        await ground.close()


@pytest.fixture
def closing_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "_CLOSE_SECONDS", 0.1)


@pytest.mark.usefixtures("closing_soon")
@pytest.mark.parametrize("alpn", [b"tunnel/1", b"watch/1"])
@pytest.mark.parametrize("credential", [None, client_credential(ca=make_authority("another", WALL))])
@pytest_twisted.ensureDeferred
async def test_a_stranger_who_does_not_close_is_cut(alpn: bytes, credential: Credential | None) -> None:
    """He would keep a descriptor each time: his kernel answers the keep-alive of ours."""
    ground = Ground()
    try:
        stranger = Mute(ground, credential, alpn)
        await stranger.shake_hands()
        await until(stranger.is_cut)
        stranger.close()
    finally:
        await ground.close()


@pytest.mark.usefixtures("closing_soon")
@pytest_twisted.ensureDeferred
async def test_a_client_who_does_not_close_is_cut() -> None:
    ground = Ground()
    try:
        links: Any = ground.server._links
        client = Mute(ground, client_credential())
        await client.shake_hands()
        await until(lambda: links.sessions)
        (link,) = links._links.values()
        client.send(b"{" * 1000 + b"\n")
        await until(lambda: not links.sessions)
        assert not link._expiry.active()  # it would dismiss a session that is over
        await until(client.is_cut)
        client.close()
    finally:
        await ground.close()


@pytest.mark.usefixtures("closing_soon")
@pytest_twisted.ensureDeferred
async def test_a_nameserver_who_does_not_close_is_cut() -> None:
    ground = Ground()
    try:
        nameserver = Mute(ground, NAMESERVER, b"watch/1")
        await nameserver.shake_hands()
        await until(lambda: ground.watches)
        (doorstep,) = ground.server._adoption._open  # type: ignore[union-attr]
        doorstep.transport.loseConnection()  # type: ignore[union-attr]
        await until(nameserver.is_cut)
        nameserver.close()
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_nothing_is_left_of_who_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "_CLOSE_SECONDS", 60.0)
    ground = Ground()
    try:
        link = await ground.link(None)
        await until(lambda: link.closed)
        await ground.link(client_credential())  # the stop of the server closes this one
    finally:
        await ground.close()  # waits for the last timer


@pytest_twisted.ensureDeferred
async def test_who_was_reset_before_he_was_adopted() -> None:
    """After a second in which the server stood still, half of those in its queue may be."""
    ground = Ground()
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            gone = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            gone.close()
        await until(lambda: ended(accepted))
        adopted: Any = ground.server._adoption
        adopted._readiness.register(accepted, lambda events: None)
        adopted.adopt(accepted, b"a hello")
        assert accepted.fileno() == -1
        assert not adopted._handshakes
    finally:
        await ground.close()


@pytest_twisted.ensureDeferred
async def test_visitors_come_between_a_handshake_and_what_its_certificate_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ground = Ground()
    try:
        adopted: Any = ground.server._adoption
        order: list[str] = []
        examine, over = adopted._examine, adoption._Doorstep._handshake_over
        look = ground.server._readiness.look

        def is_over(doorstep: adoption._Doorstep) -> None:
            order.append("handshake")
            over(doorstep)

        def examined(*what: Any) -> Any:
            order.append("certificate")
            return examine(*what)

        def looked() -> None:
            order.append("visitors")
            look()

        monkeypatch.setattr(adoption._Doorstep, "_handshake_over", is_over)
        monkeypatch.setattr(adopted, "_examine", examined)
        monkeypatch.setattr(ground.server._readiness, "look", looked)
        link = await ground.link(client_credential())
        await until(lambda: link.names)
        at = order.index("certificate")
        assert order[at - 2 : at] == ["handshake", "visitors"]
    finally:
        await ground.close()
