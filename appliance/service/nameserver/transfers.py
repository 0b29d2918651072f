"""Transfers under way: whose turn it is to send the next message of his copy of a zone.

Hides how many are made at once, and that all of them together make one message in a turn of the reactor, so
that queries go on being answered. What is in the messages is dns/transfer's, how they are sent is tcp's.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from appliance.dns import names
from appliance.dns.numbers import SERVFAIL
from appliance.dns.transfer import Kind, Transfer, TransferAsked
from appliance.service.nameserver.statics import Statics
from appliance.service.nameserver.zonefiles import Zonefiles

MAX_AT_ONCE = 10
"""Transfers that have begun, BIND's transfers-out: each holds its version of a zone in memory. The others
wait, each on a TCP connection, of which there are not many; one whose receiver does not read ends with its
connection.
"""


class Sending(Protocol):
    """The connection that a transfer goes to."""

    def send(self, message: bytes) -> None:
        """Send this message; the next one comes in a later turn, unless `pause` was called."""

    def sent_all(self) -> None:
        """That was the last message."""

    def cut(self) -> None:
        """There will be no further message, and it was not whole: end the connection."""


class Transfers:
    """Makes the transfers of the zones in service. `counters` count by kind, and what went wrong."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        zonefiles: Zonefiles,
        *,
        statics: Statics | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Without `statics` no key may be a peer's."""
        self.counters: Counter[str] = Counter()
        self._reactor = reactor
        self._zonefiles = zonefiles
        self._statics = statics
        self._wall = wall
        self._waiting: deque[Outgoing] = deque()
        self._begun: set[Outgoing] = set()
        self._ready: deque[Outgoing] = deque()
        self._turn_due: IDelayedCall | None = None

    @property
    def under_way(self) -> int:
        """How many have begun and are not at their end."""
        return len(self._begun)

    def datagram(self, asked: TransferAsked) -> bytes:
        """The answer to an IXFR over UDP."""
        wall = int(self._wall())
        self.counters["IXFR over UDP"] += 1
        try:
            transfer = self._transfer(asked)
            if transfer is not None:
                return transfer.datagram(wall)
        except Exception:  # a mistake of ours must cost one answer
            self._failed(asked)
        return asked.refusal(SERVFAIL, wall)

    def begin(self, asked: TransferAsked, sending: Sending) -> Outgoing:
        """Send what was asked for, from the next turn on, or once there is a place."""
        outgoing = Outgoing(self, asked, sending)
        if len(self._begun) < MAX_AT_ONCE:
            self._begin(outgoing)
        else:
            self.counters["had to wait"] += 1
            self._waiting.append(outgoing)
        return outgoing

    def _begin(self, outgoing: Outgoing) -> None:
        self._begun.add(outgoing)
        self.make_ready(outgoing)

    def make_ready(self, outgoing: Outgoing) -> None:
        """It may send again."""
        if outgoing in self._begun and outgoing not in self._ready:
            self._ready.append(outgoing)
        if self._ready and self._turn_due is None:
            self._turn_due = self._reactor.callLater(0, self._turn)

    def make_unready(self, outgoing: Outgoing) -> None:
        """Its receiver does not read."""
        if outgoing in self._ready:
            self._ready.remove(outgoing)
        self._stop_turns_without_work()

    def ended(self, outgoing: Outgoing) -> None:
        """It is no longer under way; whoever waits has its place."""
        if outgoing in self._waiting:
            self._waiting.remove(outgoing)
        self._begun.discard(outgoing)
        self.make_unready(outgoing)
        while self._waiting and len(self._begun) < MAX_AT_ONCE:
            self._begin(self._waiting.popleft())

    def _stop_turns_without_work(self) -> None:
        if not self._ready and self._turn_due is not None:
            self._turn_due.cancel()
            self._turn_due = None

    def _turn(self) -> None:
        """One message of one transfer, some 2 ms; then whatever else the reactor has to do."""
        self._turn_due = None
        outgoing = self._ready.popleft()
        try:
            is_last = self._step(outgoing)
        except Exception:  # a mistake of ours must cost one transfer
            self._failed(outgoing.asked)
            self.ended(outgoing)
            outgoing.sending.cut()
            return
        if not is_last and not outgoing.is_paused:
            self._ready.append(outgoing)
        if self._ready and self._turn_due is None:
            self._turn_due = self._reactor.callLater(0, self._turn)

    def _step(self, outgoing: Outgoing) -> bool:
        """Send the next message; whether that was the last."""
        wall = int(self._wall())
        if outgoing.transfer is None:
            # Only now is the version taken that is sent: who waited gets the newest.
            outgoing.transfer = self._transfer(outgoing.asked)
            if outgoing.transfer is None:
                outgoing.sending.send(outgoing.asked.refusal(SERVFAIL, wall))
                self._finish(outgoing)
                return True
        message = outgoing.transfer.next_message(wall)
        if message is None:
            self.counters[outgoing.transfer.kind.value] += 1
            self._tell(outgoing.transfer)
            self._finish(outgoing)
            return True
        outgoing.sending.send(message)
        return False

    def _finish(self, outgoing: Outgoing) -> None:
        self.ended(outgoing)
        outgoing.sending.sent_all()

    def _failed(self, asked: TransferAsked) -> None:
        self.counters["failed"] += 1
        self._log.failure("a transfer of {apex} failed", apex=names.to_text(asked.apex))

    def _tell(self, transfer: Transfer) -> None:
        """A line for each copy of a whole zone; with live records there are too many small ones."""
        tell = self._log.info if transfer.kind in (Kind.WHOLE, Kind.WHOLE_INSTEAD) else self._log.debug
        tell(
            "{kind} of {apex} {serial} to {source} with key {key}: {records} records, {messages} messages",
            kind=transfer.kind.value,
            apex=names.to_text(transfer.asked.apex),
            serial=transfer.serial,
            source=transfer.asked.source,
            key=names.to_text(transfer.asked.signed.key.name),
            records=transfer.records,
            messages=transfer.messages,
        )

    def _transfer(self, asked: TransferAsked) -> Transfer | None:
        """The transfer of the version that is served now; None where the zone is not served any more."""
        versions = self._statics if asked.is_peer else self._zonefiles
        zone = None if versions is None else versions.zones.get(asked.apex)
        if zone is None or versions is None:
            return None
        return Transfer(asked, zone, versions.journal(asked.apex))


class Outgoing:
    """A transfer to one connection."""

    def __init__(self, transfers: Transfers, asked: TransferAsked, sending: Sending) -> None:
        self.asked = asked
        self.sending = sending
        self.transfer: Transfer | None = None
        self.is_paused = False
        self._transfers = transfers

    def pause(self) -> None:
        """The receiver does not read: send nothing until `resume`."""
        self.is_paused = True
        self._transfers.make_unready(self)

    def resume(self) -> None:
        self.is_paused = False
        self._transfers.make_ready(self)

    def cancel(self) -> None:
        """The connection is gone."""
        self._transfers.counters["cut"] += 1
        self._transfers.ended(self)
