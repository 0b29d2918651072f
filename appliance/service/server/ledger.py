"""What becomes of each visitor: counted, told to the gate that let him in, and written to the access log.

Costs a visitor a few microseconds, once when he is joined and once when he has gone, and while he is inside
the few values that his line will need.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from appliance.ingress.accessline import AccessLine
from appliance.ingress.accounts import ENDED, Account, Accounts
from appliance.ingress.limits import Over
from appliance.service.relay import Ended
from appliance.service.server.gate import Gate
from appliance.service.server.visit import Visit

_ERRORS = {
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ETIMEDOUT: "timed_out",
    errno.ECONNABORTED: "cut",  # by us: revoked, drained, or its client is gone
}

Say = Callable[[AccessLine], None]


class Ledger:
    """Every visitor is in it from ``came`` to the end of his connection."""

    def __init__(
        self, clock: Any, wall: Callable[[], float], gate: Gate, *, name_open: int = 0, say: Say | None = None
    ) -> None:
        """``say`` gets the line of each visitor who has gone; ``name_open`` is how many a name may have."""
        self.accounts = Accounts()
        self._clock = clock
        self._wall = wall
        self._gate = gate
        self._name_open = name_open or 1 << 62
        self._say = say
        self._of_name: dict[str, int] = {}

    def came(self, visit: Visit, name: str) -> Over | None:
        """A visitor of this name (or wildcard; "" for none that is known). Not None: he has to be refused."""
        visit.came = self._clock.seconds()
        visit.name = name
        here = self._of_name.get(name, 0)
        self._of_name[name] = here + 1
        if not name or here < self._name_open:
            return None
        self._gate.tell(Over.NAME_OPEN, name)
        return Over.NAME_OPEN

    def refused(self, visit: Visit, why: str) -> None:
        """He was not joined, and is let go."""
        self.accounts.of(visit.name, "").refused(why)
        self._left(visit.name, visit.source[0])
        if self._say is not None:
            seconds = self._clock.seconds() - visit.came
            line = (self._wall(), visit.host, visit.source, "", 0, 0, seconds, why, visit.unique_id)
            self._say(AccessLine(*line))

    def unclear(self, why: str) -> None:
        """Somebody was refused of whom it never became clear what he wants."""
        self.accounts.of("", "").refused(why)

    def joined(self, visit: Visit, client: str) -> Callable[[Ended], None]:
        """He is joined; to be called with his end."""
        account = self.accounts.of(visit.name, client)
        account.joined += 1
        return _Inside(self, account, visit, client).ended

    def status(self) -> list[dict[str, Any]]:
        """Plain values for the operator, one a name and client."""
        return [
            {
                "name": name,
                "client": client,
                "open": account.open,
                "joined": account.joined,
                "octets_in": account.octets_in,
                "octets_out": account.octets_out,
                "seconds": round(account.seconds, 3),
                "durations": list(account.durations),
                "ends": dict(account.ends),
            }
            for name, client, account in self.accounts
        ]

    def _left(self, name: str, address: str) -> None:
        self._gate.went(address)
        left = self._of_name[name] - 1
        if left:
            self._of_name[name] = left
        else:
            del self._of_name[name]


class _Inside:
    """A joined visitor: what is needed when he has gone, and nothing else of him."""

    __slots__ = (
        "_account",
        "_ahead",
        "_came",
        "_client",
        "_host",
        "_ledger",
        "_name",
        "_source",
        "_unique_id",
    )

    def __init__(self, ledger: Ledger, account: Account, visit: Visit, client: str) -> None:
        self._ledger = ledger
        self._account = account
        self._client = client
        self._host = visit.host
        self._name = visit.name
        self._source = visit.source
        self._unique_id = visit.unique_id
        self._came = visit.came
        self._ahead = len(visit.ahead) - len(visit.unsent)  # sent before the relay began to count

    def ended(self, ended: Ended) -> None:
        ledger = self._ledger
        seconds = ledger._clock.seconds() - self._came
        octets_in = ended.octets_from_a + self._ahead
        octets_out = ended.octets_from_b
        how = ENDED if ended.error is None else _ERRORS.get(ended.error.errno or 0, "failed")
        self._account.went(octets_in, octets_out, seconds, how)
        ledger._left(self._name, self._source[0])
        if ledger._say is not None:
            what = (octets_in, octets_out, seconds, how, self._unique_id)
            ledger._say(AccessLine(ledger._wall(), self._host, self._source, self._client, *what))
