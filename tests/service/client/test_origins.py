"""Which origin a visitor goes to, and where that is."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.task import Clock

from appliance.addresses import Origin
from appliance.service.client.dial import Target
from appliance.service.client.origins import ADDRESS_SECONDS, Origins, Way, in_words, status_of
from appliance.settings import ClientSettings, NameSettings
from appliance.tunnel.lane import Status
from appliance.tunnel.proxyheader import Kind
from appliance.tunnel.session import Offer

WEB = Origin("127.0.0.1", 8443)
PLAIN = Origin("127.0.0.1", 8080)
OTHER = Origin(path="/run/other.sock")
FILE, KEY = Path("c"), Path("k")


class Names(Clock):
    """A reactor that resolves host names when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver = self
        self.asked: list[tuple[Any, str, int]] = []

    def resolveHostName(self, receiver: Any, host: str, port: int) -> None:
        self.asked.append((receiver, host, port))

    def answer(self, *addresses: IPv4Address | IPv6Address) -> None:
        receiver, _, _ = self.asked.pop()
        receiver.resolutionBegan(None)
        for address in addresses:
            receiver.addressResolved(address)
        receiver.resolutionComplete()


def origins(
    granted: tuple[str, ...] = ("www.example.com",),
    reactor: Clock | None = None,
    **settings: Any,
) -> Origins:
    return Origins(ClientSettings(invitation=Path("i"), **settings), granted, reactor or Clock())


def test_what_is_offered() -> None:
    made = origins(
        ("www.example.com", "*.apps.example.com", "bare.example.com"),
        tls_origin=WEB,
        names={
            "*.apps.example.com": NameSettings(http_origin=PLAIN, http="serve"),
            "bare.example.com": NameSettings(),
        },
    )
    assert made.offers() == {
        "www.example.com": Offer(tls=True, http="redirect"),
        "*.apps.example.com": Offer(tls=False, http="serve"),
    }


def test_what_requests_say_of_the_visitor_is_offered_where_requests_are_served() -> None:
    made = origins(
        ("www.example.com", "a.example.com", "b.example.com"),
        tls_origin=WEB,
        forwarded="add",
        names={
            "a.example.com": NameSettings(http_origin=PLAIN, http="serve", forwarded="add"),
            "b.example.com": NameSettings(http_origin=PLAIN, http="serve"),
        },
    )
    assert made.offers() == {
        "www.example.com": Offer(tls=True, http="redirect"),
        "a.example.com": Offer(tls=False, http="serve", forwarded=True),
        "b.example.com": Offer(tls=False, http="serve"),
    }


def test_the_origin_of_a_name_and_kind() -> None:
    made = origins(
        ("www.example.com", "*.apps.example.com"),
        tls_origin=WEB,
        http_origin=PLAIN,
        names={
            "*.apps.example.com": NameSettings(tls_origin=OTHER, proxy_protocol=True),
            "one.apps.example.com": NameSettings(tls_origin=PLAIN),
        },
    )
    assert made.way("www.example.com", Kind.TLS) == Way(WEB, False)
    assert made.way("www.example.com", Kind.HTTP) == Way(PLAIN, False)
    assert made.way("two.apps.example.com", Kind.TLS) == Way(OTHER, True)
    assert made.way("a.b.apps.example.com", Kind.TLS) == Way(OTHER, True)
    assert made.way("two.apps.example.com", Kind.HTTP) is None
    assert made.way("one.apps.example.com", Kind.TLS) == Way(PLAIN, False)
    assert made.way("example.com", Kind.TLS) is None
    assert made.way("evil.test", Kind.TLS) is None


def find(made: Origins, origin: Origin) -> list[list[Target]]:
    found: list[list[Target]] = []
    made.find(origin, found.append)
    return found


@pytest.mark.parametrize(
    ("origin", "target"),
    [
        (WEB, Target(socket.AF_INET, ("127.0.0.1", 8443))),
        (Origin("::1", 80), Target(socket.AF_INET6, ("::1", 80))),
        (OTHER, Target(socket.AF_UNIX, "/run/other.sock")),
    ],
)
def test_an_address_needs_no_look_up(origin: Origin, target: Target) -> None:
    assert find(origins(), origin) == [[target]]


def test_a_host_name_is_looked_up_once_for_all_who_wait_and_kept_for_a_while() -> None:
    names = Names()
    made = origins(reactor=names)
    web = Origin("web", 8443)
    first, second = find(made, web), find(made, web)
    assert [asked[1:] for asked in names.asked] == [("web", 8443)]
    assert first == second == []
    names.answer(IPv6Address("TCP", "::1", 8443), IPv4Address("TCP", "127.0.0.1", 8443))
    both = [Target(socket.AF_INET6, ("::1", 8443)), Target(socket.AF_INET, ("127.0.0.1", 8443))]
    assert first == second == [both]
    assert find(made, web) == [both]
    names.advance(ADDRESS_SECONDS)
    assert find(made, web) == []
    assert len(names.asked) == 1


def test_a_host_name_without_an_address_is_asked_for_again() -> None:
    names = Names()
    made = origins(reactor=names)
    found = find(made, Origin("web", 1))
    names.answer()
    assert found == [[]]
    assert find(made, Origin("web", 1)) == []
    assert names.asked


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (errno.ECONNREFUSED, Status.ORIGIN_REFUSED),
        (errno.ENOENT, Status.ORIGIN_REFUSED),
        (errno.ETIMEDOUT, Status.ORIGIN_SILENT),
        (errno.EHOSTUNREACH, Status.ORIGIN_UNREACHABLE),
        (errno.EACCES, Status.ORIGIN_UNREACHABLE),
        (errno.EADDRNOTAVAIL, Status.BUSY),
        (errno.EMFILE, Status.BUSY),
    ],
)
def test_each_failure_has_a_status_and_words(number: int, status: Status) -> None:
    error = OSError(number, "Some words")
    assert status_of(error) is status
    assert in_words(error)


def test_ports_that_ran_out_are_named() -> None:
    words: Callable[[int], str] = lambda number: in_words(OSError(number, "x"))  # noqa: E731
    assert "no local port is left" in words(errno.EADDRNOTAVAIL)


def test_a_name_whose_tls_ends_here() -> None:
    made = origins(
        ("www.example.com", "*.apps.example.com", "bare.example.com"),
        tls_origin=WEB,
        names={
            "*.apps.example.com": NameSettings(
                http_origin=PLAIN, proxy_protocol=True, certificate=FILE, key=KEY
            ),
            "own.apps.example.com": NameSettings(http_origin=OTHER, certificate=Path("d"), key=Path("l")),
            "bare.example.com": NameSettings(http_origin=PLAIN, http="serve"),
            "other.example.com": NameSettings(http_origin=PLAIN, certificate=FILE, key=KEY),
        },
    )
    assert made.offers() == {
        "www.example.com": Offer(tls=True, http="redirect"),
        "*.apps.example.com": Offer(tls=True, http="redirect"),
        "bare.example.com": Offer(tls=False, http="serve"),
    }
    assert made.way("one.apps.example.com", Kind.TLS) == Way(PLAIN, True, terminated=True)
    assert made.way("one.apps.example.com", Kind.HTTP) == Way(PLAIN, True)
    assert made.way("own.apps.example.com", Kind.TLS) == Way(OTHER, False, terminated=True)
    assert made.way("www.example.com", Kind.TLS) == Way(WEB, False)
    assert made.way("bare.example.com", Kind.TLS) is None
    assert made.terminated() == {
        "*.apps.example.com": (FILE, KEY),
        "own.apps.example.com": (Path("d"), Path("l")),
    }
