"""The gate that the settings ask for, and a file of secrets that is replaced while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.dns.cookies import Cookies, Function
from appliance.service.nameserver.gating import SecretsUnreadable, gate_of, reload_secrets
from appliance.settings import NameserverSettings

ONE, OTHER = "01" * 16, "02" * 16
CLIENT = b"abcdefgh"


def cookie(cookies: Cookies | None) -> bytes:
    assert cookies is not None
    return cookies.verdict("192.0.2.1", CLIENT, 1e9).option[4:]


def test_as_it_comes() -> None:
    """Cookies and the limit are on, and no two starts have one secret."""
    first, second = gate_of(NameserverSettings()), gate_of(NameserverSettings())
    assert cookie(first.cookies) != cookie(second.cookies)
    assert cookie(first.cookies)[8] == Function.BLAKE2S.value
    assert first.rate_limit is not None
    assert (first._nsid, first._explain) == (b"", False)


def test_all_off_and_all_on(tmp_path: Path) -> None:
    off = gate_of(NameserverSettings(cookies="off", rate_limit=0))
    assert (off.cookies, off.rate_limit) == (None, None)
    path = tmp_path / "secrets"
    path.write_text(ONE)
    on = gate_of(NameserverSettings(cookies="rfc9018", cookie_secrets=path, nsid="ns1", extended_errors=True))
    assert cookie(on.cookies) == cookie(Cookies([bytes.fromhex(ONE)], Function.SIPHASH))
    assert (on._nsid, on._explain) == (b"\0\3\0\3ns1", True)


def test_nameservers_with_one_file_believe_each_other(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_text(ONE)
    settings = NameserverSettings(cookie_secrets=path)
    one, other = gate_of(settings), gate_of(settings)
    assert other.cookies is not None
    given = cookie(one.cookies)
    assert other.cookies.verdict("192.0.2.1", given, 1e9).valid
    path.write_text(f"{OTHER}\n{ONE}")
    assert reload_secrets(other, settings) == []
    assert other.cookies.verdict("192.0.2.1", given, 1e9).valid
    path.write_text(OTHER)
    assert reload_secrets(other, settings) == []
    assert not other.cookies.verdict("192.0.2.1", given, 1e9).valid


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, ": cannot be read: No such file or directory"),
        (b"\xff", ":1: is not text in ASCII"),
        (b"\nfour", ":2: not a secret: it must be 32 hexadecimal digits"),
    ],
)
def test_a_bad_file(tmp_path: Path, content: bytes | None, error: str) -> None:
    path = tmp_path / "secrets"
    path.write_text(ONE)
    settings = NameserverSettings(cookie_secrets=path)
    gate = gate_of(settings)
    before = cookie(gate.cookies)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SecretsUnreadable) as refused:
        gate_of(settings)
    assert str(refused.value) == f"{path}{error}"
    assert reload_secrets(gate, settings) == [f"{path}{error}"]
    assert cookie(gate.cookies) == before, "those from before stay"
    assert reload_secrets(gate, NameserverSettings()) == []
