from __future__ import annotations

import ssl

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from appliance.ingress import clienthello
from appliance.ingress.clienthello import ClientHello, HelloReader, HelloRefused
from tests.effort import examples
from tests.ingress.hellos import (
    NAME,
    alpn,
    body,
    by_openssl,
    message,
    pieces,
    record,
    records,
    server_name,
    vector,
)

Outcome = ClientHello | tuple[int, str] | None


def outcome(segments: list[bytes]) -> Outcome:
    """What a reader makes of segments; what comes after the answer is added to the answer's rest by hand."""
    reader = HelloReader()
    for at, segment in enumerate(segments):
        try:
            hello = reader.feed(segment)
        except HelloRefused as refused:
            return refused.alert, refused.text
        if hello is not None:
            rest = hello.rest + b"".join(segments[at + 1 :])
            return ClientHello(hello.server_name, hello.alpn, hello.early_data, hello.octets, rest)
    return None


def read(octets: bytes) -> Outcome:
    return outcome([octets])


def test_a_hello() -> None:
    octets = record(message(body(server_name(NAME), alpn(b"h2", b"http/1.1"))))
    assert read(octets) == ClientHello("www.example.org", (b"h2", b"http/1.1"), False, octets, b"")


def test_a_hello_without_extensions() -> None:
    octets = record(message(body()))
    assert read(octets) == ClientHello(None, (), False, octets, b"")


def test_early_data_is_noted_and_kept_apart() -> None:
    octets = record(message(body(server_name(NAME), (42, b""))))
    early = record(b"POST / HTTP/1.1", kind=23)
    assert read(octets + early) == ClientHello("www.example.org", (), True, octets, early)


@pytest.mark.parametrize("version", [b"\x03\x00", b"\x03\x01", b"\x03\x03", b"\x03\x04", b"\x03\xff"])
def test_any_record_version(version: bytes) -> None:
    hello = read(record(message(body(server_name(NAME))), version=version))
    assert isinstance(hello, ClientHello)


@pytest.mark.parametrize(
    ("given_name", "wanted"),
    [(b"WWW.Example.Org.", "www.example.org"), (b"_a.b-.example", "_a.b-.example"), (b"a" * 63, "a" * 63)],
)
def test_name_is_made_comparable(given_name: bytes, wanted: str) -> None:
    hello = read(record(message(body(server_name(given_name)))))
    assert isinstance(hello, ClientHello)
    assert hello.server_name == wanted


HELLO = message(body(server_name(NAME), alpn(b"h2")))
LARGEST = clienthello.HELLO_OCTETS_MAX - len(message(body(server_name(NAME), (21, b""))))


@pytest.mark.parametrize(
    ("octets", "alert"),
    [
        # names
        (record(message(body(server_name(b"127.0.0.1")))), 112),
        (record(message(body(server_name(b"::1")))), 112),
        (record(message(body(server_name(b"www\x00.example.org")))), 112),
        (record(message(body(server_name(b"www.example.org\x00")))), 112),
        (record(message(body(server_name(b"*.example.org")))), 112),
        (record(message(body(server_name("b\u00fccher.example".encode())))), 112),
        (record(message(body(server_name(b"a" * 64 + b".example")))), 112),
        (record(message(body(server_name(b".".join([b"a" * 50] * 6))))), 112),
        (record(message(body(server_name(b".")))), 112),
        # structure
        (record(message(body(server_name(b"")))), 50),
        (record(message(body((0, b"\x00\x00")))), 50),
        (record(message(body((0, b"")))), 50),
        (record(message(body(server_name(NAME, NAME)))), 50),
        (record(message(body(server_name(NAME, kind=1)))), 50),
        (record(message(body((0, server_name(NAME)[1] + b"\x00")))), 50),
        (record(message(body(server_name(NAME), server_name(NAME)))), 50),
        (record(message(body((5, b""), (5, b"")))), 50),
        (record(message(body(alpn()))), 50),
        (record(message(body(alpn(b"h2", b"")))), 50),
        (record(message(body((16, b"\x00\x03\x05h2")))), 50),
        (record(message(body((16, alpn(b"h2")[1] + b"\x00")))), 50),
        (record(message(body(session_id=b"s" * 33))), 50),
        (record(message(body(suites=b""))), 50),
        (record(message(body(suites=b"\x13"))), 50),
        (record(message(body(compressions=b""))), 50),
        (record(message(body() + b"\x00")), 50),
        (record(message(body(server_name(NAME)) + b"\x00")), 50),
        (record(message(body(server_name(NAME))[:-1])), 50),
        (record(message(body() + b"\x00\x05" + b"\x00\x05\x00\x00")), 50),
        (record(message(body() + b"\x00\x04" + b"\x00\x05\x00\x01")), 50),
        (record(message(body() + b"\x00\x02" + b"\x00\x05")), 50),
        (record(message(b"")), 50),
        # records
        (b"\x16\x02", 50),
        (record(b"")[:3] + b"\x40\x01", 50),
        (record(HELLO[:9]) + record(b"\x00", kind=20), 10),
        (record(b"\x01", kind=20, version=b"\x03\x03") + record(HELLO), 10),
        (record(b"\x02\x50", kind=21), 10),
        (record(message(body(), kind=2)), 10),
        (record(HELLO + b"\x00"), 10),
        (record(HELLO[:50]) + record(HELLO[50:] + HELLO), 10),
        # other programs
        (b"GET / HTTP/1.1\r\n", 10),
        (b"SSH-2.0-OpenSSH_9.2", 10),
        (b"\x80\x2e\x01\x03\x01", 10),
        # bounds
        (record(b"\x01" + (clienthello.HELLO_OCTETS_MAX - 3).to_bytes(3)), 50),
        (records(HELLO, range(1, 65)), 50),
        (records(HELLO, [5] * 64), 50),
    ],
)
def test_refused(octets: bytes, alert: int) -> None:
    refused = read(octets)
    assert isinstance(refused, tuple), refused
    assert refused[0] == alert


def test_bounds_are_inclusive() -> None:
    whole = message(body(server_name(NAME), (21, b"\x00" * LARGEST)))
    assert len(whole) == clienthello.HELLO_OCTETS_MAX
    for octets in (record(whole), records(whole, [9, 9, 100, 16000]), records(HELLO, range(1, 64))):
        hello = read(octets)
        assert isinstance(hello, ClientHello)
        assert hello.octets == octets


def test_what_is_refused_is_refused_as_soon_as_it_shows() -> None:
    reader = HelloReader()
    with pytest.raises(HelloRefused):
        reader.feed(record(HELLO)[:5].replace(b"\x16", b"\x17"))
    reader = HelloReader()
    with pytest.raises(HelloRefused):
        reader.feed(record(b"\x01\x00\x40\x00"))


def test_every_prefix_asks_for_more() -> None:
    octets = records(HELLO, [1, 30, 30])
    for end in range(len(octets)):
        assert read(octets[:end]) is None
    assert isinstance(read(octets), ClientHello)


def test_every_octet_by_itself() -> None:
    octets = records(by_openssl("www.example.org", ["h2"]), [3, 700]) + b"rest"
    assert outcome([bytes((octet,)) for octet in octets]) == read(octets)


# OpenSSL as the oracle

OPENSSL_HELLOS = {
    "default": by_openssl("www.example.org"),
    "alpn": by_openssl("www.example.org", ["h2", "http/1.1"]),
    "no name": by_openssl(None, ["http/1.1"]),
    "upper case": by_openssl("WWW.Example.ORG"),
    "underscore": by_openssl("_x.www.example.org"),
    "tls 1.2": by_openssl("www.example.org", ["h2"], newest=ssl.TLSVersion.TLSv1_2),
    "one suite": by_openssl(
        "www.example.org", newest=ssl.TLSVersion.TLSv1_2, ciphers="ECDHE-RSA-AES128-GCM-SHA256"
    ),
    "no tickets": by_openssl("a" * 63 + ".example", ["x" * 255] * 8, tickets=False),
    "long name": by_openssl(".".join(["a" * 62] * 4)),
}


def openssl_reads(octets: bytes) -> tuple[str | None, tuple[bytes, ...]] | None:
    """(server name, ALPN) by OpenSSL's own parser, or None if it did not come so far."""
    found: list[str | None] = []
    offered: list[tuple[bytes, ...]] = []
    context = SSL.Context(SSL.TLS_SERVER_METHOD)

    def name_read(connection: SSL.Connection) -> None:
        name = connection.get_servername()
        found.append(None if name is None else name.decode("ascii", "backslashreplace").lower())

    def alpn_read(connection: SSL.Connection, protocols: list[bytes]) -> bytes:
        offered.append(tuple(protocols))
        return protocols[0]

    context.set_tlsext_servername_callback(name_read)
    context.set_alpn_select_callback(alpn_read)
    context.use_certificate(CERTIFICATE[0])
    context.use_privatekey(CERTIFICATE[1])
    server = SSL.Connection(context)
    server.set_accept_state()
    server.bio_write(octets)
    try:
        server.do_handshake()
    except SSL.Error:
        pass
    if not found:
        return None
    return found[0], offered[0] if offered else ()


def _certificate() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    issued = trustme.CA().issue_cert("www.example.org")
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes()), key


CERTIFICATE = _certificate()


@settings(max_examples=examples(60), deadline=None)
@given(
    st.sampled_from(sorted(OPENSSL_HELLOS)),
    st.lists(st.integers(1, 3000), max_size=10, unique=True),
    st.lists(st.integers(0, 4000), max_size=12),
    st.binary(max_size=40),
)
def test_openssl_reads_the_same_in_any_cut(
    which: str, record_cuts: list[int], segment_cuts: list[int], rest: bytes
) -> None:
    content = OPENSSL_HELLOS[which]
    octets = records(content, [cut for cut in record_cuts if cut < len(content)])
    hello = outcome(pieces(octets + rest, segment_cuts))
    assert isinstance(hello, ClientHello)
    assert (hello.octets, hello.rest) == (octets, rest)
    assert openssl_reads(octets) == (hello.server_name, hello.alpn)


def test_a_default_hello_is_larger_than_a_segment_for_somebody() -> None:
    """pyOpenSSL's own OpenSSL sends a post-quantum key share: one read is not the whole."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    visitor = SSL.Connection(context)
    visitor.set_tlsext_host_name(NAME)
    visitor.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        visitor.do_handshake()
    octets = visitor.bio_read(1 << 16)
    reader = HelloReader()
    assert len(octets) > 1460
    assert reader.feed(octets[:1460]) is None
    hello = reader.feed(octets[1460:])
    assert hello is not None
    assert hello.server_name == "www.example.org"


# anything at all

_MUTATED = st.builds(
    lambda octets, places: bytes(octet ^ dict(places).get(at, 0) for at, octet in enumerate(octets)),
    st.sampled_from([record(HELLO), records(HELLO, [1, 4, 60]), record(OPENSSL_HELLOS["alpn"])]),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 255)), max_size=3),
)


@settings(max_examples=examples(200), deadline=None)
@given(st.one_of(st.binary(max_size=200), _MUTATED), st.lists(st.integers(0, 400), max_size=8))
def test_only_our_error_and_the_same_in_any_cut(octets: bytes, cuts: list[int]) -> None:
    assert outcome(pieces(octets, cuts)) == read(octets)


@settings(max_examples=examples(100), deadline=None)
@given(_MUTATED)
def test_a_changed_hello_never_has_another_name_than_openssl_reads(octets: bytes) -> None:
    hello = read(octets)
    theirs = openssl_reads(octets)
    if isinstance(hello, ClientHello) and theirs is not None and theirs[0] is not None:
        assert theirs[0].rstrip(".") == (hello.server_name or "")


def test_vectors_are_as_long_as_they_say() -> None:
    assert vector(2, b"abc") == b"\x00\x03abc"
