"""What the DNS says without a cache between: who the nameservers of a name's zone are, and what each answers.

Hides the look-ups: the zone, its NS set and their addresses are asked of a resolver, the rest of the
nameservers themselves. It costs dnspython, which only those pay who have a certificate to get.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
from dns.rdatatype import RdataType
from twisted.internet.defer import Deferred

from appliance.dns.caa import BadCaa, Caa, climbed, read_caa
from appliance.dns.sections import MessageError, read_sections
from appliance.service.asking import Asking
from appliance.service.client.resolver import LookupFailed, Nameserver, Unreachable

DNS_PORT = 53
MAX_NAMESERVERS = 16
MAX_ADDRESSES = 8
_NO_ROUTE = {
    f"no answer: {os.strerror(number)}"
    for number in (errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
}
"""What this machine says of an address of a family that it does not have."""


class Authoritative:
    """Asks the DNS; `resolvers` gives those to be asked where others are to be found."""

    def __init__(self, reactor: Any, resolvers: Callable[[], Sequence[Nameserver]]) -> None:
        self._reactor = reactor
        self._resolvers = resolvers

    async def nameservers(self, name: str) -> dict[str, tuple[str, ...]]:
        """The addresses of each nameserver of the zone that a name is in. Raises LookupFailed."""
        zone = await self._zone(name)
        answer = await self._resolve(zone, RdataType.NS)
        targets = [dns.name.from_text(text) for text in _texts(answer, zone, RdataType.NS)]
        if not targets:
            raise LookupFailed(f"there are no nameservers of {_text(zone)}")
        return {_text(target): await self._addresses(target) for target in targets[:MAX_NAMESERVERS]}

    async def texts(self, address: str, owner: str) -> tuple[str, ...]:
        """The TXT records that a nameserver has at `owner`; none is an answer. Raises LookupFailed."""
        name = dns.name.from_text(owner)
        answer = await self._ask((address, DNS_PORT), name, RdataType.TXT, recursive=False)
        if answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise LookupFailed(f"it answers {dns.rcode.to_text(answer.rcode())}")
        aliases = _texts(answer, name, RdataType.CNAME)
        if aliases:
            raise LookupFailed(f"{owner} is an alias of {aliases[0].rstrip('.')} there")
        rrsets = [one for one in answer.answer if one.name == name and one.rdtype == RdataType.TXT]
        return tuple(b"".join(rdata.strings).decode("latin-1") for one in rrsets for rdata in one)

    async def caa(self, name: str) -> tuple[Caa, ...]:
        """The CAA records that count for a name (RFC 8659 3). Raises LookupFailed, on which no CA issues."""
        for text in climbed(name):
            answer = await self._resolve(dns.name.from_text(text), RdataType.CAA)
            rrsets = [one for one in answer.answer if one.rdtype == RdataType.CAA]
            try:
                found = tuple(read_caa(rdata.to_wire() or b"") for one in rrsets for rdata in one)
            except BadCaa as error:
                raise LookupFailed(f"the CAA of {text}: {error}") from None
            if found:
                return found
        return ()

    async def _zone(self, name: str) -> dns.name.Name:
        """The apex of the zone that a name is in: what an alias stands for is in another one."""
        for text in climbed(name):
            asked = dns.name.from_text(text)
            answer = await self._resolve(asked, RdataType.SOA)
            for rrset in (*answer.answer, *answer.authority):
                if rrset.rdtype == RdataType.SOA and asked.is_subdomain(rrset.name):
                    return rrset.name
        raise LookupFailed(f"no zone of {name} was found")

    async def _addresses(self, target: dns.name.Name) -> tuple[str, ...]:
        answers = [await self._resolve(target, rtype) for rtype in (RdataType.A, RdataType.AAAA)]
        found = [
            rdata.to_text()
            for answer in answers
            for rrset in answer.answer
            if rrset.rdtype in (RdataType.A, RdataType.AAAA)
            for rdata in rrset
        ]
        return tuple(found[:MAX_ADDRESSES])

    async def _resolve(self, name: dns.name.Name, rtype: RdataType) -> dns.message.Message:
        """What the first resolver that answers says; NXDOMAIN is an answer. Raises LookupFailed."""
        why = "there is no resolver"
        for resolver in self._resolvers():
            try:
                answer = await self._ask(resolver, name, rtype, recursive=True)
            except LookupFailed as failed:
                why = f"the resolver {resolver[0]}: {failed}"
                continue
            if answer.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                return answer
            why = f"the resolver {resolver[0]} answers {dns.rcode.to_text(answer.rcode())}"
        raise LookupFailed(f"{_text(name)} {dns.rdatatype.to_text(rtype)}: {why}")

    async def _ask(
        self, where: Nameserver, name: dns.name.Name, rtype: RdataType, *, recursive: bool
    ) -> dns.message.Message:
        query = dns.message.make_query(name, rtype, use_edns=0, payload=1232, id=secrets.randbits(16))
        if not recursive:
            query.flags &= ~dns.flags.RD
        octets = await _asked(self._reactor, where, query.to_wire())
        try:
            read_sections(octets)  # bounded, before dnspython walks it
            answer = dns.message.from_wire(octets)
        except (MessageError, dns.exception.DNSException):
            raise LookupFailed("its answer is not a DNS message") from None
        if not query.is_response(answer):
            raise LookupFailed("its answer is to another question")
        return answer


def _asked(reactor: Any, where: Nameserver, message: bytes) -> Deferred[bytes]:
    """Fires with what came back, or fails with LookupFailed."""
    got: list[bytes] = []
    answered: Deferred[bytes] = Deferred(lambda _: asking.stop())

    def heard(octets: bytes) -> bool:
        got.append(octets)
        return True

    def ended(why: str | None) -> None:
        if why is None:
            answered.callback(got[0])
        else:
            answered.errback(Unreachable(why) if why in _NO_ROUTE else LookupFailed(why))

    asking = Asking(reactor, *where, message, heard=heard, ended=ended)
    return answered


def _texts(answer: dns.message.Message, name: dns.name.Name, rtype: RdataType) -> list[str]:
    rrsets = [one for one in answer.answer if one.name == name and one.rdtype == rtype]
    return [rdata.to_text() for rrset in rrsets for rdata in rrset]


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True)
