from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.addresses import (
    Listen,
    Origin,
    read_listen,
    read_origin,
    read_public,
    split_host_port,
    with_port,
)
from appliance.settingsfile import BadValue
from appliance.tunnel.discovery import ServerAddress
from tests.effort import examples


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("203.0.113.5", Listen("203.0.113.5", 53)),
        ("203.0.113.5:5354", Listen("203.0.113.5", 5354)),
        ("2001:DB8::5", Listen("2001:db8::5", 53)),
        ("[2001:db8::5]", Listen("2001:db8::5", 53)),
        ("[2001:db8::5]:5354", Listen("2001:db8::5", 5354)),
        ("127.0.0.1:0", Listen("127.0.0.1", 0)),
    ],
)
def test_listen(text: str, listen: Listen) -> None:
    assert read_listen(text, 53) == listen
    assert read_listen(str(listen), 0) == listen


@pytest.mark.parametrize(
    "text", ["", ":53", "example.org:53", "1.2.3.4:x", "1.2.3.4:70000", "[::1", "[::1]53"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(BadValue):
        read_listen(text)


@settings(max_examples=examples(100), deadline=None)
@given(st.text(alphabet="[]:.0123456789abcdefx ", max_size=24))
def test_only_bad_value(text: str) -> None:
    for read in (read_listen, split_host_port):
        try:
            read(text)
        except BadValue:
            pass
    try:
        read_public(text, 443)
    except BadValue:
        pass
    with_port(text, 1)


def test_public() -> None:
    assert read_public("203.0.113.5", 8443) == ServerAddress("203.0.113.5", 8443)
    assert read_public("[2001:db8::5]:444", 8443) == ServerAddress("2001:db8::5", 444)
    with pytest.raises(BadValue):
        read_public("0.0.0.0", 443)


def test_origin() -> None:
    assert read_origin("localhost:8080", Path("/a")) == Origin("localhost", 8080)
    assert str(read_origin("[::1]:8080", Path("/a"))) == "[::1]:8080"
    assert read_origin("unix:/run/x", Path("/a")) == Origin(path="/run/x")
    assert str(read_origin("unix:x", Path("/a"))) == "unix:/a/x"
    for text in ("localhost", ":80", "localhost:0", "http://localhost:80"):
        with pytest.raises(BadValue):
            read_origin(text, Path("/a"))


def test_with_port() -> None:
    assert with_port("1.2.3.4", 53) == "1.2.3.4:53"
    assert with_port("::1", 53) == "[::1]:53"
    assert with_port("1.2.3.4:5", 53) == "1.2.3.4:5"
    assert with_port("1.2.3.4:x", 53) == "1.2.3.4:x"
    assert with_port("somewhere", 53) == "somewhere"
