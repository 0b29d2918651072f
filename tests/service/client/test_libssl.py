"""Ticket keys are given to the libssl of Python's own ``ssl``."""

from __future__ import annotations

import ssl

import pytest

from appliance.service.client import libssl
from appliance.service.client.libssl import TICKET_KEYS_OCTETS, set_ticket_keys


def test_keys_can_be_set_on_this_python() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert set_ticket_keys(context, bytes(TICKET_KEYS_OCTETS))
    assert set_ticket_keys(context, b"a" * TICKET_KEYS_OCTETS)


def test_the_wrong_number_of_octets() -> None:
    with pytest.raises(ValueError, match="80 octets"):
        set_ticket_keys(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), b"short")


def test_where_it_cannot_be_done_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    monkeypatch.setattr(libssl, "_library", lambda: None)
    assert not set_ticket_keys(context, bytes(TICKET_KEYS_OCTETS))

    class Another:
        """A library that finds other options in what it takes for the same context."""

        def SSL_CTX_get_options(self, _: object) -> int:
            return 0

    monkeypatch.setattr(libssl, "_library", Another)
    assert not set_ticket_keys(context, bytes(TICKET_KEYS_OCTETS))
