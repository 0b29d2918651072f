from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from appliance.service.nameserver.conversation import SILENCE_SECONDS, Conversation
from tests.effort import examples

LAST = b"the last one"


class Talk:
    def __init__(self) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.heard: list[bytes] = []
        self.ended: list[str | None] = []
        self.conversation = Conversation(
            self.reactor, "192.0.2.1", 53, b"what?", heard=self._hear, ended=self.ended.append
        )

    def _hear(self, message: bytes) -> bool:
        self.heard.append(message)
        return message == LAST

    def connect(self) -> Any:
        protocol: Any = self.conversation.buildProtocol(None)
        self.transport = StringTransport()
        protocol.makeConnection(self.transport)
        return protocol


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.integers(0, 40), max_size=5))
def test_messages_in_any_pieces(cuts: list[int]) -> None:
    talk = Talk()
    protocol = talk.connect()
    assert talk.transport.value() == framed(b"what?")
    stream = framed(b"one", b"", LAST, b"too much")
    places = [0, *sorted(cuts), len(stream)]
    for start, end in pairwise(places):
        protocol.dataReceived(stream[start:end])
    assert talk.heard == [b"one", b"", LAST]
    assert talk.ended == [None]
    assert not talk.reactor.getDelayedCalls()


def test_an_end_before_the_last_message() -> None:
    talk = Talk()
    talk.connect().dataReceived(framed(b"one"))
    talk.conversation.clientConnectionLost(None, Failure(ConnectionDone()))
    assert talk.ended == ["it ended the connection before its answer was whole"]
    talk.conversation.clientConnectionLost(None, Failure(ConnectionDone()))
    assert len(talk.ended) == 1


def test_no_connection() -> None:
    talk = Talk()
    talk.conversation.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
    (why,) = talk.ended
    assert why is not None
    assert "refused" in why


def test_silence() -> None:
    talk = Talk()
    protocol = talk.connect()
    talk.reactor.advance(SILENCE_SECONDS - 1)
    protocol.dataReceived(framed(b"one"))
    protocol.dataReceived(b"\x00")  # not a message
    talk.reactor.advance(SILENCE_SECONDS - 1)
    assert talk.ended == []
    talk.reactor.advance(1)
    assert talk.ended == ["it was silent for 10 s"]


@pytest.mark.parametrize("is_connected", [False, True])
def test_stopped_without_a_word(is_connected: bool) -> None:
    talk = Talk()
    if is_connected:
        talk.connect()
    talk.conversation.stop()
    talk.conversation.clientConnectionLost(None, Failure(ConnectionDone()))
    assert talk.ended == []
    assert not talk.reactor.getDelayedCalls()
