from __future__ import annotations

import ssl

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.ingress import refusal
from tests.effort import examples


def read(octets: bytes, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """What a strict reader (h11) makes of an answer, which must be one whole message that ends the
    connection.
    """
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method=method, target="/", headers=[("Host", "www.example.org")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(octets)
    response = reader.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := reader.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert reader.their_state is h11.MUST_CLOSE
    assert reader.trailing_data == (b"", False)
    return response.status_code, {k.decode(): v.decode() for k, v in response.headers}, body


@pytest.mark.parametrize("status", sorted(refusal.STATUSES))
def test_page(status: int) -> None:
    answered, fields, body = read(refusal.http(status))
    assert answered == status
    assert str(status).encode() in body
    assert int(fields["content-length"]) == len(body)
    assert fields["cache-control"] == "no-store"
    assert ("retry-after" in fields) == (status == 503)


@pytest.mark.parametrize("status", sorted(refusal.STATUSES))
def test_head_gets_no_body_and_the_same_fields(status: int) -> None:
    answered, fields, body = read(refusal.http(status, method="HEAD"), "HEAD")
    assert (answered, body) == (status, b"")
    assert fields == read(refusal.http(status))[1]


def test_full() -> None:
    octets = refusal.full()
    assert octets.startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n")
    assert b"\r\nConnection: close\r\n" in octets
    assert b"too many visitors" in octets


def test_a_further_sentence_is_escaped() -> None:
    body = read(refusal.http(400, why='<script>"&'))[2]
    assert b"&lt;script&gt;&quot;&amp;" in body
    assert b"<script" not in body


def test_unknown_status_is_an_error_of_ours() -> None:
    with pytest.raises(KeyError):
        refusal.http(418)


@pytest.mark.parametrize(
    ("target", "port", "location"),
    [
        ("/", 443, "https://www.example.org/"),
        ("/a/b?c=d&e", 443, "https://www.example.org/a/b?c=d&e"),
        ("/a", 8443, "https://www.example.org:8443/a"),
        ("//other.example/a", 443, "https://www.example.org//other.example/a"),
        ("*", 443, "https://www.example.org/"),
        ("http://www.example.org/a?b", 443, "https://www.example.org/a?b"),
        ("http://www.example.org", 443, "https://www.example.org/"),
        ("http://www.example.org?b=/c", 443, "https://www.example.org/?b=/c"),
    ],
)
def test_redirect(target: str, port: int, location: str) -> None:
    status, fields, body = read(refusal.redirect("www.example.org", target, port))
    assert (status, fields["location"]) == (308, location)
    assert body
    assert read(refusal.redirect("www.example.org", target, port, method="HEAD"), "HEAD")[2] == b""


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("www.example.org", "/a\r\nSet-Cookie: a=b"),
        ("www.example.org", "/a b"),
        ("www.example.org", "/\u00e9"),
        ("www.example.org\r\n", "/"),
        ("WWW.example.org", "/"),
        ("a@b.example", "/"),
        ("10.0.0.1", "/"),
    ],
)
def test_redirect_takes_nothing_unread(host: str, target: str) -> None:
    with pytest.raises(ValueError, match="a head that was read"):
        refusal.redirect(host, target)


@settings(max_examples=examples(100), deadline=None)
@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E)))
def test_redirect_never_leaves_the_host(target: str) -> None:
    location = read(refusal.redirect("www.example.org", target))[1]["location"]
    assert location.startswith("https://www.example.org/")


@pytest.mark.parametrize(
    ("description", "says"), [(112, "unrecognized name"), (50, "decode error"), (10, "unexpected message")]
)
def test_a_visitor_understands_the_alert(description: int, says: str) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    visitor = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="www.example.org")
    with pytest.raises(ssl.SSLWantReadError):
        visitor.do_handshake()
    incoming.write(refusal.alert(description))
    with pytest.raises(ssl.SSLError) as told:
        visitor.do_handshake()
    assert says.replace(" ", "_").upper() in str(told.value).replace(" ", "_").upper()
