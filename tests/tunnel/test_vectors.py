"""docs/reference/protocol.md is the specification: its vectors and bounds are those of the program."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from appliance.tunnel import (
    account,
    certificates,
    challenge,
    discovery,
    lane,
    lines,
    liveness,
    names,
    noticeboard,
    session,
)
from appliance.tunnel.discovery import ServerAddress, read_txt, write_txt
from appliance.tunnel.lane import (
    MAGIC,
    SealedHeader,
    Status,
    lane_keys,
    read_preface,
    seal_header,
    verify,
    write_preface,
)
from appliance.tunnel.messages import Lines
from appliance.tunnel.proxyheader import Kind, ProxyHeader, read_proxy_header
from appliance.tunnel.session import CLIENT_ROWS, SERVER_ROWS, ClientSession, Offer, ServerSession

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "protocol.md").read_text()
BLOCKS = dict(re.findall(r"^```(\w+ [^\n]+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
VECTORS = {key.removeprefix("hex "): bytes.fromhex(text) for key, text in BLOCKS.items() if key[:4] == "hex "}
TXT = {tuple(key.split()[2:]): text.rstrip("\n") for key, text in BLOCKS.items() if key[:9] == "text txt "}

BOUNDED = (certificates, challenge, discovery, lane, lines, liveness, names, noticeboard, session)
UNIQUE_ID = bytes.fromhex("00112233445566778899aabbccddeeff")
VISITORS = {
    "proxy": ProxyHeader(
        ("192.0.2.7", 50000), ("198.51.100.1", 443), "www.example.org", b"h2", UNIQUE_ID, Kind.TLS
    ),
    "proxy6": ProxyHeader(
        ("2001:db8::7", 50000), ("2001:db8:1::1", 80), "shop.apps.example.org", None, UNIQUE_ID, Kind.HTTP
    ),
}
VISITORS["origin"] = VISITORS["proxy"].for_origin()


def test_the_page_has_all_vectors() -> None:
    assert set(VECTORS) == {"exported", "preface", "sealed", *VISITORS}
    assert len(TXT) == 3


def test_preface() -> None:
    keys = lane_keys(VECTORS["exported"])
    octets = write_preface(keys, bytes.fromhex("a1a2a3a4a5a6a7a8"), 1)
    assert octets == VECTORS["preface"]
    assert verify(keys, read_preface(VECTORS["preface"]))
    assert f"`{MAGIC.hex(' ')}`" in PAGE


@pytest.mark.parametrize("name", VISITORS)
def test_proxy_headers(name: str) -> None:
    assert VISITORS[name].octets() == VECTORS[name]
    assert read_proxy_header(VECTORS[name]) == VISITORS[name]


def test_sealed_header() -> None:
    keys, preface = lane_keys(VECTORS["exported"]), read_preface(VECTORS["preface"])
    assert seal_header(keys, preface, VECTORS["proxy"]) == VECTORS["sealed"]
    assert SealedHeader(keys, preface).feed(VECTORS["sealed"] + b"hello") == (VECTORS["proxy"], b"hello")


def test_a_signed_account() -> None:
    octets = BLOCKS["text account octets"].rstrip("\n").encode()
    issuers = ("ca.example", "ca.example.net")
    instance = "00112233445566778899aabbccddeeff"
    assert account.signed_octets(instance, 1796083200, "https://ca.example/acct/17", issuers) == octets
    key = load_pem_public_key(BLOCKS["text account key"].encode())
    assert isinstance(key, EllipticCurvePublicKey)
    key.verify(base64.b64decode(BLOCKS["text account signature"]), octets, ECDSA(SHA256()))


@pytest.mark.parametrize("key", TXT)
def test_txt(key: tuple[str, str]) -> None:
    address = ServerAddress(key[0], int(key[1]))
    assert write_txt(address) == TXT[key]
    assert read_txt(TXT[key]) == address


def test_the_link_that_begins() -> None:
    server = ServerSession(
        peer_names=("www.example.org", "*.apps.example.org"),
        server_id="s1",
        boot="5f1c0de5",
        session_id=bytes.fromhex("a1a2a3a4a5a6a7a8"),
        nonce=lambda: "n",
        now=0.0,
        service_name=certificates.SERVICE_NAME,
    )
    client = ClientSession(
        instance="00112233445566778899aabbccddeeff",
        offers={"www.example.org": Offer(True, "redirect"), "foo.apps.example.org": Offer(True, "serve")},
        nonce=lambda: "n",
        now=0.0,
        agent="example/1.0",
    )
    said = []
    for _ in range(2):
        for who, speaker, listener in (("C", client, server), ("S", server, client)):
            octets = speaker.data_to_send()
            listener.receive(octets, 0.0)
            said += [f"{who} {line}\n" for line in octets.decode().splitlines()]
    assert "".join(said) == BLOCKS["text link"]


def test_the_table_of_messages_has_every_message() -> None:
    section = PAGE[PAGE.index("| type | from |") : PAGE.index("`reason` is a word")]
    listed = set(re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in section.strip().splitlines())))
    for word in listed:
        with pytest.raises(lines.MessageError):  # a type that is not known would be passed over
            Lines().feed(b'{"type":"' + word.encode() + b'","reconnect_in":-1}\n')
    inputs = {cause for _, cause in [*SERVER_ROWS, *CLIENT_ROWS] if isinstance(cause, type)}
    assert listed == {re.sub(r"(?<!^)(?=[A-Z])", "_", message.__name__).lower() for message in inputs}


def test_the_statuses() -> None:
    section = PAGE[PAGE.index("### Status octet") : PAGE.index("### Joined")]
    assert re.findall(r"^\| `(\d\d)` \|", section, re.MULTILINE) == [f"{status:02x}" for status in Status]


def test_the_reasons_of_a_certificate() -> None:
    section = PAGE[PAGE.index("## Certificates") : PAGE.index("## Link")]
    words = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ", section, re.MULTILINE)
    listed = {word for row in words for word in re.findall(r"\w+", row)}
    assert listed == {reason.value for reason in certificates.Reason}


def test_the_bounds() -> None:
    section = PAGE[PAGE.index("## Bounds") :]
    rows = re.findall(r"^\| ([A-Z_]+) \| (\d+) \|", section, re.MULTILINE)
    assert len(rows) == 14
    for name, value in rows:
        owners = [module for module in BOUNDED if name in vars(module)]
        assert owners, name
        assert all(getattr(owner, name) == float(value) for owner in owners), name
