"""The checks of RFC 8906 section 8 with the very commands that it gives: what a nameserver must answer, and
how. Each is asked over UDP, and over TCP too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from tests.end_to_end.test_dns_tools import Nameserver

SOA = ("soa", "demo.test")


@dataclass(frozen=True)
class Check:
    """A check: what dig is told, and what must come back.

    `flags` are those of the header, all of them; `edns` is None where no OPT may come, else the flags in it.
    `answer` and `authority` are the types in these sections.
    """

    command: tuple[str, ...]
    status: str = "NOERROR"
    flags: str = "qr aa"
    edns: str | None = None
    answer: tuple[str, ...] = ("SOA",)
    authority: tuple[str, ...] = ()
    opcode: str = "QUERY"


PLAIN = ("+noedns", "+noad", "+norec")
EDNS = ("+noad", "+norec", "+nocookie", "+edns=0")
EDNS_1 = ("+noad", "+norec", "+nocookie", "+edns=1", "+noednsneg")
BADVERS = "BADVERS"

CHECKS: Mapping[str, Check] = {
    "8.1.1 is the server configured for the zone": Check((*PLAIN, *SOA)),
    "8.1.2 unknown type": Check((*PLAIN, "type1000", "demo.test"), answer=(), authority=("SOA",)),
    "8.1.3.1 CD=1": Check((*PLAIN, "+cd", *SOA)),
    "8.1.3.2 AD=1": Check(("+noedns", "+norec", "+ad", *SOA)),
    "8.1.3.3 reserved bit": Check((*PLAIN, "+zflag", *SOA)),
    "8.1.3.4 recursive query": Check(("+noedns", "+noad", "+rec", *SOA), flags="qr aa rd"),
    "8.1.4 unknown opcode": Check(
        ("+noedns", "+noad", "+opcode=15", "+norec", "+header-only"),
        status="NOTIMP",
        flags="qr",
        answer=(),
        opcode="RESERVED15",
    ),
    "8.2.1 EDNS version 0": Check((*EDNS, *SOA), edns=""),
    "8.2.2 EDNS version 1": Check((*EDNS_1, *SOA), BADVERS, "qr", "", ()),
    "8.2.3 unknown option": Check((*EDNS, "+ednsopt=100", *SOA), edns=""),
    "8.2.4 unknown flag": Check((*EDNS, "+ednsflags=0x40", *SOA), edns=""),
    "8.2.5 EDNS version 1 with an unknown flag": Check(
        (*EDNS_1, "+ednsflags=0x40", *SOA), BADVERS, "qr", "", ()
    ),
    "8.2.6 EDNS version 1 with an unknown option": Check(
        (*EDNS_1, "+ednsopt=100", *SOA), BADVERS, "qr", "", ()
    ),
    "8.2.7 DO=1 and truncation": Check(
        ("+norec", "+noad", "+dnssec", "+nocookie", "+bufsize=512", "+ignore", "txt", "large.demo.test"),
        flags="qr aa tc",
        edns="do",
        answer=(),
    ),
    "8.2.8 DO=1": Check((*EDNS, "+dnssec", *SOA), edns="do"),
    "8.2.9 EDNS version 1 with DO=1": Check((*EDNS_1, "+dnssec", *SOA), BADVERS, "qr", "do", ()),
    "8.2.10 several options": Check(
        ("+edns=0", "+noad", "+norec", "+cookie", "+nsid", "+expire", "+subnet=0.0.0.0/0", *SOA), edns=""
    ),
    # Not the RFC's: the same of what is not there, and of what is not ours.
    "NXDOMAIN with EDNS": Check(
        (*EDNS, "a", "nosuch.demo.test"), "NXDOMAIN", edns="", answer=(), authority=("SOA",)
    ),
    "NXDOMAIN of an unknown type": Check(
        (*PLAIN, "type1000", "nosuch.demo.test"), "NXDOMAIN", answer=(), authority=("SOA",)
    ),
    "not our zone": Check((*EDNS, "soa", "elsewhere.test"), "REFUSED", "qr", "", ()),
}


@dataclass(frozen=True)
class Said:
    """What dig prints of an answer."""

    text: str

    def _one(self, pattern: str) -> str | None:
        found = re.findall(pattern, self.text, re.MULTILINE)
        assert len(found) <= 1, self.text
        return found[0] if found else None

    @property
    def as_check(self) -> tuple[str | None, ...]:
        return (
            self._one(r"status: (\w+)"),
            self._one(r"^;; flags: ([a-z ]*);"),
            self._one(r"^; EDNS: version: 0, flags: ?([^;]*);"),
            self._one(r"opcode: (\w+)"),
        )

    def types(self, section: str) -> tuple[str, ...]:
        lines = self.text.partition(f";; {section} SECTION:\n")[2].partition("\n\n")[0].splitlines()
        return tuple(line.split()[3] for line in lines)


@pytest.fixture(scope="module")
def nameserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nameserver]:
    nameserver = Nameserver(tmp_path_factory.mktemp("rfc8906"))
    yield nameserver
    nameserver.process.kill()


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
@pytest.mark.parametrize("name", CHECKS)
def test_rfc_8906(nameserver: Nameserver, name: str, transport: str) -> None:
    check = CHECKS[name]
    flags, answer = check.flags, check.answer
    if transport == "+tcp" and "tc" in flags:  # nothing is cut there
        flags, answer = "qr aa", ("TXT",)
    said = Said(nameserver.ask("+tries=1", "+time=5", transport, *check.command))
    assert said.as_check == (check.status, flags, check.edns, check.opcode), said.text
    assert said.types("ANSWER") == answer, said.text
    assert said.types("AUTHORITY") == check.authority, said.text
    text = said.text.replace(";; WARNING: recursion requested but not available", "")  # as it should be
    for wrong in ("MBZ", "OPT=100", "WARNING", "malformed", "timed out"):
        assert wrong not in text, text
