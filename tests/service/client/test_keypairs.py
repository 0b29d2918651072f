"""Which certificate is shown for which name, and what TLS is spoken."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from appliance.service.client import keypairs as module
from appliance.service.client.keypairs import Keypairs
from appliance.service.client.tickets import Tickets
from appliance.tunnel.keypair import Keypair, KeypairRefused
from tests.certificates import issue
from tests.service.client.visiting import shake_hands, visitor_context

CA = trustme.CA()
WWW = issue(CA, "www.example.com").pair
NEWER = issue(CA, "www.example.com").pair
APPS = issue(CA, "*.apps.example.com").pair
NOW = datetime.now(UTC)


def make(state: Path) -> Keypairs:
    tickets = Tickets(state)
    tickets.renew(NOW)
    return Keypairs(tickets)


@pytest.fixture
def keypairs(tmp_path: Path) -> Keypairs:
    made = make(tmp_path)
    made.put("www.example.com", WWW)
    made.put("*.apps.example.com", APPS)
    return made


def context_of(keypairs: Keypairs, host: str) -> ssl.SSLContext:
    context = keypairs.context(host)
    assert context is not None
    return context


def serial(visitor: ssl.SSLObject) -> int:
    certificate = visitor.getpeercert()
    assert certificate
    return int(str(certificate["serialNumber"]), 16)


@pytest.mark.parametrize(
    ("host", "pair"), [("www.example.com", WWW), ("one.apps.example.com", APPS), ("x.www.example.com", None)]
)
def test_a_name_has_its_own(keypairs: Keypairs, host: str, pair: Keypair | None) -> None:
    if pair is None:
        assert keypairs.context(host) is None
        return
    visitor = shake_hands(context_of(keypairs, host), visitor_context(CA), host)
    assert serial(visitor) == pair.serial_number
    assert visitor.selected_alpn_protocol() == "http/1.1"
    assert visitor.version() == "TLSv1.3"


def test_a_newer_one_takes_its_place(keypairs: Keypairs) -> None:
    before = context_of(keypairs, "www.example.com")
    keypairs.put("www.example.com", NEWER)
    assert keypairs.current["www.example.com"] is NEWER
    after = context_of(keypairs, "www.example.com")
    assert serial(shake_hands(after, visitor_context(CA), "www.example.com")) == NEWER.serial_number
    # A handshake that had begun with the old one ends with it.
    assert serial(shake_hands(before, visitor_context(CA), "www.example.com")) == WWW.serial_number


def test_one_for_other_names_is_refused(keypairs: Keypairs) -> None:
    with pytest.raises(KeypairRefused, match=r"is not for www.example.com but for \*.apps.example.com"):
        keypairs.put("www.example.com", APPS)
    assert keypairs.current["www.example.com"] is WWW


def test_what_openssl_does_not_take_is_refused(keypairs: Keypairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TLS_1_2_CIPHERS", "ECDHE+AESGCM:@SECLEVEL=5")  # as if the key were weak
    with pytest.raises(KeypairRefused, match="is not taken by OpenSSL"):
        keypairs.put("www.example.com", NEWER)
    assert keypairs.current["www.example.com"] is WWW


@pytest.mark.parametrize(("sni", "alert"), [("other.example.com", True), (None, False)])
def test_another_name_in_the_sni(keypairs: Keypairs, sni: str | None, alert: bool) -> None:
    context = visitor_context(CA)
    context.check_hostname = False
    if not alert:  # no SNI at all: the server's default_name has brought him here
        shake_hands(context_of(keypairs, "www.example.com"), context, sni)
        return
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        shake_hands(context_of(keypairs, "www.example.com"), context, sni)


@pytest.mark.parametrize(
    ("host", "sni"),
    [
        ("www.example.com", "www.example.com."),
        ("www.example.com", "WWW.Example.com."),
        ("-a.apps.example.com", "-a.apps.example.com."),
    ],
)
def test_another_spelling_in_the_sni(keypairs: Keypairs, host: str, sni: str) -> None:
    """The server has taken it for the same name."""
    context = visitor_context(CA)
    context.check_hostname = False
    assert shake_hands(context_of(keypairs, host), context, sni).version() == "TLSv1.3"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_are_refused(keypairs: Keypairs, version: ssl.TLSVersion) -> None:
    context = visitor_context(CA)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        shake_hands(context_of(keypairs, "www.example.com"), context, "www.example.com")


def test_only_good_ciphers(keypairs: Keypairs) -> None:
    for cipher in context_of(keypairs, "www.example.com").get_ciphers():
        assert cipher["aead"], cipher
        assert cipher["protocol"] == "TLSv1.3" or cipher["name"].startswith("ECDHE-"), cipher


def test_h2_alone_is_not_chosen(keypairs: Keypairs) -> None:
    visitor = shake_hands(
        context_of(keypairs, "www.example.com"), visitor_context(CA, "h2"), "www.example.com"
    )
    assert visitor.selected_alpn_protocol() is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tickets_outlive_the_process_and_the_certificate(tmp_path: Path, version: ssl.TLSVersion) -> None:
    first, second = make(tmp_path), make(tmp_path)
    first.put("www.example.com", WWW)
    second.put("www.example.com", NEWER)
    assert first.lasting_tickets
    context = visitor_context(CA)
    context.maximum_version = version
    host = "www.example.com"
    visitor = shake_hands(context_of(first, host), context, host)
    assert not visitor.session_reused
    again = shake_hands(context_of(second, host), context, host, visitor.session)
    assert again.session_reused
    # A day later they are worth nothing.
    second._tickets.renew(NOW + timedelta(days=1))
    second.renew_tickets()
    assert not shake_hands(context_of(second, host), context, host, visitor.session).session_reused


def test_a_ticket_of_one_name_is_worth_nothing_at_another(tmp_path: Path) -> None:
    both = issue(CA, "www.example.com", "two.example.com").pair
    keypairs = make(tmp_path)
    keypairs.put("www.example.com", both)
    keypairs.put("two.example.com", both)
    context = visitor_context(CA)
    visitor = shake_hands(context_of(keypairs, "www.example.com"), context, "www.example.com")
    for host, reused in (("www.example.com", True), ("two.example.com", False)):
        again = shake_hands(context_of(keypairs, host), context, host, visitor.session)
        assert again.session_reused is reused

