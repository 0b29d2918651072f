"""Who gets a renewal, when, how often, and what is on disk by then."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from appliance.service.authority import Authority, NotIssued
from appliance.service.signing import MAX_RENEWALS_OF_ONE, PER_SECOND
from appliance.service.store import StoreFailed
from appliance.tunnel.certificates import Credential, Role, issue_client, make_authority, read_credential
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.renewal import RenewalRefused, Request, ask, new_key, take
from tests.service.test_authority import WALL, Machine, now

DAYS = 90
LATE = WALL + timedelta(days=61)
NAMES = ["www.a.test", "*.apps.a.test"]
AT = [ServerAddress("203.0.113.9"), ServerAddress("2001:db8::9")]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "state")
    yield made
    made.store.close()


def refused(deferred: Deferred[str]) -> str:
    failures: list[Failure] = []
    deferred.addErrback(failures.append)
    (failure,) = failures
    assert isinstance(failure.value, RenewalRefused)
    return str(failure.value)


def invited(authority: Authority, client_id: str = "a") -> Credential:
    return read_credential(now(authority.invite(NAMES, client_id)).credential_pem)


def renewed(authority: Authority, held: Credential) -> Credential:
    key = new_key()
    return take(held.certificate, key, now(authority.renew(ask(held, key))), authority.ca)


def test_a_client_a_server_and_a_nameserver(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    enrolment = now(authority.enroll("s2", AT))
    for held, role in (
        (invited(authority), Role.CLIENT),
        (read_credential(enrolment.credential_pem), Role.SERVER),
    ):
        machine.wall = LATE
        after = renewed(authority, held)
        machine.wall = WALL + timedelta(days=91)  # the old one has ended
        peer = authority.examine(after.certificate, role)
        assert peer.expires == LATE + timedelta(days=DAYS)
        assert peer.names == authority_names(held)
        row = machine.store.issued_as(peer.serial)
        assert row is not None
        assert (row.role, row.id, row.expires) == (role.name.lower(), peer.id, peer.expires.timestamp())
        machine.wall = WALL


def authority_names(held: Credential) -> tuple[str, ...]:
    sans = held.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(sans.get_values_for_type(x509.DNSName))


def test_the_same_request_gets_the_same_answer_also_after_a_restart(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    request = ask(invited(authority), new_key())
    machine.wall = LATE
    first = now(authority.renew(request))
    rows = len(machine.store.issued())
    assert now(authority.renew(request)) == first
    assert now(machine.authority(days=DAYS).renew(request)) == first
    assert len(machine.store.issued()) == rows


def test_it_is_on_disk_before_it_is_told(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    held = invited(authority)
    machine.wall = LATE
    recorded: Deferred[None] = Deferred()
    machine.store.record_renewed = lambda *_: recorded  # type: ignore[method-assign]
    told: list[Any] = []
    request = ask(held, new_key())
    authority.renew(request).addCallback(told.append)
    assert not told
    assert "at this moment" in refused(authority.renew(request))
    recorded.callback(None)
    assert told


def test_a_disk_that_fails(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    held = invited(authority)
    machine.wall = LATE
    failed: Deferred[None] = Deferred()
    machine.store.record_renewed = lambda *_: failed  # type: ignore[method-assign]
    request = ask(held, new_key())
    asked = authority.renew(request)
    failed.errback(StoreFailed("full"))
    assert "cannot write" in refused(asked)
    del machine.store.record_renewed
    now(authority.renew(request))


def test_what_is_revoked_while_it_is_on_its_way_to_the_disk_is_revoked(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    held = invited(authority)
    machine.wall = LATE
    real = machine.store.record_renewed
    late: list[Any] = []
    waits: Deferred[None] = Deferred()

    def later(*what: Any) -> Deferred[None]:
        late.append(what)
        return waits

    machine.store.record_renewed = later  # type: ignore[method-assign,assignment]
    key = new_key()
    told: list[str] = []
    authority.renew(ask(held, key)).addCallback(told.append)
    real(*late[0])  # the disk's order is that of the questions
    now(authority.revoke("a"))
    waits.callback(None)
    renewed_ = take(held.certificate, key, told[0], authority.ca)
    assert {held.certificate.serial_number, renewed_.certificate.serial_number} <= authority.revoked.serials


@pytest.mark.parametrize("days", [0, 30, 59])
def test_not_before_a_third_is_left(machine: Machine, days: int) -> None:
    authority = machine.authority(days=DAYS)
    held = invited(authority)
    machine.wall = WALL + timedelta(days=days)
    assert "it can be renewed from 2027-01-22 on" in refused(authority.renew(ask(held, new_key())))


def test_a_key_that_was_stolen_cannot_mint_for_ever(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    held = invited(authority)
    machine.wall = LATE
    for _ in range(MAX_RENEWALS_OF_ONE):
        after = renewed(authority, held)
    assert "16 times" in refused(authority.renew(ask(held, new_key())))
    assert "can be renewed from" in refused(authority.renew(ask(after, new_key())))
    now(authority.revoke("a"))
    assert "revoked" in refused(authority.renew(ask(after, new_key())))
    assert "revoked" in refused(authority.renew(ask(held, new_key())))


def test_whose_is_refused(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    held = invited(authority)
    machine.wall = LATE
    unknown = issue_client(
        authority._ca(), client_id="x", names=NAMES, service_name=authority.service_name, wall=WALL, days=DAYS
    )
    assert "no record" in refused(authority.renew(ask(unknown, new_key())))
    stranger = make_authority("another", WALL)
    forged = issue_client(
        stranger, client_id="a", names=NAMES, service_name=authority.service_name, wall=WALL, days=DAYS
    )
    assert "another CA" in refused(authority.renew(ask(forged, new_key())))
    good = ask(held, new_key())
    assert "not signed with the key" in refused(
        authority.renew(Request(good.certificate, good.request, "AAAA"))
    )
    machine.wall = WALL + timedelta(days=91)
    assert "expired" in refused(authority.renew(good))


def test_a_key_that_has_a_certificate_gets_no_other(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    first, second = invited(authority), invited(authority)
    machine.wall = LATE
    key = new_key()
    now(authority.renew(ask(first, key)))
    assert "has a certificate already" in refused(authority.renew(ask(second, key)))


def test_a_server_that_is_enrolled_elsewhere_now(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    held = read_credential(now(authority.enroll("s2", AT)).credential_pem)
    now(authority.enroll("s2", AT[:1]))
    machine.wall = LATE
    assert "not enrolled for these addresses" in refused(authority.renew(ask(held, new_key())))


def test_the_ca_ends(machine: Machine) -> None:
    authority = machine.authority(days=5000)  # cut to the CA's own end
    held = invited(authority)
    machine.wall = WALL + timedelta(days=3000)
    assert "the CA itself ends" in refused(authority.renew(ask(held, new_key())))


def test_certificates_have_fewer_days_than_when_it_was_issued(machine: Machine) -> None:
    """The end of the CA is ten years away and none of the reasons."""
    held = invited(machine.authority(days=365))
    authority = machine.authority(days=30)
    machine.wall = WALL + timedelta(days=300)
    assert refused(authority.renew(ask(held, new_key()))) == (
        "certificates live 30 days now: this one, which lives longer, can be renewed from 2027-10-24 on"
    )
    machine.wall = WALL + timedelta(days=335)
    assert "from 2027-10-24 on" in refused(authority.renew(ask(held, new_key())))
    machine.wall += timedelta(seconds=1)
    assert renewed(authority, held).certificate.not_valid_after_utc == machine.wall + timedelta(days=30)


def test_too_many_at_once(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    request = ask(invited(authority), new_key())
    words = {refused(authority.renew(request)) for _ in range(int(PER_SECOND) * 3)}
    assert any("too many" in text for text in words)


def test_where_the_key_is_not(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    held = invited(authority)
    authority._signer = None
    assert refused(authority.renew(ask(held, new_key()))) == "the CA's key is not here"


def test_generations_do_not_pile_up_and_the_key_of_the_first_goes_on(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    held = invited(authority)
    first = held.certificate.serial_number
    for _ in range(8):
        machine.wall = held.certificate.not_valid_after_utc - timedelta(days=20)
        held = renewed(authority, held)
        assert authority.granted("a", first) == tuple(NAMES)
        assert len(machine.store.issued()) <= 4
    again = machine.authority(days=DAYS)
    assert again.granted("a", first) == tuple(NAMES)
    machine.wall = held.certificate.not_valid_after_utc
    assert again.granted("a", first) == ()  # none of its certificates is good
    assert [str(one) for one in again.expiring()][-1].startswith("the certificate of client a expires")


def test_the_key_of_a_revoked_first_certificate_stays_dead(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    first = invited(authority)
    machine.wall = LATE
    renewed(authority, first)
    machine.wall = WALL + timedelta(days=100)  # the first has ended, what renewed it has not
    assert authority.granted("a", first.certificate.serial_number) == tuple(NAMES)
    now(authority.revoke("a"))
    assert authority.granted("a", first.certificate.serial_number) == ()
    anew = invited(authority)
    assert authority.granted("a", first.certificate.serial_number) == ()
    assert authority.granted("a", anew.certificate.serial_number) == tuple(NAMES)


def test_a_key_grants_what_a_good_certificate_still_does(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    first = invited(authority)
    machine.wall = LATE
    now(authority.invite(NAMES[:1], "a"))
    machine.wall = WALL + timedelta(days=91)
    assert authority.granted("a", first.certificate.serial_number) == tuple(NAMES[:1])
    assert authority.granted("b", first.certificate.serial_number) == ()
    assert authority.granted("a", 7) == ()


def test_the_key_of_a_server_goes_on_and_dies_with_its_revocation(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    held = read_credential(now(authority.enroll("s2", AT)).credential_pem)
    first = held.certificate.serial_number
    machine.wall = LATE
    renewed(authority, held)
    machine.wall = WALL + timedelta(days=100)
    assert authority.may_announce("s2", first)
    now(authority.revoke("s2"))
    assert not authority.may_announce("s2", first)
    # At a nameserver that knows no more than the list, and after every certificate has ended.
    machine.wall = WALL + timedelta(days=400)
    now(authority.enroll("s3", AT))
    now(authority.revoke("s3"))
    assert first in authority.revoked.serials
    later = machine.authority(days=DAYS)
    assert first in later.revoked.serials


def test_the_key_of_a_server_whose_certificates_are_all_over(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    held = read_credential(now(authority.enroll("s2", AT)).credential_pem)
    machine.wall = WALL + timedelta(days=91)
    assert not authority.may_announce("s2", held.certificate.serial_number)


def test_invited_again(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    invited(authority)
    machine.wall = WALL + timedelta(days=200)  # it has long ended
    again = now(authority.invite_again("a"))
    assert (again.client, list(again.names)) == ("a", NAMES)
    peer = authority.examine(read_credential(again.credential_pem).certificate, Role.CLIENT)
    assert peer.expires == machine.wall + timedelta(days=DAYS)
    now(authority.revoke("a"))
    with pytest.raises(NotIssued, match="a is revoked"):
        authority.invite_again("a")
    with pytest.raises(NotIssued, match="no client b"):
        authority.invite_again("b")


def test_a_renewal_and_its_answer_survive_the_process(machine: Machine) -> None:
    authority = machine.authority(days=DAYS)
    held = invited(authority)
    machine.wall = LATE
    request = ask(held, new_key())
    first = now(authority.renew(request))
    machine.store.close()
    reopened = Machine(machine.state)
    try:
        reopened.wall = LATE
        assert now(reopened.authority(days=DAYS).renew(request)) == first
    finally:
        reopened.store.close()
