from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.tunnel.messages import (
    Challenge,
    ChallengeOver,
    ChallengeRefused,
    Draining,
    Goodbye,
    Hello,
    Lanes,
    Lines,
    Message,
    MessageError,
    Ping,
    Pong,
    Refused,
    Register,
    Registered,
    Renew,
    Renewed,
    RenewRefused,
    Unregister,
    Welcome,
    encode,
)
from tests.effort import examples
from tests.tunnel.cuts import CUTS, cut

VALUE = "aZ09-_" * 7 + "x"
EVERY: list[tuple[Message, bytes]] = [
    (
        Hello(1, "0" * 32, "tunnel-appliance/0.1.0"),
        b'{"type":"hello","version":1,"instance":"' + b"0" * 32 + b'","agent":"tunnel-appliance/0.1.0"}\n',
    ),
    (
        Welcome("s1", "b00t", "0123456789abcdef", 5.0),
        b'{"type":"welcome","server":"s1","boot":"b00t","session":"0123456789abcdef","ping_seconds":5.0}\n',
    ),
    (
        Register("www.example.org", True, "redirect"),
        b'{"type":"register","name":"www.example.org","tls":true,"http":"redirect"}\n',
    ),
    (Registered("www.example.org"), b'{"type":"registered","name":"www.example.org"}\n'),
    (
        Refused("a.example", "not_granted", "no"),
        b'{"type":"refused","name":"a.example","reason":"not_granted","text":"no"}\n',
    ),
    (Unregister("a.example"), b'{"type":"unregister","name":"a.example"}\n'),
    (
        Challenge("*.a.example", VALUE, 600, "a+/="),
        b'{"type":"challenge","name":"*.a.example","value":"%s","seconds":600' % VALUE.encode()
        + b',"signature":"a+/="}\n',
    ),
    (
        ChallengeOver("a.example", VALUE),
        b'{"type":"challenge_over","name":"a.example","value":"%s"}\n' % VALUE.encode(),
    ),
    (
        ChallengeRefused("a.example", VALUE, "no"),
        b'{"type":"challenge_refused","name":"a.example","value":"%s","text":"no"}\n' % VALUE.encode(),
    ),
    (Renew("a\n", "a+/="), b'{"type":"renew","request":"a\\n","signature":"a+/="}\n'),
    (Renewed("a\n"), b'{"type":"renewed","certificate":"a\\n"}\n'),
    (RenewRefused("no"), b'{"type":"renew_refused","text":"no"}\n'),
    (Lanes("plain", 2, 0), b'{"type":"lanes","kind":"plain","held":2,"waiting":0}\n'),
    (Draining(), b'{"type":"draining"}\n'),
    (Draining(2.5), b'{"type":"draining","reconnect_in":2.5}\n'),
    (Goodbye("leaving", "bye"), b'{"type":"goodbye","reason":"leaving","text":"bye"}\n'),
    (Ping("n1"), b'{"type":"ping","nonce":"n1"}\n'),
    (Pong("n1"), b'{"type":"pong","nonce":"n1"}\n'),
    (Pong("n1", 30.0), b'{"type":"pong","nonce":"n1","ping_seconds":30.0}\n'),
]


@pytest.mark.parametrize(("message", "line"), EVERY)
def test_every_message_is_written_so_and_read_back(message: Message, line: bytes) -> None:
    assert encode(message) == line
    assert Lines().feed(line) == [message]


@given(st.lists(st.sampled_from(EVERY), max_size=6), CUTS)
@settings(max_examples=examples(100), deadline=None)
def test_any_cut(pairs: list[tuple[Message, bytes]], places: list[int]) -> None:
    lines = Lines()
    octets = b"".join(line for _, line in pairs)
    assert [m for piece in cut(octets, places) for m in lines.feed(piece)] == [m for m, _ in pairs]


def challenge(value: str, seconds: int, *, signature: str | None) -> bytes:
    fields = {"name": "a.example", "value": value, "seconds": seconds, "signature": signature}
    return json.dumps({"type": "challenge", **fields}).encode()


def test_a_challenge_within_its_bounds() -> None:
    (message,) = Lines().feed(challenge(VALUE, 1, signature="a") + b"\n")
    assert message == Challenge("a.example", VALUE, 1, "a")


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"hello","version":0,"instance":"00000000000000000000000000000000","agent":""}',
        b'{"type":"hello","version":1,"instance":"0000000000000000000000000000000","agent":""}',
        b'{"type":"hello","version":1,"instance":"0000000000000000000000000000000G","agent":""}',
        b'{"type":"register","name":"www.example.org","tls":1,"http":"serve"}',
        b'{"type":"register","name":"www.example.org","tls":true,"http":"no"}',
        b'{"type":"register","name":"' + b"a" * 256 + b'","tls":true,"http":"serve"}',
        b'{"type":"lanes","kind":"udp","held":0,"waiting":0}',
        b'{"type":"lanes","kind":"plain","held":-1,"waiting":0}',
        challenge(VALUE, 601, signature="a"),
        challenge(VALUE, 0, signature="a"),
        challenge(VALUE + "=", 60, signature="a"),
        challenge(VALUE[1:], 60, signature="a"),
        challenge('\\"' + VALUE[1:], 60, signature="a"),
        challenge(VALUE, 60, signature="!"),
        challenge(VALUE, 60, signature=None),
        b'{"type":"draining","reconnect_in":3601}',
        b'{"type":"draining","reconnect_in":1e400}',
        b'{"type":"goodbye","reason":"No Reason","text":""}',
        b'{"type":"ping","nonce":""}',
        b'{"type":"ping","nonce":"a b"}',
        b'{"type":"welcome","server":"s1","boot":"b","session":"0123456789abcdef","ping_seconds":0}',
    ],
)
def test_bounds_of_fields(line: bytes) -> None:
    with pytest.raises(MessageError):
        Lines().feed(line + b"\n")


def test_words_for_humans_never_end_a_link() -> None:
    (message,) = Lines().feed(b'{"type":"goodbye","reason":"x","text":"' + b"a\\n" * 900 + b'"}\n')
    assert message == Goodbye("x", "a?" * 500)
