"""A tunnel client written from docs/reference/protocol.md alone.

It shares no line with the appliance: what it cannot do, the specification does not say. It serves for as
long as a test lasts, so it does not dial again, does not ask the DNS itself and holds one link. One thread
has the link, and one each lane: no two threads touch the same TLS connection.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import re
import select
import socket
import struct
import threading
import time
import tomllib
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.end_to_end.libssl import (
    Ended,
    Stream,
    TlsStream,
    Unsealable,
    Unverified,
    unsealed,
    wait,
)

Address = tuple[str, int]
JOINED, REFUSED, UNREACHABLE, SAID_NOTHING, NO_ORIGIN = 1, 2, 3, 4, 5
MAX_LINE_OCTETS = 65536
HELLO_SECONDS, PONG_SECONDS = 5.0, 9.0
ACCEPT_SECONDS, ANSWER_SECONDS = 5.0, 10.0  # of the origin
_MAGIC = bytes.fromhex("f574756e6e656c01")
_PROXY = bytes.fromhex("0d0a0d0a000d0a515549540a21")


class Broken(Exception):
    """The other end broke the protocol: {0}"""


@dataclass(frozen=True)
class Invitation:
    """What an invitation file says."""

    ca: bytes
    credential: bytes
    service_name: str
    discovery: str

    @classmethod
    def read(cls, path: Path) -> Invitation:
        said = tomllib.loads(path.read_text())
        return cls(said["ca"].encode(), said["credential"].encode(), said["service_name"], said["discovery"])


def servers(records: Sequence[str]) -> list[Address]:
    """The usable ones among TXT records (their character-strings joined)."""
    found = []
    for record in records:
        marker, *pairs = (part.strip() for part in record.strip().removesuffix(";").split(";"))
        split = (pair.partition("=") for pair in pairs)
        keys = [(key.strip().lower(), value.strip()) for key, _, value in split]
        said = dict(keys)
        if re.sub(r"\s", "", marker).lower() != "r=superprotocol" or len(said) != len(keys):
            continue
        try:
            ip = ipaddress.ip_address(said.get("ip", ""))
        except ValueError:
            continue
        port = said.get("port", "443")
        mapped = isinstance(ip, ipaddress.IPv6Address) and (ip.ipv4_mapped or ip.scope_id)
        if mapped or ip.is_unspecified or ip.is_multicast or not re.fullmatch(r"[1-9][0-9]{0,4}", port):
            continue
        if int(port) < 65536:
            found.append((str(ip), int(port)))
    return found


class Pump:
    """One direction of a joined lane."""

    def __init__(self, source: Stream, sink: Stream, pending: bytes = b"") -> None:
        self.source, self.sink, self.pending, self.ended = source, sink, pending, False

    def step(self) -> bool:
        """Pass on what there is; whether there was anything."""
        if self.pending:
            taken = self.sink.write(self.pending)
            self.pending = self.pending[taken:]
            return taken > 0
        octets = None if self.ended else self.source.read()
        if octets == b"":
            self.ended = True
            self.sink.end()
        self.pending = octets or b""
        return octets is not None

    def wants(self) -> dict[Stream, int]:
        if self.pending:
            return {self.sink: select.POLLOUT}
        return {} if self.ended else {self.source: select.POLLIN}


def either(first: Mapping[Stream, int], second: Mapping[Stream, int]) -> dict[Stream, int]:
    return {each: first.get(each, 0) | second.get(each, 0) for each in {*first, *second}}


@dataclass(frozen=True)
class Visitor:
    """What a sealed header says."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    name: str
    unique_id: bytes
    by_tls: bool
    alpn: bytes | None


def visitor_of(header: bytes) -> Visitor:
    """Read a header of the PROXY protocol."""
    try:
        start, family, length = struct.unpack_from(">13sBH", header)
        size, sort = {0x11: (4, socket.AF_INET), 0x21: (16, socket.AF_INET6)}[family]
        ports = struct.unpack_from(">HH", header, 16 + 2 * size)
        addresses = [socket.inet_ntop(sort, header[at : at + size]) for at in range(16, 16 + 2 * size, size)]
        if start != _PROXY or length != len(header) - 16:
            raise Broken("no PROXY header")
        values: dict[int, bytes] = {}
        at = 20 + 2 * size
        while at < len(header):
            key, octets = struct.unpack_from(">BH", header, at)
            value = header[at + 3 : at + 3 + octets]
            if len(value) != octets or (key in values and key in (1, 2, 5, 0xE0)):
                raise Broken("a value that is cut off, or given twice")
            values[key] = value
            at += 3 + octets
        by_tls = {b"\x01": True, b"\x02": False}[values[0xE0]]
        return Visitor(
            *(addresses[0], ports[0], addresses[1], ports[1]),
            *(values[2].decode("ascii"), values[5], by_tls, values.get(1)),
        )
    except (struct.error, KeyError, ValueError) as problem:
        raise Broken(f"a header that does not read: {problem!r}") from None


def preface(preface_key: bytes, session: str, counter: int) -> bytes:
    start = _MAGIC + bytes.fromhex(session) + struct.pack(">Q", counter)
    return start + hmac.digest(preface_key, start, "sha256")[:16]


def _text(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.DOTALL) is not None


def _number(low: int, high: int, kinds: tuple[type, ...] = (int,)) -> Callable[[Any], bool]:
    return lambda value: type(value) in kinds and low <= value <= high


_NONCE, _ANY_NAME, _SECONDS = _text(r"[\x20-\x7e]{1,64}"), _text(r".{0,1000}"), (int, float)
_WHY = {"reason": _text(r"[a-z0-9_]{1,40}"), "text": _text(r".{0,1000}")}
_FROM_SERVER: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "welcome": {
        "server": _text(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?"),
        "boot": _NONCE,
        "session": _text(r"[0-9a-f]{16}"),
        "ping_seconds": _number(1, 300, _SECONDS),
    },
    "registered": {"name": _ANY_NAME},
    "refused": {"name": _ANY_NAME, **_WHY},
    "lanes": {
        "kind": _text("plain|tls"),
        "held": _number(0, 65535),
        "waiting": _number(0, 65535),
    },
    "draining": {"reconnect_in": _number(0, 3600, _SECONDS)},
    "goodbye": _WHY,
    "ping": {"nonce": _NONCE},
    "pong": {"nonce": _NONCE},
}


def message_of(line: bytes) -> dict[str, Any] | None:
    """A message of the server; None for one of an unknown type."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise Broken("a key given twice")
        return {key: value for key, value in pairs if value is not None}

    try:
        message = json.loads(line.decode(), object_pairs_hook=once)
    except ValueError:
        raise Broken("a line that is not JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise Broken("no type")
    keys = _FROM_SERVER.get(message["type"])
    if keys is None:
        return None
    for key, allowed in keys.items():
        if key not in message or not allowed(message[key]):
            raise Broken(f"{message['type']}: {key}")
    return message


@dataclass(frozen=True)
class Offer:
    """The origins of a name."""

    tls: Address | None = None
    http: Address | None = None


class SpecClient:
    """One session with one server.

    `heard` has every message of the server, `visitors` every header that was opened, `answers` every status
    octet: one that refuses once the server has closed the lane.
    """

    def __init__(
        self,
        invitation: Invitation,
        server: Address,
        *,
        lanes: int = 2,
        instance: str | None = None,
        certificate: bool = True,
    ) -> None:
        self.invitation, self.server = invitation, server
        self.instance = instance or os.urandom(16).hex()
        self.heard: list[dict[str, Any]] = []
        self.visitors: list[Visitor] = []
        self.answers: list[int] = []
        self.ended = threading.Event()
        self._changed = threading.Condition()
        self._offers: dict[str, Offer] = {}
        self._streams: set[Stream] = set()
        self._threads: list[threading.Thread] = []
        self._next_counter, self._closing = 1, False
        self._dialling = Counter[str]()
        self._outbox: deque[dict[str, Any]] = deque()
        self._ping: tuple[str, float] | None = None
        self._rest = b""
        self._bell, self._ear = (Stream(end) for end in socket.socketpair())
        try:
            self._link = self._by_tls(b"tunnel/1", certificate)
        except BaseException:
            self._bell.close()
            self._ear.close()
            raise
        exported = self._link.exported(b"EXPORTER-tunnel-appliance-lane", 64)
        self.preface_key, self._header_key = exported[:32], exported[32:]
        self._write({"type": "hello", "version": 1, "instance": self.instance, "agent": "speclient/1"})
        self._begin(self._keep_link)
        self.lanes = lanes
        try:
            welcome = self.hears("welcome", "goodbye", "lost")
        except BaseException:
            self.close()
            raise
        self.session: str = welcome.get("session", "")
        if self.session:
            for _ in range(lanes):
                self.open_lane("plain")

    def register(self, name: str, offer: Offer) -> dict[str, Any]:
        """The answer."""
        self._offers[name] = offer
        http = "redirect" if offer.http is None else "serve"
        self.say({"type": "register", "name": name, "tls": offer.tls is not None, "http": http})
        return self.hears("registered", "refused", name=name)

    def hears(self, *types: str, **keys: Any) -> dict[str, Any]:
        """Wait for such a message; the last one that came."""

        def found() -> list[dict[str, Any]]:
            return [each for each in self.heard if each["type"] in types and keys.items() <= each.items()]

        self.settles(lambda: bool(found()))
        return found()[-1]

    def settles(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds of what was heard, visited or answered."""
        with self._changed:
            assert self._changed.wait_for(condition, 10), (self.heard, self.visitors, self.answers)

    def say(self, message: dict[str, Any]) -> None:
        self._outbox.append(message)
        self._bell.write(b"!")

    def preface(self, counter: int) -> bytes:
        return preface(self.preface_key, self.session, counter)

    def counter(self) -> int:
        """A counter that no lane has."""
        with self._changed:
            self._next_counter += 1
            return self._next_counter - 1

    def open_lane(self, kind: str) -> None:
        counter = self.counter()
        with self._changed:
            self._dialling[kind] += 1
        self._begin(lambda: self._serve(kind, counter))

    def close(self) -> None:
        """Say goodbye, end everything, and wait for it."""
        if not self.ended.is_set():
            self.say({"type": "goodbye", "reason": "leaving", "text": "The test is done."})
            self.ended.wait(10)
        with self._changed:
            self._closing = True
            for stream in self._streams:
                stream.stop()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), thread
        self._bell.close()
        self._ear.close()

    def __enter__(self) -> SpecClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work)
        with self._changed:
            if self._closing:
                return
            self._threads.append(thread)
            thread.start()

    def _dial(self) -> socket.socket:
        return socket.create_connection(self.server, timeout=10)

    def _by_tls(self, alpn: bytes, certificate: bool = True) -> TlsStream:
        mine = self.invitation.credential if certificate else None
        return TlsStream(self._dial(), self.invitation.ca, mine, self.invitation.service_name, alpn)

    def _note(self, where: list[Any], what: Any) -> None:
        with self._changed:
            where.append(what)
            self._changed.notify_all()

    def _own(self, stream: Stream, held: ExitStack) -> None:
        """Close it in the end; `close` stops it."""
        held.callback(stream.close)
        with self._changed:
            if self._closing:
                raise Ended
            self._streams.add(stream)
        held.callback(self._disown, stream)

    def _disown(self, stream: Stream) -> None:
        with self._changed:
            self._streams.discard(stream)

    # The link.

    def _write(self, message: dict[str, Any]) -> None:
        self._link.all(json.dumps(message).encode() + b"\n")

    def _keep_link(self) -> None:
        with ExitStack() as held:
            held.callback(self.ended.set)
            self._own(self._link, held)
            try:
                while not self._turn():
                    pass
            except Broken as broken:
                self._write({"type": "goodbye", "reason": "protocol", "text": f"{broken!r}"})
                self._note(self.heard, {"type": "broken", "text": f"{broken!r}"})
            except (OSError, Ended):
                self._note(self.heard, {"type": "lost"})

    def _turn(self) -> bool:
        """One turn of the link; whether it is over."""
        while self._outbox:
            message = self._outbox.popleft()
            self._write(message)
            if message["type"] == "goodbye":
                return True
        octets = self._link.read()
        if octets == b"":
            raise Ended
        if octets is None:
            self._idle()
            return False
        *lines, self._rest = (self._rest + octets).split(b"\n")
        if any(len(line) >= MAX_LINE_OCTETS for line in (*lines, self._rest)):
            raise Broken("a line that is too long")
        return any(self._take(said) for line in lines if (said := message_of(line)))

    def _idle(self) -> None:
        """Wait for something to do; pings in between."""
        welcome = next((each for each in self.heard if each["type"] == "welcome"), None)
        seconds = HELLO_SECONDS
        if welcome is not None:
            if self._ping is None:
                self._ping = os.urandom(8).hex(), time.monotonic()
                self._write({"type": "ping", "nonce": self._ping[0]})
            seconds = welcome["ping_seconds"] if not self._ping[0] else PONG_SECONDS
            seconds += self._ping[1] - time.monotonic()
        try:
            wait({self._link: select.POLLIN, self._ear: select.POLLIN}, seconds)
        except TimeoutError:
            if welcome is not None and self._ping is not None and not self._ping[0]:
                self._ping = None  # time for the next one
            else:
                self.say({"type": "goodbye", "reason": "silent", "text": "Nothing came for too long."})
        self._ear.read()

    def _take(self, message: dict[str, Any]) -> bool:
        """One message; whether it is the last."""
        kind = message["type"]
        welcomed = any(each["type"] == "welcome" for each in self.heard)
        if kind != "goodbye" and (kind == "welcome") == welcomed:
            raise Broken(f"{kind} may not come now")
        if kind == "ping":
            self._write({"type": "pong", "nonce": message["nonce"]})
        elif kind == "pong":
            if self._ping is None or self._ping[0] != message["nonce"]:
                raise Broken("a pong for no ping")
            self._ping = "", self._ping[1]
        elif kind == "lanes":
            lanes = message["kind"]
            for _ in range(message["waiting"] - message["held"] - self._dialling[lanes]):
                self.open_lane(lanes)
        self._note(self.heard, message)
        return bool(kind == "goodbye")

    # Lanes.

    def _serve(self, kind: str, counter: int) -> None:
        with ExitStack() as held:
            try:
                lane = self._lane(kind, counter, held)
                (length,) = struct.unpack(">H", lane.exactly(2))
                if not 16 <= length <= 2048:
                    raise Broken("the length of a sealed header")
                sealed = lane.exactly(length)
                nonce = struct.pack(">IQ", 0, counter)
                visitor = visitor_of(unsealed(self._header_key, nonce, self.preface(counter), sealed))
            except (OSError, Ended, Broken, Unsealable, Unverified):
                return
            self._note(self.visitors, visitor)
            if kind == "plain" and self.lanes and not self.ended.is_set():
                self.open_lane("plain")  # in place of this one
            try:
                self._join(lane, visitor, held)
            except (OSError, Ended):
                lane.reset()

    def _lane(self, kind: str, counter: int, held: ExitStack) -> Stream:
        """Connected, its preface sent."""
        try:
            lane = Stream(self._dial()) if kind == "plain" else self._by_tls(b"tunnel-lane/1")
            self._own(lane, held)
            lane.all(self.preface(counter))
            return lane
        finally:
            with self._changed:
                self._dialling[kind] -= 1

    def _offered(self, visitor: Visitor) -> Address | None:
        names, rest = [visitor.name], visitor.name
        while rest:
            rest = rest.partition(".")[2]
            names.append(f"*.{rest}")
        offer = next((self._offers[name] for name in names if name in self._offers), Offer())
        return offer.tls if visitor.by_tls else offer.http

    def _join(self, lane: Stream, visitor: Visitor, held: ExitStack) -> None:
        address = self._offered(visitor)
        if address is None:
            return self._refuse(lane, NO_ORIGIN)
        try:
            origin = Stream(socket.create_connection(address, timeout=ACCEPT_SECONDS))
        except ConnectionRefusedError:
            return self._refuse(lane, REFUSED)
        except TimeoutError:
            return self._refuse(lane, SAID_NOTHING)
        except OSError:
            return self._refuse(lane, UNREACHABLE)
        self._own(origin, held)
        there, first = Pump(lane, origin), b""
        if visitor.by_tls:
            try:
                answer = _answer(there)
            except TimeoutError:
                return self._refuse(lane, SAID_NOTHING)
            except OSError:
                answer = b""
            if answer is None:
                return None  # the server has given this lane up
            if not answer:
                return self._refuse(lane, REFUSED)
            first = answer
        self._note(self.answers, JOINED)
        back = Pump(origin, lane, bytes([JOINED]) + first)
        try:
            while not (there.ended and back.ended and not there.pending and not back.pending):
                if not there.step() | back.step():
                    wait(either(there.wants(), back.wants()))
        except OSError:
            origin.reset()
            raise
        return None

    def _refuse(self, lane: Stream, status: int) -> None:
        lane.all(bytes([status]))
        try:
            lane.end()
            while (octets := lane.read()) != b"":
                if octets is None:
                    wait({lane: select.POLLIN})
        except OSError:
            pass  # the server resets what it has done with
        self._note(self.answers, status)


def _answer(there: Pump) -> bytes | None:
    """The origin's first octets (empty: it ended), or None if the lane ended before."""
    until = time.monotonic() + ANSWER_SECONDS
    while True:
        moved = there.step()
        octets = there.sink.read()
        if octets is not None:
            return octets
        if there.ended:
            return None
        if not moved:
            wait(either(there.wants(), {there.sink: select.POLLIN}), until - time.monotonic())
