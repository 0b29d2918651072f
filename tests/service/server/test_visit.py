"""What of a visitor's octets goes ahead to a client, what may be repeated, and what waits for the join."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock

from appliance.ingress.clienthello import ClientHello
from appliance.ingress.forwarded import forwarded
from appliance.ingress.httphead import HeadReader
from appliance.ingress.requests import Requests
from appliance.service.examined import Examined
from appliance.service.server.lanes import PLAIN, TLS
from appliance.service.server.visit import Request, Visit
from tests.ingress.test_requests import GET, HOST, OTHER, POST
from tests.service.turning import tcp_pair


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = tcp_pair()
    with near, far:
        yield near, far


def asked(far: socket.socket, octets: bytes) -> tuple[Request, Requests]:
    head = HeadReader().feed(octets)
    assert head is not None
    requests = Requests(HOST)
    requests.from_visitor(head.octets)
    source = ("192.0.2.1", 50000)
    return Request(far, source, head, octets[len(head.octets) :], requests, b"id", Clock()), requests


def test_by_tls(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    hello = ClientHello(HOST, (b"h2",), True, octets=b"hello", rest=b"early data")
    visit = Visit(far, near.getsockname(), HOST, hello, b"id")
    visit.going_to(forwarded=True)  # it cannot be: the octets are encrypted
    assert (visit.ahead, visit.behind()) == (b"hello", b"early data")
    assert (visit.kind, visit.alpn, visit.wire) == (PLAIN, b"h2", far)
    assert (visit.source, visit.destination) == (near.getsockname(), near.getpeername())


def test_each_client_gets_the_head_as_it_wants_it(pair: tuple[socket.socket, socket.socket]) -> None:
    _, far = pair
    who = "192.0.2.1"
    visit, _ = asked(far, GET + POST)
    assert visit.kind == TLS
    assert isinstance(visit.wire, Examined)
    visit.going_to(forwarded=True)
    assert visit.ahead == forwarded(GET, source=who, proto="http")
    visit.going_to(forwarded=False)
    assert visit.ahead == GET
    assert visit.behind() == POST


def test_a_head_with_a_body_waits(pair: tuple[socket.socket, socket.socket]) -> None:
    _, far = pair
    who = "192.0.2.1"
    head, body = POST[:-5], POST[-5:]
    visit, requests = asked(far, POST + GET + OTHER)
    visit.going_to(forwarded=True)
    assert visit.ahead == b""
    said = forwarded(head, source=who, proto="http") + body + forwarded(GET, source=who, proto="http")
    assert visit.behind() == said
    assert requests.refusal is not None
