"""Asks every nameserver all the time, and remembers what no nameserver may ever say.

No answer for a name of the fleet may be empty, and no nameserver's serial may go back. Beside that it knows
what was last said, and when an address was last in an answer: how long a dead one stays is measured by those
who would have been sent there.
"""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import dns.exception
import dns.message
import dns.rcode
import dns.rrset

from tests.end_to_end.namespaces import enter_network
from tests.end_to_end.site import ZONE
from tests.end_to_end.threads import Threads
from tests.lab.bars import measured
from tests.lab.wires import Host

PAUSE_SECONDS = 0.02
ANSWER_SECONDS = 1.0


@dataclass(slots=True)
class Heard:
    """What one nameserver said. Sets are of addresses, by what was asked: `A` and `TXT` of the first name,
    `A many` and `TXT many` of one of the many names, another one each time."""

    asked: int = 0
    answered: int = 0
    unanswered: list[float] = field(default_factory=list)
    empty: list[tuple[float, str]] = field(default_factory=list)
    backwards: list[tuple[float, int, int]] = field(default_factory=list)
    serial: int = 0
    last: dict[str, frozenset[str]] = field(default_factory=dict)
    seen: dict[tuple[str, str], float] = field(default_factory=dict)
    """When an answer to this had this address for the last time."""
    changes: list[tuple[float, str, frozenset[str]]] = field(default_factory=list)


class Inquirer(Threads):
    """Asks from `host`, from `with` to its end, every nameserver (name to address) for these names."""

    def __init__(
        self,
        host: Host,
        nameservers: dict[str, str],
        name: str,
        many: Sequence[str] = (),
        *,
        pause: float = PAUSE_SECONDS,
    ) -> None:
        self.heard: dict[str, Heard] = {nameserver: Heard() for nameserver in nameservers}
        self._host = host
        self._name = name
        self._many = many
        self._pause = pause
        super().__init__(
            threading.Thread(target=self._ask, args=(self.heard[nameserver], address))
            for nameserver, address in nameservers.items()
        )

    # What was heard

    def says(self, address: str | None = None) -> list[frozenset[str]]:
        """The latest set of each nameserver and each question."""
        return [found for heard in self.heard.values() for found in heard.last.values()]

    def is_out(self, address: str) -> bool:
        """Whether the latest answers are all without it."""
        return all(address not in found for found in self.says())

    def is_in(self, address: str) -> bool:
        """Whether the latest answers all have it."""
        return all(address in found for found in self.says())

    def last_seen(self, address: str) -> float:
        """When it was in an answer of any nameserver for the last time (monotonic)."""
        times = [
            when
            for heard in self.heard.values()
            for (_, found), when in list(heard.seen.items())
            if found == address
        ]
        return max(times, default=0.0)

    def without(self, addresses: set[str], since: float, question: str = "TXT") -> list[tuple[float, str]]:
        """When since then an answer to the question was without one of these, and what it was."""
        return [
            (when, f"{nameserver} {question} {sorted(found)}")
            for nameserver, heard in self.heard.items()
            for when, what, found in list(heard.changes)
            if what == question and when >= since and not addresses <= found
        ]

    @property
    def asked(self) -> int:
        return sum(heard.asked for heard in self.heard.values())

    @property
    def empty(self) -> int:
        return sum(len(heard.empty) for heard in self.heard.values())

    @property
    def backwards(self) -> int:
        return sum(len(heard.backwards) for heard in self.heard.values())

    def unanswered(self, since: float) -> int:
        """How many questions since then got no answer."""
        return sum(1 for heard in self.heard.values() for when in list(heard.unanswered) if when >= since)

    # Asking

    def _ask(self, heard: Heard, address: str) -> None:
        enter_network(self._host.pid)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((address, 53))
            sock.settimeout(ANSWER_SECONDS)
            for _ in itertools.count():
                for question in ("A", "TXT", "SOA", "A many", "TXT many"):
                    if question.endswith("many") and not self._many:
                        continue
                    self._one(sock, heard, question)
                if self.over.wait(self._pause):
                    return

    def _one(self, sock: socket.socket, heard: Heard, question: str) -> None:
        rtype = question.split()[0]
        name = ZONE if rtype == "SOA" else random.choice(self._many) if " " in question else self._name
        query = dns.message.make_query(name, rtype)
        heard.asked += 1
        began = time.monotonic()
        answer = _answer(sock, query)
        if answer is None:
            heard.unanswered.append(began)
            if began + ANSWER_SECONDS > time.monotonic():
                self.over.wait(PAUSE_SECONDS)  # refused at once
            return
        heard.answered += 1
        now = time.monotonic()
        if rtype == "SOA":
            self._serial(heard, answer, now)
        else:
            self._set(heard, answer, question, now)

    def _serial(self, heard: Heard, answer: dns.message.Message, when: float) -> None:
        if not answer.answer:
            self._empty(heard, answer, "SOA", when)
            return
        serial: int = answer.answer[0][0].serial
        if serial < heard.serial:
            heard.backwards.append((when, heard.serial, serial))
            measured("went_back", f"from {heard.serial} to {serial} at {when:.2f}")
        heard.serial = serial

    def _set(self, heard: Heard, answer: dns.message.Message, question: str, when: float) -> None:
        found = frozenset(_addresses(answer.answer))
        if not found:
            self._empty(heard, answer, question, when)
            return
        if found != heard.last.get(question):
            heard.last[question] = found
            heard.changes.append((when, question, found))
        for address in found:
            heard.seen[question, address] = when

    def _empty(self, heard: Heard, answer: dns.message.Message, question: str, when: float) -> None:
        """A server failure or a refusal says nothing of the name, and a resolver asks the next nameserver; no
        data and no such name are believed, and remembered."""
        rcode = answer.rcode()
        if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            heard.unanswered.append(when)
            return
        heard.empty.append((when, question))
        what = f"{question} {answer.question[0].name} {dns.rcode.to_text(rcode)}"
        measured("empty_answer", f"{what} at {when:.2f}")


def _answer(sock: socket.socket, query: dns.message.Message) -> dns.message.Message | None:
    try:
        sock.send(query.to_wire())
        while True:
            answer = dns.message.from_wire(sock.recv(4096))
            if answer.id == query.id:
                return answer
    except (OSError, dns.exception.DNSException):
        return None


def _addresses(rrsets: Sequence[dns.rrset.RRset]) -> list[str]:
    texts = [rdata.to_text().strip('"') for rrset in rrsets for rdata in rrset]
    return [text.split(";")[1].removeprefix("ip=") if "=" in text else text for text in texts]
