"""On what terms an answer goes out: what it carries beside the records, and whether it may go at all.

Hidden here: what cookies, rate limiting, NSID and extended errors have to do with each other. Who is proven
to be where he says, by TCP or by a cookie, is not limited. Who sent a cookie and is held back is told
BADCOOKIE and given the right one (as BIND does): he comes back with it at once, where TC would cost him a
connection.
"""

from __future__ import annotations

from typing import NamedTuple

from appliance.dns.answer import defer, option, refuse
from appliance.dns.cookies import Cookies, is_cookie
from appliance.dns.numbers import BADCOOKIE, EXTENDED_ERROR, NSID
from appliance.dns.question import Edns
from appliance.dns.ratelimit import Limited, RateLimit


class Terms(NamedTuple):
    """The terms of one answer."""

    proven: bool
    has_cookie: bool = False
    options: bytes = b""  # for the OPT record
    explains: bool = False


class MalformedCookie(Exception):
    """The COOKIE option has a size that no cookie has (RFC 7873 5.2.2)."""


class Gate:
    """None of these is there unless it is given; `explain`: say why an answer is an error (RFC 8914)."""

    def __init__(
        self,
        *,
        cookies: Cookies | None = None,
        rate_limit: RateLimit | None = None,
        nsid: bytes = b"",
        explain: bool = False,
    ) -> None:
        self.cookies = cookies
        self.rate_limit = rate_limit
        self._nsid = option(NSID, nsid) if nsid else b""
        self._explain = explain

    def terms(self, edns: Edns | None, *, udp: bool, source: str, wall: float) -> Terms:
        """The terms for who sent `edns`. Raises MalformedCookie."""
        if edns is None:
            return Terms(proven=not udp)
        proven, options = not udp, b""
        has_cookie = edns.cookie is not None and self.cookies is not None
        if edns.cookie is not None and self.cookies is not None:
            if not is_cookie(edns.cookie):
                raise MalformedCookie
            verdict = self.cookies.verdict(source, edns.cookie, wall)
            proven = proven or verdict.valid
            options = verdict.option
        if edns.nsid:
            options += self._nsid
        return Terms(proven, has_cookie, options, self._explain)

    def limited(self, terms: Terms, source: str, identity: bytes, now: float) -> Limited | None:
        """What must become of the answer `identity`; None: it may go out."""
        if terms.proven or self.rate_limit is None:
            return None
        return self.rate_limit.limited(source, identity, now)


def slip(query: bytes, end: int, edns: Edns | None, terms: Terms) -> bytes:
    """What an answer that is held back says in its place."""
    if terms.has_cookie:
        return refuse(query, BADCOOKIE, end, edns, terms.options)
    return defer(query, end, edns, terms.options)


def explained(terms: Terms, code: int) -> bytes:
    """The options of an answer that is an error, with its reason (RFC 8914 2)."""
    if not terms.explains:
        return terms.options
    return terms.options + option(EXTENDED_ERROR, code.to_bytes(2, "big"))
