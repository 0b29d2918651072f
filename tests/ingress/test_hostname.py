from __future__ import annotations

import pytest

from appliance.ingress.hostname import host_name


@pytest.mark.parametrize(
    ("octets", "name"),
    [
        (b"www.example.org", "www.example.org"),
        (b"WWW.Example.ORG", "www.example.org"),
        (b"www.example.org.", "www.example.org"),
        (b"localhost", "localhost"),
        (b"_acme.a-b.example", "_acme.a-b.example"),
        (b"a-.example", "a-.example"),
        (b"xn--e1afmkfd.xn--p1ai", "xn--e1afmkfd.xn--p1ai"),
        (b"1.2.3.4.example", "1.2.3.4.example"),
        (b"a" * 63 + b".example", "a" * 63 + ".example"),
        (b".".join([b"a" * 62] * 4) + b".a", ".".join(["a" * 62] * 4) + ".a"),
        (b".".join([b"a" * 62] * 4) + b".a.", ".".join(["a" * 62] * 4) + ".a"),
        (b".".join([b"a" * 62] * 4) + b".aa", None),
        (b"a" * 64 + b".example", None),
        (b"", None),
        (b".", None),
        (b"www.example..", None),
        (b"www..example", None),
        (b".www.example", None),
        (b"127.0.0.1", None),
        (b"127.0.0.1.", None),
        (b"127.1", None),
        (b"2130706433", None),
        (b"0x7F.1", None),
        (b"www.0X7f", None),
        (b"::1", None),
        (b"[::1]", None),
        (b"*.example.org", None),
        (b"www.example.org\x00", None),
        (b"www\x00.example.org", None),
        (b"www.example.org:80", None),
        (b"user@www.example.org", None),
        (b"www.example.org\n", None),
        (b"www example.org", None),
        (b"www.example.org,b.example", None),
        (b"www.example.org/", None),
        (b"www.%65xample.org", None),
        ("bücher.example".encode(), None),
        ("www.example.or\u212a".encode(), None),
    ],
)
def test_host_name(octets: bytes, name: str | None) -> None:
    assert host_name(octets) == name
