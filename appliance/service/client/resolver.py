"""Asking the DNS where the tunnel servers are, again and again; hides twisted.names.

Only what was found is told. An answer that is missing, empty, forged or too large is a line in the log and
another question later: nothing that the DNS says, or does not say, takes away a server that was joined.
"""

from __future__ import annotations

import errno
import os
import random
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.application import service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.names import dns
from twisted.python.failure import Failure
from zope.interface import implementer

from appliance.tunnel.discovery import ServerAddress, read_txt

#: How long an answer is believed, whatever its TTL says: a TTL of 0 must not become a flood of questions, and
#: one of a day must not hide a new server for a day.
MIN_AGAIN_SECONDS, MAX_AGAIN_SECONDS = 5.0, 300.0
#: After a failure the pause doubles up to this: a resolver that is back is noticed within a minute.
MAX_FAILED_AGAIN_SECONDS = 60.0
#: Clients that asked together (a server's death tells them all at once) shall not do so for ever; and a new
#: server is found within one TTL. (A cache that is asked before that says how long it will be.)
_EARLIEST = 0.75
#: "At once" after a lost link is not more often than this: several links are lost together when a network is.
MIN_BETWEEN_SECONDS = 1.0
#: Servers taken from one answer; the Joiner holds no more, either.
MAX_SERVERS = 64
#: Each nameserver is asked twice (the shorter time-outs first, as in resolv.conf's ``attempts:2``).
_UDP_TIMEOUTS_SECONDS = (1.5, 3.0)
_TCP_TIMEOUT_SECONDS = 5.0
#: Without EDNS an answer has at most 512 octets (RFC 1035 4.2.1); resolvers that send more are read as well.
_MAX_DATAGRAM_OCTETS = 4096
#: resolv.conf(5): MAXNS is 3.
_MAX_NAMESERVERS = 3
#: CNAMEs followed inside one answer; the resolver has followed them already, they are only checked here.
_MAX_ALIASES = 8

Nameserver = tuple[str, int]


class LookupFailed(Exception):
    """The DNS gave no usable answer"""


class Unreachable(LookupFailed):
    """This machine has no way to such an address"""


class NoServers(LookupFailed):
    """The DNS answered, and names no tunnel server"""


@dataclass(frozen=True, slots=True)
class Found:
    """What one look-up found: servers in the order of their addresses, and the answer's TTL in seconds."""

    servers: tuple[ServerAddress, ...]
    ttl: float


class Resolver(service.Service):
    """Looks up the TXT records of the discovery name: when it starts, within the TTL, and when told that a
    link was lost.

    ``nameserver`` is the (host, port) to ask; without it the system's, read anew from ``resolv_conf`` at each
    look-up. ``found`` is called with the servers of every answer that names at least one.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        discovery: str,
        found: Callable[[tuple[ServerAddress, ...]], None],
        *,
        nameserver: Nameserver | None = None,
        resolv_conf: Path = Path("/etc/resolv.conf"),
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._reactor = reactor
        self._discovery = discovery
        self._found = found
        self._nameserver = nameserver
        self._resolv_conf = resolv_conf
        self._jitter = jitter
        self._looking: Deferred[None] | None = None
        self._began = float("-inf")
        self._again: Any = None
        self._failures = 0
        self._said = ""

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._look_up()

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        self._forget_timer()
        if self._looking is not None:
            self._looking.cancel()

    def look_up_now(self) -> None:
        """A link was lost: what was known may be old. Not more than once a second."""
        if not self.running or self._looking is not None:
            return
        self._ask_in(max(0.0, self._began + MIN_BETWEEN_SECONDS - self._reactor.seconds()))

    def _ask_in(self, seconds: float) -> None:
        self._forget_timer()
        if seconds <= 0:
            self._look_up()
        else:
            self._again = self._reactor.callLater(seconds, self._look_up)

    def _forget_timer(self) -> None:
        if self._again is not None and self._again.active():
            self._again.cancel()
        self._again = None

    def _look_up(self) -> None:
        self._again = None
        self._began = self._reactor.seconds()
        looking = Deferred.fromCoroutine(self._once())
        if not looking.called:
            self._looking = looking
        looking.addErrback(self._broke)

    async def _once(self) -> None:
        try:
            found = await look_up(self._reactor, self.nameservers(), self._discovery)
        except LookupFailed as failed:
            self._say(str(failed))
            pause = min(MAX_FAILED_AGAIN_SECONDS, MIN_AGAIN_SECONDS * 2**self._failures)
            self._failures = min(self._failures + 1, 10)
        else:
            self._failures = 0
            self._say("")
            pause = min(MAX_AGAIN_SECONDS, max(MIN_AGAIN_SECONDS, found.ttl))
            self._found(found.servers)
        self._looking = None
        if self.running:
            self._ask_in(max(MIN_AGAIN_SECONDS, self._jitter(pause * _EARLIEST, pause)))

    def _broke(self, failure: Failure) -> None:
        self._looking = None
        if failure.check(CancelledError):
            return
        self._log.failure("looking up {name} failed", failure=failure, name=self._discovery)
        if self.running:
            self._ask_in(MAX_FAILED_AGAIN_SECONDS)

    def _say(self, words: str) -> None:
        """Log why nothing was found, once and not each time; and that it is over."""
        if words == self._said:
            return
        if words:
            self._log.warn(
                "{name}: {words}; servers already joined stay joined", name=self._discovery, words=words
            )
        else:
            self._log.info("{name}: the DNS answers again", name=self._discovery)
        self._said = words

    def nameservers(self) -> list[Nameserver]:
        """The resolvers to be asked."""
        if self._nameserver is not None:
            return [self._nameserver]
        return read_resolv_conf(self._resolv_conf)


def read_resolv_conf(path: Path) -> list[Nameserver]:
    """The nameservers of a resolv.conf(5) file, at most three; without any, the one on this machine."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    words = [line.split() for line in lines]
    named = [(word[1], dns.PORT) for word in words if len(word) > 1 and word[0] == "nameserver"]
    return named[:_MAX_NAMESERVERS] or [("127.0.0.1", dns.PORT)]


async def look_up(reactor: Any, nameservers: Sequence[Nameserver], name: str) -> Found:
    """The tunnel servers that the TXT records of ``name`` name: by UDP, by TCP where that is cut short.

    :raises LookupFailed: no nameserver answered, or none of the answers names a server.
    """
    query = dns.Query(name.encode("ascii"), dns.TXT, dns.IN)
    last = LookupFailed("no nameserver answered")
    for timeout in _UDP_TIMEOUTS_SECONDS:
        for nameserver in nameservers:
            try:
                message = await _ask_udp(reactor, nameserver, query, timeout)
                if message.trunc:
                    message = await _ask_tcp(reactor, nameserver, query)
                return _read_answer(message, query)
            except NoServers:
                raise  # so would the next one say, as it does to every other program
            except LookupFailed as failed:
                last = failed
    raise last


async def _ask_udp(reactor: Any, nameserver: Nameserver, query: dns.Query, timeout: float) -> Any:
    try:
        question = _Question(reactor, nameserver, query)
    except OSError as error:
        raise LookupFailed(f"cannot ask {_text(nameserver)}: {error.strerror}") from error
    try:
        return await question.answered.addTimeout(timeout, reactor)
    except TimedOut as error:
        raise LookupFailed(f"{_text(nameserver)} did not answer") from error
    except OSError as error:
        raise LookupFailed(f"{_text(nameserver)} did not answer: {error.strerror}") from error
    finally:
        question.close()


@implementer(IReadDescriptor)
class _Question:
    """One question by UDP, on a socket and port of its own that hears that nameserver only.

    What is not the answer to it is not looked at further: somebody's guess must not end the wait for the
    answer. (Twisted's own datagram port would say in the log that it opens and closes, at every look-up.)
    """

    def __init__(self, reactor: Any, nameserver: Nameserver, query: dns.Query) -> None:
        """Sends it. Raises OSError."""
        self.answered: Deferred[Any] = Deferred()
        self._reactor = reactor
        self._query = query
        asked = dns.Message(id=secrets.randbelow(1 << 16), recDes=1)
        asked.queries = [query]
        self._id = asked.id
        family = socket.AF_INET6 if ":" in nameserver[0] else socket.AF_INET
        self._sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._sock.connect(nameserver)
            self._sock.send(asked.toStr())
        except OSError:
            self._sock.close()
            raise
        reactor.addReader(self)

    def close(self) -> None:
        self._reactor.removeReader(self)
        self._sock.close()

    def fileno(self) -> int:
        """Twisted: the descriptor to watch."""
        return self._sock.fileno()

    def doRead(self) -> None:
        """Twisted: a datagram."""
        try:
            octets = self._sock.recv(_MAX_DATAGRAM_OCTETS)
        except BlockingIOError:
            return
        except OSError as error:
            self._tell(Failure(error))
            return
        message: Any = dns.Message()
        try:
            message.fromStr(octets)
        except Exception:
            return  # whatever garbage does to the parser, it is no answer
        if message.id == self._id and message.answer and message.queries == [self._query]:
            self._tell(message)

    def _tell(self, result: Any) -> None:
        if not self.answered.called:
            self.answered.callback(result)  # a Failure becomes an errback

    def logPrefix(self) -> str:
        """Twisted: who this is in a log."""
        return "resolver"

    def connectionLost(self, reason: object) -> None:
        """Twisted: there is nobody (epoll tells of that as an end), or the reactor is shutting down."""
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.ECONNABORTED
        self._tell(Failure(OSError(number, os.strerror(number))))


async def _ask_tcp(reactor: Any, nameserver: Nameserver, query: dns.Query) -> Any:
    host, port = nameserver
    endpoint = (TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint)(
        reactor, host, port, timeout=_TCP_TIMEOUT_SECONDS
    )
    factory = Factory.forProtocol(lambda: dns.DNSProtocol(_Unasked(), reactor))
    factory.noisy = False
    try:
        asking: Any = await endpoint.connect(factory)
    except CancelledError:
        raise
    except Exception as error:
        raise LookupFailed(f"{_text(nameserver)} does not take TCP: {error}") from error
    try:
        return await asking.query([query], _TCP_TIMEOUT_SECONDS)
    except CancelledError:
        raise
    except Exception as error:
        raise LookupFailed(f"{_text(nameserver)} did not answer by TCP") from error
    finally:
        _cancel_timers(asking)
        asking.transport.abortConnection()


def _cancel_timers(asking: Any) -> None:
    """What twisted.names leaves in the reactor when a question is given up."""
    for _, timer in (asking.liveMessages or {}).values():
        if timer.active():
            timer.cancel()


class _Unasked:
    """What a twisted.names protocol reports to. Messages that answer no question of ours go nowhere."""

    def messageReceived(self, message: object, protocol: object, address: object = None) -> None:
        pass

    def connectionMade(self, protocol: object) -> None:
        pass

    def connectionLost(self, protocol: object) -> None:
        pass


def _read_answer(message: Any, query: dns.Query) -> Found:
    """:raises LookupFailed: it answers another question, is an error, or (NoServers) names no server."""
    if not message.answer or message.trunc or message.queries != [query]:
        raise LookupFailed("the answer is not one to the question")
    if message.rCode == dns.ENAME:
        raise NoServers("there is no such name")
    if message.rCode != dns.OK:
        raise LookupFailed(f"the answer is an error (RCODE {message.rCode})")
    names = {_lower(query.name)}
    ttls: list[float] = []
    for _ in range(_MAX_ALIASES):
        aliases = [rr for rr in message.answers if rr.type == dns.CNAME and _lower(rr.name) in names]
        new = {_lower(rr.payload.name) for rr in aliases} - names
        if not new:
            break
        ttls.extend(rr.ttl for rr in aliases)
        names |= new
    servers: set[ServerAddress] = set()
    for rr in message.answers:
        if rr.type != dns.TXT or _lower(rr.name) not in names:
            continue
        address = read_txt(b"".join(rr.payload.data).decode("latin-1"))
        if address is not None:
            servers.add(address)
            ttls.append(rr.ttl)
    if not servers:
        raise NoServers("no TXT record there names a tunnel server")
    return Found(tuple(sorted(servers)[:MAX_SERVERS]), float(min(ttls)))


def _lower(name: Any) -> bytes:
    return bytes(name.name).lower().rstrip(b".")


def _text(nameserver: Nameserver) -> str:
    host, port = nameserver
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
