"""What a CA is sent, and what is read of what it sends."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import trustme
from acme.client import _renewal_info_path_component
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from appliance.tunnel.certificaterequest import (
    WindowRefused,
    certificate_id,
    lifetime_of,
    new_key,
    read_window,
    request_for,
)
from tests.certificates import issue

AUTHORITY = trustme.CA()


@pytest.mark.parametrize("name", ["www.example.com", "*.apps.example.com"])
def test_a_request_is_for_the_name_and_by_the_key(name: str) -> None:
    pem = new_key()
    key = load_pem_private_key(pem.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    asked = request_for(name, pem)
    assert asked.is_signature_valid
    assert asked.public_key() == key.public_key()
    names = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name]
    assert not list(asked.subject)


def test_no_two_keys_are_the_same() -> None:
    assert new_key() != new_key()


def test_the_identity_of_a_certificate_is_what_the_library_makes_of_it() -> None:
    """Among 40 random serial numbers there are some whose first bit is set."""
    for _ in range(40):
        pem = issue(AUTHORITY, "www.example.com").certificate
        leaf = x509.load_pem_x509_certificates(pem)[0]
        assert certificate_id(pem) == _renewal_info_path_component(leaf)


def test_without_a_signer_there_is_no_identity() -> None:
    assert certificate_id(AUTHORITY.cert_pem.bytes()) is None


def test_the_lifetime_is_the_leafs() -> None:
    ends = datetime(2026, 12, 24, tzinfo=UTC)
    assert lifetime_of(issue(AUTHORITY, "www.example.com", expires=ends).certificate).ends == ends


def test_a_window() -> None:
    """RFC 9773 4.2's own."""
    said = {"suggestedWindow": {"start": "2025-01-02T04:00:00Z", "end": "2025-01-03T04:00:00Z"}}
    first, last = datetime(2025, 1, 2, 4, tzinfo=UTC), datetime(2025, 1, 3, 4, tzinfo=UTC)
    assert read_window(said) == (first, last)


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {},
        {"suggestedWindow": "now"},
        {"suggestedWindow": {"start": "2025-01-02T04:00:00Z"}},
        {"suggestedWindow": {"start": "2025-01-02T04:00:00Z", "end": "soon"}},
        {"suggestedWindow": {"start": "2025-01-02T04:00:00Z", "end": "2025-01-01T04:00:00Z"}},
        {"suggestedWindow": {"start": "2025-01-02T04:00:00", "end": "2025-01-03T04:00:00Z"}},
        {"suggestedWindow": {"start": "2025-01-02T04:00:00", "end": "2025-01-03T04:00:00"}},
        {"suggestedWindow": {"start": 0, "end": 1}},
    ],
)
def test_what_is_no_window(said: Any) -> None:
    with pytest.raises(WindowRefused):
        read_window(said)
