"""Which sessions of this server take visitors of a host name, and whose turn it is."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from appliance.tunnel.names import is_wildcard, wildcards_over
from appliance.tunnel.session import Offer

S = TypeVar("S", bound=Hashable)


@dataclass(slots=True)
class _Route(Generic[S]):
    """The sessions of one name. A ring is in the order of turns: whoever was picked longest ago is first.

    TLS and HTTP visitors have rings of their own, for a session may take only one kind; with one ring, the
    other kind's turns would skip it unevenly.
    """

    offers: dict[S, Offer] = field(default_factory=dict)
    tls: dict[S, None] = field(default_factory=dict)
    http: dict[S, None] = field(default_factory=dict)


class Routes(Generic[S]):
    """The names that are served here and the sessions of each, S being whatever stands for a session."""

    def __init__(self) -> None:
        self._routes: dict[str, _Route[S]] = {}
        self._names: dict[S, dict[str, None]] = {}

    def add(self, name: str, session: S, offer: Offer) -> bool:
        """Registers a session for a normal name or wildcard, or its new offer; whether it is the first."""
        route = self._routes.get(name)
        first = route is None
        if route is None:
            route = self._routes[name] = _Route()
        route.offers[session] = offer
        for ring, takes in ((route.tls, offer.tls), (route.http, offer.serves_http)):
            if takes:
                ring.setdefault(session)
            else:
                ring.pop(session, None)
        self._names.setdefault(session, {})[name] = None
        return first

    def remove(self, name: str, session: S) -> bool:
        """Takes a session away from a name; whether it was the last."""
        route = self._routes.get(name)
        if route is None or session not in route.offers:
            return False
        del route.offers[session]
        route.tls.pop(session, None)
        route.http.pop(session, None)
        del self._names[session][name]
        if not self._names[session]:
            del self._names[session]
        if not route.offers:
            del self._routes[name]
        return not route.offers

    def remove_session(self, session: S) -> list[str]:
        """Ends a session for all its names; those that have none left, in the order of registration."""
        return [name for name in list(self._names.get(session, ())) if self.remove(name, session)]

    def sessions(self, name: str) -> list[S]:
        """The sessions that serve exactly this name or wildcard."""
        route = self._routes.get(name)
        return [] if route is None else list(route.offers)

    def match(self, host: str) -> str | None:
        """The name or wildcard that serves a normal host name: itself, else the closest wildcard over it.

        A wildcard is not a host: it matches nothing.
        """
        if is_wildcard(host):
            return None
        if host in self._routes:
            return host
        for wildcard in wildcards_over(host):
            if wildcard in self._routes:
                return wildcard
        return None

    def pick(self, host: str, *, http: bool, excluding: Collection[S] = ()) -> S | None:
        """Whose turn a visitor of this host is: round robin, even to within one while sessions stay the same.

        `http`: a visitor on port 80 whose request is to be passed on, else one by TLS. `excluding`: sessions
        that failed him already; they keep their turn.
        """
        name = self.match(host)
        if name is None:
            return None
        route = self._routes[name]
        ring = route.http if http else route.tls
        for session in ring:
            if session not in excluding:
                del ring[session]
                ring[session] = None
                return session
        return None

    def has_other(self, host: str, *, http: bool, excluding: Collection[S]) -> bool:
        """Whether `pick` would find somebody; nobody's turn is used up."""
        name = self.match(host)
        if name is None:
            return False
        route = self._routes[name]
        return any(session not in excluding for session in (route.http if http else route.tls))

    def offers(self, host: str) -> list[Offer]:
        """What the sessions offer that a host's visitors go to; empty for a host that is not served here."""
        name = self.match(host)
        return [] if name is None else list(self._routes[name].offers.values())

    def offer(self, host: str, session: S) -> Offer | None:
        """What this session offers for a host's visitors; None when it takes them no more."""
        name = self.match(host)
        return None if name is None else self._routes[name].offers.get(session)

    def names(self) -> list[str]:
        """All names and wildcards that are served here, in the order of their first registration."""
        return list(self._routes)
