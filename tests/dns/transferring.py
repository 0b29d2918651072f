"""Who asks for transfers in tests: dnspython, which signs, checks signatures, and applies what it gets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import dns.message
import dns.name
import dns.rdatatype
import dns.rrset
import dns.tsig
import dns.xfr
import dns.zone

from appliance.dns import names
from appliance.dns.tsig import Key
from appliance.dns.zone import Zone

SECRET = bytes(range(32))
KEY = Key(names.from_text("transfer"), names.from_text("hmac-sha256"), SECRET)
THEIRS = dns.tsig.Key("transfer", SECRET, "hmac-sha256")

Records = set[tuple[bytes, int, int, bytes]]


def records_of(zone: Zone) -> Records:
    """Every record of a zone, its SOA too; data in lower case, as compression may change it."""
    return {
        (rrset.name, rrset.rtype, rrset.ttl, rdata.lower())
        for node in zone.rrsets.values()
        for rrset in node.values()
        for rdata in rrset.rdatas
    }


class Asker:
    """A secondary of dnspython's for one zone; empty at first."""

    def __init__(self, apex: str = "example.test", key: dns.tsig.Key | None = THEIRS) -> None:
        self.apex = apex
        self.zone = dns.zone.Zone(dns.name.from_text(apex), relativize=False)
        self._key = key
        self.messages: list[dns.message.Message] = []

    @property
    def serial(self) -> int:
        return int(self.zone.get_soa().serial)

    @property
    def records(self) -> Records:
        return {
            ((name.to_wire() or b"").lower(), int(rdata.rdtype), ttl, (rdata.to_wire() or b"").lower())
            for name, ttl, rdata in self.zone.iterate_rdatas()
        }

    def question(self, serial: int | None = None, *, edns: int = -1, rtype: str = "") -> bytes:
        """The query for an AXFR, or for an IXFR from `serial`; or another one, signed the same way."""
        kind = rtype or ("AXFR" if serial is None else "IXFR")
        query = dns.message.make_query(self.apex, kind, use_edns=edns)
        if serial is not None:
            soa = f". . {serial} 0 0 0 0"
            query.authority.append(dns.rrset.from_text(f"{self.apex}.", 0, "IN", "SOA", soa))
        if self._key is not None:
            query.use_tsig(self._key)
        self._query, self._serial = query, serial
        return query.to_wire()

    def take(self, answers: Iterable[bytes], *, is_udp: bool = False) -> bool:
        """Apply the whole answer to the last question; whether it was whole. Raises what dnspython raises."""
        kind = dns.rdatatype.AXFR if self._serial is None else dns.rdatatype.IXFR
        context = None
        self.messages = []
        with dns.xfr.Inbound(self.zone, kind, self._serial, is_udp) as inbound:
            is_done = False
            for octets in answers:
                assert not is_done, "a message after the end"
                message = self.read(octets, context)
                context = message.tsig_ctx
                self.messages.append(message)
                is_done = inbound.process_message(message)
                assert not is_done or message.had_tsig
            return is_done

    def read(self, octets: bytes, context: Any = None) -> dns.message.Message:
        """One answer, its signature checked."""
        keyring = None if self._key is None else {self._key.name: self._key}
        return dns.message.from_wire(
            octets, keyring=keyring, request_mac=self._query.mac, multi=True, tsig_ctx=context, xfr=True
        )
