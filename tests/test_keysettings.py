from __future__ import annotations

import base64
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from appliance.dns import names
from appliance.dns.numbers import AAAA, TXT, A
from appliance.dns.policy import Kind, Policy
from appliance.keysettings import KeyTable, all_keys, policies, read_table
from appliance.settingsfile import BadValue

SECRET = base64.b64encode(bytes(32)).decode()
OTHER_SECRET = base64.b64encode(bytes(31) + b"\x01").decode()


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> Path:
    for name, secret in (("k1", SECRET), ("k2", SECRET), ("again", OTHER_SECRET)):
        path = tmp_path / f"{name}.key"
        path.write_text(
            f'key "{name.replace("again", "k1")}" {{ algorithm hmac-sha256; secret "{secret}"; }};'
        )
        path.chmod(0o600)
    return tmp_path


def table(file: str, kind: Any = "update", **more: Any) -> KeyTable:
    return KeyTable(Path(file), kind, **more)


def test_what_a_table_says(files: Path) -> None:
    read = read_table(table("k1.key", names=("*.Demo.test",), types=("A", "aaaa")), files)
    assert [names.to_text(key.name) for key in read.keys] == ["k1"]
    assert read.names == (names.from_text("*.demo.test"),)
    assert read.types == (A, AAAA)
    read = read_table(
        table(str(files / "k2.key"), "transfer", addresses=("192.0.2.0/24", "2001:db8::1")), Path("/")
    )
    assert read.addresses == (ip_network("192.0.2.0/24"), ip_network("2001:db8::1/128"))


def test_what_tables_allow_adds_up(files: Path) -> None:
    tables = [
        table("k1.key", types=("TXT",)),
        table("k1.key", "acme", names=("www.demo.test",)),
        table("k2.key", "transfer"),
    ]
    read = [read_table(one, files) for one in tables]
    assert {names.to_text(name) for name in all_keys(read)} == {"k1", "k2"}
    assert policies(read) == {
        names.from_text("k1"): (
            Policy(Kind.UPDATE, (), frozenset((TXT,))),
            Policy(Kind.ACME, (names.from_text("www.demo.test"),)),
        )
    }


def test_one_name_is_one_key(files: Path) -> None:
    read = [read_table(table(file), files) for file in ("k1.key", "again.key")]
    with pytest.raises(BadValue, match="two different keys k1"):
        all_keys(read)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (table("nosuch.key"), "nosuch.key cannot be read: No such file"),
        (table("k1.key", "acme", types=("A",)), 'types are only for keys of the kind "update"'),
        (table("k1.key", addresses=("192.0.2.1",)), 'addresses are only for keys of the kind "transfer"'),
        (table("k1.key", types=("NOSUCH",)), "there is no record type 'NOSUCH'"),
        (table("k1.key", names=("a..b",)), "has an empty label"),
        (
            table("k1.key", "transfer", addresses=("192.0.2.1/24",)),
            "192.0.2.1/24 is not an address or a network",
        ),
        (table("open.key"), "can be read by everybody: chmod o-r"),
        (table("bad.key"), "bad.key:1: 'key' is expected here"),
        (table("binary.key"), "is not a key file"),
    ],
)
def test_what_is_wrong(files: Path, wrong: KeyTable, what: str) -> None:
    for name, octets, mode in (("open", b"", 0o644), ("bad", b"zone", 0o600), ("binary", b"\xff", 0o600)):
        (files / f"{name}.key").write_bytes(octets)
        (files / f"{name}.key").chmod(mode)
    with pytest.raises(BadValue) as raised:
        read_table(wrong, files)
    assert what in str(raised.value)
    assert SECRET not in str(raised.value)
