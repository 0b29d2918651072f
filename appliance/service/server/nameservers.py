"""Who the nameservers of a zone are now, and where: its NS set, asked of one of them.

Hides the look-ups: addresses inside the zone come from the nameserver that was asked, others from the
system's resolver. What the DNS says is no more than where to send a signed message.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dns.exception
import dns.message
import dns.name
import dns.rdatatype
from twisted.application import service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.dns.sections import MessageError, read_sections
from appliance.service.asking import Asking

AGAIN_SECONDS = 300.0
"""An NS record has a TTL of an hour at least in most zones; who adds a nameserver has it told of the servers
that there are.
"""
FAILED_AGAIN_SECONDS = 30.0
MAX_NAMES = 16
MAX_ADDRESSES = 8
_ADDRESS_TYPES = (dns.rdatatype.A, dns.rdatatype.AAAA)

Found = Callable[[Mapping[str, tuple[str, ...]]], None]
"""Told of the addresses of each nameserver, by its name."""


class LookupFailed(Exception):
    """None of the nameservers that we know answered."""


class Nameservers(service.Service):
    """Asks for the NS set of `zone`, at each of the places that `asked()` gives until one answers, and again
    from time to time. `found` is told each time; a look-up that fails tells nothing.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, zone: str, asked: Callable[[], Sequence[tuple[str, int]]], found: Found
    ) -> None:
        self._reactor = reactor
        self._zone = dns.name.from_text(zone)
        self._asked = asked
        self._found = found
        self._looking: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._look()

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._looking is not None:
            self._looking.cancel()

    def _look(self) -> None:
        self._timer = None
        self._looking = looking = Deferred.fromCoroutine(self._once())
        looking.addErrback(self._broke)

    async def _once(self) -> None:
        try:
            found = await self._look_up()
        except LookupFailed:
            pause = FAILED_AGAIN_SECONDS
        else:
            pause = AGAIN_SECONDS
            self._found(found)
        self._again(pause)

    def _broke(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("looking up the nameservers failed", failure)
            self._again(FAILED_AGAIN_SECONDS)

    def _again(self, seconds: float) -> None:
        self._looking = None
        if self.running:
            self._timer = self._reactor.callLater(seconds, self._look)

    async def _look_up(self) -> dict[str, tuple[str, ...]]:
        for where in self._asked():
            answer = await self._ask(where, self._zone, dns.rdatatype.NS)
            targets = _rdatas(answer, self._zone, dns.rdatatype.NS)[:MAX_NAMES]
            if answer is not None and targets:
                return {
                    str(name).rstrip("."): await self._addresses(where, dns.name.from_text(name), answer)
                    for name in targets
                }
        raise LookupFailed

    async def _addresses(
        self, where: tuple[str, int], name: dns.name.Name, answer: dns.message.Message
    ) -> tuple[str, ...]:
        found = [text for rtype in _ADDRESS_TYPES for text in _rdatas(answer, name, rtype)]
        if not found and name.is_subdomain(self._zone):
            for rtype in _ADDRESS_TYPES:
                found += _rdatas(await self._ask(where, name, rtype), name, rtype)
        elif not found:
            found = await _resolved(self._reactor, name.to_text(omit_final_dot=True))
        return tuple(dict.fromkeys(found))[:MAX_ADDRESSES]

    async def _ask(
        self, where: tuple[str, int], name: dns.name.Name, rtype: dns.rdatatype.RdataType
    ) -> dns.message.Message | None:
        query = dns.message.make_query(name, rtype, use_edns=0, payload=1232, id=secrets.randbits(16))
        octets = await _asked(self._reactor, where, query.to_wire())
        if octets is None:
            return None
        try:
            read_sections(octets)  # bounded, before dnspython walks it
            answer = dns.message.from_wire(octets)
        except (MessageError, dns.exception.DNSException):
            return None
        return answer if query.is_response(answer) else None


def _asked(reactor: Any, where: tuple[str, int], message: bytes) -> Deferred[bytes | None]:
    """Fires with what came back; None where nothing did."""
    got: list[bytes] = []
    answered: Deferred[bytes | None] = Deferred(lambda _: asking.stop())

    def heard(octets: bytes) -> bool:
        got.append(octets)
        return True

    asking = Asking(
        reactor, *where, message, heard=heard, ended=lambda _: answered.callback(got[0] if got else None)
    )
    return answered


def _rdatas(
    answer: dns.message.Message | None, name: dns.name.Name, rtype: dns.rdatatype.RdataType
) -> list[str]:
    """The data of all records of this name and type, in the answer and beside it."""
    if answer is None:
        return []
    rrsets = (*answer.answer, *answer.additional)
    return [
        rdata.to_text() for rrset in rrsets if rrset.name == name and rrset.rdtype == rtype for rdata in rrset
    ]


def _resolved(reactor: Any, name: str) -> Deferred[list[str]]:
    """What the system's resolver says: nothing is no failure."""
    found: list[str] = []
    done: Deferred[list[str]] = Deferred()

    class Receiver:
        def resolutionBegan(self, resolution: object) -> None:
            pass

        def addressResolved(self, address: Any) -> None:
            found.append(str(ipaddress.ip_address(address.host)))

        def resolutionComplete(self) -> None:
            if not done.called:
                done.callback(found)

    reactor.nameResolver.resolveHostName(Receiver(), name)
    return done
