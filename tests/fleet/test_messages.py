"""The lines of a watch: there and back in any cut, one error for everything else."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives import hashes
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.fleet.messages import (
    BY_NAMESERVER,
    BY_SERVER,
    MAX_NAMES_IN_MESSAGE,
    Certificate,
    Challenge,
    ChallengeOver,
    Draining,
    Forgotten,
    FromNameserver,
    FromServer,
    Goodbye,
    Known,
    Leaving,
    Message,
    NameserverHello,
    NameserverLines,
    NotServing,
    Ping,
    Pong,
    ServerHello,
    ServerLines,
    Serving,
    SnapshotEnded,
    Withdrawn,
    fingerprint_of,
    shown,
)
from appliance.fleet.renewing import Renew, Renewed, RenewRefused
from appliance.tunnel.lines import MAX_LINE_OCTETS, MessageError
from appliance.tunnel.messages import Goodbye as LinkGoodbye
from appliance.tunnel.messages import encode as encode_for_link
from tests.effort import examples
from tests.tunnel.authority import CLIENT

PRINT = "0123456789abcdef" * 4
SERVER_SAYS: list[FromServer] = [
    ServerHello(1, "s1", "b" * 32, ("192.0.2.1:443", "[2001:db8::1]:8443")),
    Certificate(PRINT, "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"),
    Serving("www.example.org", PRINT),
    Serving("*.apps.example.org", PRINT),
    NotServing("www.example.org"),
    Challenge("*.apps.example.org", "v" * 43, 600, "sig=", PRINT),
    Renew("certificate", "request", "sig="),
    Renewed(PRINT, "certificate"),
    RenewRefused(PRINT, "no"),
    ChallengeOver("*.apps.example.org", "v" * 43),
    SnapshotEnded(),
    Draining(),
    Leaving(),
    Goodbye("revoked", "the certificate was revoked"),
    Ping("n1"),
    Pong("n1"),
]
NAMESERVER_SAYS: list[FromNameserver] = [
    NameserverHello(1, "ns1"),
    Known(("www.example.org", "*.apps.example.org"), complete=False),
    Known((), complete=True),
    Forgotten(("www.example.org",)),
    Withdrawn(held=True),
    NameserverHello(1, "ns1", renews=True),
    Renew("certificate", "request", "sig="),
    Renewed(PRINT, "certificate"),
    RenewRefused(PRINT, "no"),
    Ping("n1"),
    Pong("n1"),
]


@given(st.lists(st.integers(1, 400)))
@settings(max_examples=examples(50), deadline=None)
def test_any_cut_gives_the_same_messages(cuts: list[int]) -> None:
    for lines, octets, said in (
        (ServerLines(), b"".join(map(BY_SERVER.encode, SERVER_SAYS)), SERVER_SAYS),
        (NameserverLines(), b"".join(map(BY_NAMESERVER.encode, NAMESERVER_SAYS)), NAMESERVER_SAYS),
    ):
        read: list[Message] = []
        for cut in cuts:
            read += lines.feed(octets[:cut])
            octets = octets[cut:]
        read += lines.feed(octets)
        assert read == said


@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
@settings(max_examples=examples(200), deadline=None)
def test_random_octets_are_one_error_or_nothing(octets: bytes) -> None:
    for lines in (ServerLines(), NameserverLines()):
        with suppress(MessageError):
            lines.feed(octets + b"\n")


BODIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["version", "id", "boot", "addresses", "fingerprint", "pem", "name", "names", "complete", "nonce", "text"]
)
TYPES = st.sampled_from(
    ["hello", "certificate", "serving", "not_serving", "goodbye", "known", "forgotten", "ping", "pong"]
)


@given(TYPES, st.dictionaries(KEYS, BODIES, max_size=6))
@settings(max_examples=examples(200), deadline=None)
def test_wrong_values_are_one_error(kind: str, body: dict[str, object]) -> None:
    line = json.dumps({**body, "type": kind}).encode() + b"\n"
    for lines in (ServerLines(), NameserverLines()):
        with suppress(MessageError):
            lines.feed(line)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"type":1}',
        b"[" * 60_000,
        b'{"type":"hello","version":true,"id":"s1","boot":"b","addresses":[]}',
        b'{"type":"hello","version":1,"id":"s 1","boot":"b","addresses":[]}',
        b'{"type":"hello","version":1,"id":"s1","boot":"b","addresses":["0.0.0.0:443"]}',
        b'{"type":"hello","version":1,"id":"s1","boot":"b","addresses":["192.0.2.1:0"]}',
        b'{"type":"serving","name":"192.0.2.1","fingerprint":"%s"}' % PRINT.encode(),
        b'{"type":"serving","name":"www.example.org","fingerprint":"00"}',
        b'{"type":"challenge","name":"a.b","value":"x","seconds":1,"signature":"a",'
        b'"fingerprint":"%s"}' % PRINT.encode(),
        b'{"type":"ping","nonce":"\\ud800"}',
        b'{"type":"ping","nonce":""}',
        b'{"type":"ping"}',
    ],
)
def test_these_lines_are_refused(line: bytes) -> None:
    with pytest.raises(MessageError):
        ServerLines().feed(line + b"\n")


def test_unknown_types_and_keys_are_passed_over() -> None:
    octets = b'{"type":"from_the_future","x":1}\n{"type":"ping","nonce":"a","x":{}}\n'
    assert ServerLines().feed(octets) == [Ping("a")]
    assert NameserverLines().feed(b'{"type":"leaving"}\n' + octets) == [Ping("a")]


def test_names_and_addresses_come_out_in_their_one_spelling() -> None:
    octets = (
        b'{"type":"hello","version":1,"id":"s1","boot":"b","addresses":["192.0.2.1","[2001:DB8:0::1]:443"]}\n'
    )
    assert ServerLines().feed(octets) == [ServerHello(1, "s1", "b", ("192.0.2.1:443", "[2001:db8::1]:443"))]
    assert ServerLines().feed(b'{"type":"not_serving","name":"WWW.Example.org."}\n') == [
        NotServing("www.example.org")
    ]


def test_the_longest_list_of_the_longest_names_fits_a_line() -> None:
    name = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
    assert len(name) == 253
    known = Known((name,) * MAX_NAMES_IN_MESSAGE, complete=True)
    assert NameserverLines().feed(BY_NAMESERVER.encode(known)) == [known]
    with pytest.raises(MessageError):
        BY_NAMESERVER.encode(Known(("a.test",) * (MAX_NAMES_IN_MESSAGE + 1), complete=True))


def test_what_does_not_fit_a_line_is_not_written() -> None:
    with pytest.raises(MessageError):
        BY_SERVER.encode(Certificate(PRINT, "a" * MAX_LINE_OCTETS))


def test_a_certificate_is_known_by_the_sha_256_of_its_der() -> None:
    message = shown(CLIENT.certificate)
    assert message.fingerprint == CLIENT.certificate.fingerprint(hashes.SHA256()).hex()
    assert message.fingerprint == fingerprint_of(CLIENT.certificate)
    assert message.pem.encode() == CLIENT.certificate_pem()


def test_a_refusal_is_said_as_on_a_link_and_fit_for_a_log() -> None:
    assert ServerLines().feed(encode_for_link(LinkGoodbye("revoked", "in words"))) == [
        Goodbye("revoked", "in words")
    ]
    shouted = json.dumps({"type": "goodbye", "reason": "x", "text": "a\n\x1b[31m" * 200}).encode() + b"\n"
    (goodbye,) = ServerLines().feed(shouted)
    assert isinstance(goodbye, Goodbye)
    assert goodbye.text.isprintable()
