from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ingress.hostname import host_name
from appliance.tunnel.proxyheader import Kind, ProxyHeader, ProxyHeaderError, read_proxy_header
from tests.effort import examples
from tests.tunnel.test_names import HOSTS

VISITOR = ProxyHeader(
    ("192.0.2.7", 50000), ("198.51.100.1", 443), "www.example.org", b"h2", b"\x01\x02", Kind.TLS
)
OCTETS = bytes.fromhex(
    "0d0a0d0a000d0a515549540a 21 11 002c c0000207 c6336401 c350 01bb"
    "010002 6832 02000f 7777772e6578616d706c652e6f7267 050002 0102 e00001 01"
)
LABELS = st.text("abz059_-AZxn", min_size=1, max_size=8) | st.from_regex(r"[A-Z0-9_-]{60,64}", fullmatch=True)
ASKED = st.builds(
    lambda labels, end: (".".join(labels) + end).encode(),
    st.lists(LABELS, min_size=1, max_size=5),
    st.sampled_from(["", ".", ".."]),
)
"""What visitors say in SNI and Host: names, and what is not quite one."""
LONG = "2001:db8::1", "2001:db8::2"
PORTS = st.integers(0, 65535)
ENDS = st.one_of(
    st.tuples(st.ip_addresses(v=4).map(str), st.ip_addresses(v=4).map(str)),
    st.tuples(st.ip_addresses(v=6).map(str), st.ip_addresses(v=6).map(str)),
)


def test_the_octets_of_a_visitor() -> None:
    assert VISITOR.octets() == OCTETS
    assert read_proxy_header(OCTETS) == VISITOR


def test_an_origin_gets_no_kind() -> None:
    octets = VISITOR.for_origin().octets()
    assert octets == OCTETS[:14] + b"\x00\x28" + OCTETS[16:-4]
    assert read_proxy_header(octets) == VISITOR._replace(kind=None)


@given(
    ENDS,
    PORTS,
    PORTS,
    HOSTS,
    st.none() | st.binary(max_size=255),
    st.binary(max_size=128),
    st.none() | st.sampled_from(Kind),
)
@settings(max_examples=examples(100), deadline=None)
def test_written_and_read_back(
    ends: tuple[str, str],
    here: int,
    there: int,
    host: str,
    alpn: bytes | None,
    unique: bytes,
    kind: Kind | None,
) -> None:
    header = ProxyHeader((ends[0], here), (ends[1], there), host, alpn, unique, kind)
    assert read_proxy_header(header.octets()) == header
    assert len(header.octets()) <= 701


HOSTS_AT_THE_EDGE = [
    b"-a.apps.example.org",
    b"foo-.example.org",
    b"-.example.org",
    b"--.-",
    b"_a_._.example",
    b"a--b.example",
    b"xn--.example",
    b"xn---.example.-x",
    b"1.2.3.4a",
    b"0x7f.0xg",
    b"a" * 63 + b".example.",
    b".".join([b"-" * 62] * 4) + b".a.",
    b".".join([b"a" * 62] * 4) + b".aa",
    b"a" * 64 + b".example",
    b"1.2.3.4",
    b"a.0x7F",
    b"a..b",
    b"a.b..",
    b".",
    b"",
    b"*.example",
    b"a.example\n",
    "b\u00fccher.example".encode(),
]


@pytest.mark.parametrize("asked", HOSTS_AT_THE_EDGE)
def test_a_client_reads_the_hosts_that_a_server_lets_in(asked: bytes) -> None:
    agree_on(asked)


@given(ASKED | st.binary(max_size=12))
@settings(max_examples=examples(300), deadline=None)
def test_a_client_reads_every_host_that_a_server_lets_in_and_no_other(asked: bytes) -> None:
    agree_on(asked)


def agree_on(asked: bytes) -> None:
    """A stranger chooses the host: one that only the server takes would cost a lane for each hello."""
    host = host_name(asked)
    if host is not None:
        header = VISITOR._replace(authority=host)
        assert read_proxy_header(header.octets()) == header
    if host is None or host.encode() != asked:  # the one spelling of a name is what ingress makes of it
        with pytest.raises(ProxyHeaderError):
            read_proxy_header(with_values(b"\x02" + len(asked).to_bytes(2, "big") + asked))


def test_a_mixed_pair_is_written_ipv4_mapped() -> None:
    mixed = read_proxy_header(VISITOR._replace(destination=(LONG[0], 443)).octets())
    assert mixed.source == ("::ffff:c000:207", 50000)
    assert mixed.destination == (LONG[0], 443)


@pytest.mark.parametrize(
    "header",
    [
        VISITOR._replace(source=("host", 1)),
        VISITOR._replace(source=("192.0.2.7", 65536)),
        VISITOR._replace(destination=("192.0.2.7", -1)),
        VISITOR._replace(alpn=bytes(256)),
        VISITOR._replace(unique_id=bytes(129)),
        VISITOR._replace(authority="a" * 256),
        VISITOR._replace(authority="é.example"),
    ],
)
def test_what_cannot_be_written(header: ProxyHeader) -> None:
    with pytest.raises(ProxyHeaderError):
        header.octets()


def with_values(values: bytes) -> bytes:
    return OCTETS[:14] + (12 + len(values)).to_bytes(2, "big") + OCTETS[16:28] + values


AUTHORITY = b"\x02\x00\x01a"


def test_values_of_others_are_ignored() -> None:
    assert read_proxy_header(
        with_values(AUTHORITY + b"\x04\x00\x02xx\x04\x00\x00\x20\x00\x01x")
    ) == ProxyHeader(("192.0.2.7", 50000), ("198.51.100.1", 443), "a", None, b"", None)


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n",
        OCTETS[:15],
        OCTETS[:-1],
        OCTETS + b"x",
        OCTETS[:12] + b"\x20" + OCTETS[13:],  # LOCAL
        OCTETS[:12] + b"\x11" + OCTETS[13:],  # version 1
        OCTETS[:13] + b"\x12" + OCTETS[14:],  # UDP
        OCTETS[:13] + b"\x31" + OCTETS[14:],  # a unix socket
        OCTETS[:13] + b"\x21\x00\x0c" + OCTETS[16:28],
        with_values(b""),
        with_values(AUTHORITY + b"\x05"),
        with_values(AUTHORITY + b"\x05\x00\x01"),
        with_values(AUTHORITY + AUTHORITY),
        with_values(b"\x02\x00\x00"),
        with_values(b"\x02\x00\x01A"),
        with_values(b"\x02\x00\x03*.a"),
        with_values(b"\x02\x00\x02\xc3\xa9"),
        with_values(b"\x02\x00\x0710.0.0.1"[:10]),
        with_values(AUTHORITY + b"\xe0\x00\x01\x00"),
        with_values(AUTHORITY + b"\xe0\x00\x00"),
        with_values(AUTHORITY + b"\xe0\x00\x02\x01\x01"),
        with_values(AUTHORITY + b"\x05\x00\x81" + bytes(129)),
    ],
)
def test_what_is_no_header_of_ours(octets: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        read_proxy_header(octets)


@given(st.integers(0, len(OCTETS) - 1), st.integers(0, 255), st.binary(max_size=4))
@settings(max_examples=examples(100), deadline=None)
def test_a_damaged_header_is_read_or_is_the_one_error(place: int, octet: int, behind: bytes) -> None:
    damaged = bytearray(OCTETS + behind)
    damaged[place] = octet
    try:
        read_proxy_header(bytes(damaged))
    except ProxyHeaderError:
        pass
