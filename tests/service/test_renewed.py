"""Which credential counts, and that none is ever lost."""

from __future__ import annotations

import os
import stat
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.service.renewed import RENEWED, WAITING, RenewedFiles
from appliance.tunnel.certificates import SERVICE_NAME, Credential, issue_again, issue_client
from tests.tunnel.authority import CA, CLIENT, OTHER_CA, WALL

NAMES = ["www.example.org", "*.apps.example.org"]
A_MONTH = timedelta(days=30)


def given(
    days_later: int = 0, *, names: list[str] = NAMES, client_id: str = "c1", ca: Credential = CA
) -> Credential:
    wall = WALL + timedelta(days=days_later)
    return issue_client(ca, client_id=client_id, names=names, service_name=SERVICE_NAME, wall=wall, days=90)


def renewed(files: RenewedFiles, held: Credential, days_later: int = 60) -> Credential:
    key = files.key_for(held)
    wall = WALL + timedelta(days=days_later)
    certificate = issue_again(CA, held.certificate, key.public_key(), wall=wall, days=90)
    return Credential(certificate, key)


GIVEN = given()


@pytest.fixture
def files(tmp_path: Path) -> RenewedFiles:
    return RenewedFiles(tmp_path)


def test_without_a_renewal_it_is_what_was_given(files: RenewedFiles) -> None:
    assert files.current(GIVEN, CA.certificate) is GIVEN


def test_a_renewal_counts_and_one_after_it(files: RenewedFiles, tmp_path: Path) -> None:
    first = renewed(files, GIVEN)
    files.keep(first, GIVEN)
    assert files.current(GIVEN, CA.certificate).pem() == first.pem()
    second = renewed(files, first, 120)
    files.keep(second, GIVEN)
    assert files.current(GIVEN, CA.certificate).pem() == second.pem()
    assert [path.name for path in tmp_path.iterdir()] == [RENEWED]
    assert stat.S_IMODE((tmp_path / RENEWED).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("file", "is_renewal"),
    [
        (GIVEN, True),
        (given(-10), True),  # an older invitation was put back
        (given(10), False),  # a newer one, though older than the renewal: the operator means it
        (given(400), False),
        (given(0, names=["www.example.org"]), False),
        (given(-10, names=["www.example.org"]), False),
        (given(0, client_id="c2"), False),
        (given(-10, ca=OTHER_CA), False),
    ],
)
def test_what_the_operator_gives(files: RenewedFiles, file: Credential, is_renewal: bool) -> None:
    files.keep(renewed(files, GIVEN), GIVEN)
    ca = OTHER_CA if file.certificate.issuer == OTHER_CA.certificate.subject and not is_renewal else CA
    ca_certificate = ca.certificate if _issued_by(file, ca) else CA.certificate
    counts = files.current(file, ca_certificate)
    assert (counts is not file) is is_renewal


def _issued_by(file: Credential, ca: Credential) -> bool:
    try:
        file.certificate.verify_directly_issued_by(ca.certificate)
    except Exception:
        return False
    return True


def test_the_key_waits_for_its_certificate(files: RenewedFiles, tmp_path: Path) -> None:
    key = files.key_for(GIVEN).public_key()
    assert stat.S_IMODE((tmp_path / WAITING).stat().st_mode) == 0o600
    assert files.key_for(GIVEN).public_key() == key  # which was signed, perhaps, and the answer was lost
    assert RenewedFiles(tmp_path).key_for(GIVEN).public_key() == key
    another = files.key_for(given(10)).public_key()
    assert another != key  # it was asked for in the place of another certificate
    (tmp_path / WAITING).write_text("nonsense")
    assert files.key_for(GIVEN).public_key() != key


@pytest.mark.parametrize("text", ["", "nonsense", CLIENT.certificate_pem().decode()])
def test_a_damaged_renewal_is_not_used(files: RenewedFiles, tmp_path: Path, text: str) -> None:
    (tmp_path / RENEWED).write_text(text)
    assert files.current(GIVEN, CA.certificate) is GIVEN


def test_two_credentials_in_one_directory(tmp_path: Path) -> None:
    server, nameserver = RenewedFiles(tmp_path, "server-"), RenewedFiles(tmp_path, "nameserver-")
    server.keep(renewed(server, GIVEN), GIVEN)
    assert nameserver.current(GIVEN, CA.certificate) is GIVEN
    assert (tmp_path / f"server-{RENEWED}").exists()


class Killed(BaseException):
    """The process ends here."""


CALLS = ("open", "fsync", "unlink", "rename", "replace")


@pytest.mark.parametrize("at", range(16))
def test_an_end_at_any_call_of_the_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """kill -9 in front of the call with that number, of all those that change the directory."""
    files = RenewedFiles(tmp_path)
    left = [at]

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return real(*arguments, **more)

        return call

    signed: list[Credential] = []
    with monkeypatch.context() as patched:
        for name in CALLS:
            patched.setattr(os, name, counted(getattr(os, name)))
        try:
            after = renewed(files, GIVEN)
            signed.append(after)
            files.keep(after, GIVEN)
            survived = True
        except Killed:
            survived = False
    again = RenewedFiles(tmp_path)
    counts = again.current(GIVEN, CA.certificate)
    assert counts.certificate.public_key() == counts.key.public_key()
    assert counts.certificate in (GIVEN.certificate, *(one.certificate for one in signed))
    if survived:
        assert counts.certificate != GIVEN.certificate
    elif signed and counts is GIVEN:  # it was signed, and not kept: asking again is for the same key
        (after,) = signed
        assert again.key_for(GIVEN).public_key() == after.key.public_key()
