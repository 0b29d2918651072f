"""The challenges of ACME (dns-01) of this client: said over every link, and seen at every nameserver.

A link carries a challenge to its server, the server's watches to the nameservers. Whether they publish it is
asked of the nameservers themselves, from here, as the CA will ask them: no word of a server stands in for
that, and a nameserver that no server of ours speaks to (a secondary) counts as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.dns.caa import Caa
from appliance.service.client.resolver import LookupFailed, Nameserver, Unreachable
from appliance.tunnel.challenge import LIFE_SECONDS, owner_of
from appliance.tunnel.names import normal

LIMIT_SECONDS = 180.0
"""A nameserver that restarts has the records again within seconds; one that is down for longer is for the
next attempt, as no order waits for ever."""
LOOK_SECONDS = 1.0
"""Between two looks at a nameserver that does not have it: as often as it publishes."""
LOOK_UP_AGAIN_SECONDS = 30.0
"""After so long who the nameservers are is asked anew: one that is down may have been taken out."""
SAY_AGAIN_SECONDS = 60.0
"""While one waits its life begins anew: the CA is to have most of it."""
WORD_SECONDS = 5.0
"""Who waits for longer than a few looks says so in the log."""


class ChallengeNotPublished(Exception):
    """Not every nameserver answers with the challenge"""


class Speaker(Protocol):
    """A link over which a challenge is said; it does nothing while it is not up."""

    def challenge(self, name: str, value: str, seconds: int, signature: str) -> None: ...

    def challenge_over(self, name: str, value: str) -> None: ...


class Asked(Protocol):
    """The DNS, as `authoritative` asks it."""

    async def nameservers(self, name: str) -> dict[str, tuple[str, ...]]: ...

    async def texts(self, address: str, owner: str) -> tuple[str, ...]: ...

    async def caa(self, name: str) -> tuple[Caa, ...]: ...


@dataclass(slots=True)
class _Wanted:
    """One challenge: until when it lives, and which servers do not pass it on, and why."""

    until: float
    said_at: float
    denied: dict[str, str] = field(default_factory=dict)


class Challenges:
    """What is to be published for this client's names until it is withdrawn.

    `links()` are all links; `joined()` the ids of the servers that are joined now; `resolvers()` those to ask
    where a zone's nameservers are; `sign(name, value)` signs as the client.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        links: Callable[[], Iterable[Speaker]],
        joined: Callable[[], Iterable[str]],
        resolvers: Callable[[], Sequence[Nameserver]],
        sign: Callable[[str, str], str],
        asked: Asked | None = None,
    ) -> None:
        self._reactor = reactor
        self._links = links
        self._joined = joined
        self._resolvers = resolvers
        self._sign = sign
        self._asked = asked
        self._wanted: dict[tuple[str, str], _Wanted] = {}
        self._waiting: set[Deferred[None]] = set()

    def publish(self, name: str, value: str) -> Deferred[None]:
        """Have the TXT record `_acme-challenge.NAME` say `value`, besides what others say there.

        `name` is that of the certificate: `*.example.org` is challenged at `_acme-challenge.example.org`.
        Fires when every nameserver of the zone has been seen to answer so. Fails with ChallengeNotPublished,
        whose text says which nameserver does not and why, after LIMIT_SECONDS; a failed one is withdrawn.
        Cancelled, it is withdrawn as well. Published again, it lives on.
        """
        name = normal(name)
        now = self._reactor.seconds()
        self._wanted[name, value] = _Wanted(now + LIFE_SECONDS, now)
        self._say(name, value)
        waiting: Deferred[None] = Deferred.fromCoroutine(self._until_published(name, value))
        self._waiting.add(waiting)

        def done(result: object) -> object:
            self._waiting.discard(waiting)
            if isinstance(result, Failure):
                self.withdraw(name, value)
            return result

        return waiting.addBoth(done)

    def withdraw(self, name: str, value: str) -> None:
        """Have it published no longer; nothing, where it is not."""
        name = normal(name)
        if self._wanted.pop((name, value), None) is not None:
            for link in self._links():
                link.challenge_over(name, value)

    def caa(self, name: str) -> Deferred[tuple[Caa, ...]]:
        """The CAA records that count for a name, for `caa_permits`. Fails with LookupFailed."""
        return Deferred.fromCoroutine(self._dns().caa(name))

    def stop(self) -> None:
        """Wait for nothing any more; links that are up say that all is over."""
        for waiting in list(self._waiting):
            waiting.addErrback(lambda failure: failure.trap(CancelledError))
            waiting.cancel()
        for name, value in list(self._wanted):
            self.withdraw(name, value)

    # What links tell

    def welcomed(self, link: Speaker) -> None:
        """A server is joined: it is told of what lives."""
        now = self._reactor.seconds()
        for (name, value), wanted in list(self._wanted.items()):
            if wanted.until - now >= 1:
                link.challenge(name, value, int(wanted.until - now), self._sign(name, value))
            else:
                del self._wanted[name, value]

    def denied(self, server_id: str, name: str, value: str, text: str) -> None:
        """A server does not pass it on."""
        wanted = self._wanted.get((name, value))
        if wanted is not None:
            wanted.denied[server_id] = text

    # The wait

    def _say(self, name: str, value: str) -> None:
        signature = self._sign(name, value)
        for link in self._links():
            link.challenge(name, value, LIFE_SECONDS, signature)

    async def _until_published(self, name: str, value: str) -> None:
        began = self._reactor.seconds()
        missing: dict[str, tuple[str, ...]] | None = None
        looked_up_at, seen, word = began, set[str](), ""
        while True:
            try:
                if missing is None or self._reactor.seconds() - looked_up_at >= LOOK_UP_AGAIN_SECONDS:
                    found = await self._dns().nameservers(name.removeprefix("*."))
                    looked_up_at = self._reactor.seconds()
                    missing = {ns: addresses for ns, addresses in found.items() if ns not in seen}
                why = await self._without(missing, owner_of(name), value)
            except LookupFailed as error:
                missing, why = None, {"the DNS": str(error)}
            if missing is not None:
                seen.update(missing.keys() - why.keys())
                missing = {ns: addresses for ns, addresses in missing.items() if ns in why}
            if not why:
                self._log.info("the challenge of {name} is at every nameserver", name=name)
                return
            waited = self._reactor.seconds() - began
            text = "; ".join(f"{ns}: {reason}" for ns, reason in sorted(why.items()))
            text += self._servers_in_the_way(name, value)
            if waited >= LIMIT_SECONDS or self._is_denied_by_all(name, value):
                raise ChallengeNotPublished(f"the challenge of {name} is not published: {text}")
            if waited >= WORD_SECONDS and text != word:
                word = text
                self._log.warn("the challenge of {name} waits: {text}", name=name, text=text)
            await deferLater(self._reactor, LOOK_SECONDS)
            self._live_on(name, value)

    def _live_on(self, name: str, value: str) -> None:
        now = self._reactor.seconds()
        wanted = self._wanted.get((name, value))
        if wanted is not None and now - wanted.said_at >= SAY_AGAIN_SECONDS:
            wanted.said_at, wanted.until = now, now + LIFE_SECONDS
            self._say(name, value)

    def _servers_in_the_way(self, name: str, value: str) -> str:
        """What may be why, at our end."""
        if not list(self._joined()):
            return "; no server is joined"
        wanted = self._wanted.get((name, value))
        return "".join(f"; server {one}: {text}" for one, text in (wanted.denied if wanted else {}).items())

    def _is_denied_by_all(self, name: str, value: str) -> bool:
        wanted, joined = self._wanted.get((name, value)), set(self._joined())
        return wanted is not None and bool(joined) and joined <= wanted.denied.keys()

    async def _without(
        self, nameservers: Mapping[str, tuple[str, ...]], owner: str, value: str
    ) -> dict[str, str]:
        """Which of these nameservers do not answer with `value` now, and why."""
        looks = [
            Deferred.fromCoroutine(self._why_not(addresses, owner, value))
            for addresses in nameservers.values()
        ]
        try:
            reasons = await gatherResults(looks, consumeErrors=True)
        except FirstError as first:
            problem = first.subFailure.value  # cancelled, or a mistake of ours
            assert problem is not None
            raise problem from None
        return {ns: why for ns, why in zip(nameservers, reasons, strict=True) if why}

    async def _why_not(self, addresses: Sequence[str], owner: str, value: str) -> str:
        """Why not every address of a nameserver answers so; those that this machine has no way to (it may
        have no IPv6) do not count beside one that does.
        """
        has_it = False
        unreachable = "it has no address"
        for address in addresses:
            try:
                texts = await self._dns().texts(address, owner)
            except Unreachable as error:
                unreachable = f"{address}: {error}"
                continue
            except LookupFailed as error:
                return f"{address}: {error}"
            if value not in texts:
                has = "other values" if texts else "nothing"
                return f"{address} has {has} at {owner}"
            has_it = True
        return "" if has_it else unreachable

    def _dns(self) -> Asked:
        if self._asked is None:
            # dnspython is 5 MiB that only those pay who need it.
            from appliance.service.client.authoritative import Authoritative

            self._asked = Authoritative(self._reactor, self._resolvers)
        return self._asked

