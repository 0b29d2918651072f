from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.tunnel.keypair import KeypairRefused, Part, read_keypair
from tests.certificates import issue
from tests.effort import examples

CA = trustme.CA()
BELOW = CA.create_child_ca()
WWW = issue(BELOW, "www.example.com", "*.apps.example.com")
RSA = issue(CA, "www.example.com", rsa=True)
OTHER = issue(CA, "www.example.com")


def with_password(pem: bytes) -> bytes:
    key = serialization.load_pem_private_key(pem, None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def test_a_pair() -> None:
    assert WWW.certificate.count(b"BEGIN") == 2  # with the one between it and the root
    pair = WWW.pair
    assert pair.names == ("www.example.com", "*.apps.example.com")
    assert pair.certificate_pem == WWW.certificate
    assert str(WWW.key) not in repr(pair)
    assert RSA.pair.names == ("www.example.com",)


def test_one_that_has_expired_is_read() -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    pair = issue(CA, "www.example.com", expires=yesterday).pair
    assert abs(pair.expires - yesterday) < timedelta(seconds=2)


@pytest.mark.parametrize(
    ("name", "is_for"),
    [
        ("www.example.com", True),
        ("one.apps.example.com", True),
        ("*.apps.example.com", True),
        ("apps.example.com", False),
        ("a.one.apps.example.com", False),  # one label only, other than in the DNS
        ("*.one.apps.example.com", False),
        ("*.example.com", False),
        ("example.com", False),
    ],
)
def test_which_names_it_is_for(name: str, is_for: bool) -> None:
    assert WWW.pair.is_for(name) is is_for


@pytest.mark.parametrize(
    ("certificate", "key", "part", "words"),
    [
        (b"", WWW.key, "certificate", "holds no certificate"),
        (b"hello", WWW.key, "certificate", "holds no certificate"),
        (WWW.key, WWW.key, "certificate", "holds no certificate"),
        (WWW.certificate[:300], WWW.key, "certificate", "is cut off"),
        (WWW.certificate[:-40], WWW.key, "certificate", "is cut off"),
        (WWW.certificate.replace(b"M", b"!"), WWW.key, "certificate", "holds no certificate"),
        (WWW.certificate, b"", "key", "holds no private key"),
        (WWW.certificate, WWW.key[:100], "key", "holds no private key"),
        (WWW.certificate, WWW.certificate, "key", "holds no private key"),
        (WWW.certificate, OTHER.key, "key", "is not the key"),
        (WWW.certificate, RSA.key, "key", "is not the key"),
        (WWW.certificate, with_password(WWW.key), "key", "is encrypted"),
    ],
    ids=map(str, range(12)),  # not the octets, which are others in each process
)
def test_what_is_no_pair(certificate: bytes, key: bytes, part: Part, words: str) -> None:
    with pytest.raises(KeypairRefused, match=words) as caught:
        read_keypair(certificate, key)
    assert caught.value.part == part


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=examples(300), deadline=None)
@given(st.data())
def test_whatever_the_files_hold_there_is_one_error(data: st.DataObject) -> None:
    """A file that is cut off anywhere, or has an octet that is wrong, is refused, or read without a fault."""
    pems = [WWW.certificate, WWW.key]
    which = data.draw(st.sampled_from([0, 1]))
    at = data.draw(st.integers(0, len(pems[which]) - 1))
    octet = data.draw(st.none() | st.binary(min_size=1, max_size=1))
    pems[which] = pems[which][:at] + (b"" if octet is None else octet + pems[which][at + 1 :])
    try:
        pair = read_keypair(*pems)
    except KeypairRefused:
        return
    assert all(isinstance(name, str) for name in pair.names)


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_octets_that_are_no_pem(certificate: bytes, key: bytes) -> None:
    with pytest.raises(KeypairRefused):
        read_keypair(certificate, key)
