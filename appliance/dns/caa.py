"""Which certification authority may issue for a name: CAA records (RFC 8659), with the account and the
methods that they may be bound to (RFC 8657).

Hidden here: the grammar of a record's value, and that whoever cannot read one must take it for a "no".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

CRITICAL: Final = 0x80
ISSUE: Final = "issue"
ISSUEWILD: Final = "issuewild"
_UNDERSTOOD: Final = frozenset({ISSUE, ISSUEWILD, "iodef", "contactemail", "contactphone"})
"""The properties that a critical flag need not stop: RFC 8659 4, and two of the CA/Browser Forum's."""

_TAG = re.compile("[a-z0-9]{1,15}")  # RFC 8659 4.1: CAs need not take a longer one
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_ISSUER = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_PARAMETER = re.compile(r"([A-Za-z0-9]+)[ \t]*=[ \t]*([\x21-\x3a\x3c-\x7e]*)")
_METHOD = re.compile("[A-Za-z0-9-]+")
_WHITE = " \t"


class BadCaa(ValueError):
    """That is not a CAA record."""


@dataclass(frozen=True, slots=True)
class Caa:
    """One CAA record; `tag` is in lower case."""

    flags: int
    tag: str
    value: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a certificate may be issued, and why not: true or false as such.

    `for_others`: another account at this CA may have it.
    """

    permits: bool
    why: str = ""
    for_others: bool = False

    def __bool__(self) -> bool:
        return self.permits


@dataclass(frozen=True, slots=True)
class _Allowance:
    """What one `issue` or `issuewild` allows; without an issuer it allows nobody."""

    issuer: str
    parameters: tuple[tuple[str, str], ...] = ()

    def of(self, key: str) -> list[str]:
        return [value for name, value in self.parameters if name == key]


def read_caa(rdata: bytes) -> Caa:
    """The record in this data (RFC 8659 4.1). Raises BadCaa."""
    if len(rdata) < 2 or len(rdata) < 2 + rdata[1]:
        raise BadCaa("its tag is cut short")
    tag = rdata[2 : 2 + rdata[1]].decode("latin-1").lower()
    if not _TAG.fullmatch(tag):
        raise BadCaa(f"its tag {tag!r} is not 1 to 15 letters and digits")
    return Caa(rdata[0], tag, rdata[2 + rdata[1] :].decode("latin-1"))


def write_caa(record: Caa) -> bytes:
    """The data of this record."""
    tag = record.tag.encode("ascii")
    return bytes((record.flags, len(tag))) + tag + record.value.encode("latin-1")


def issue_value(issuer: str, methods: Collection[str] = (), account_uri: str | None = None) -> str:
    """The value of an `issue` or `issuewild` that allows one issuer. Raises BadCaa for what none can have."""
    value = issuer
    if account_uri is not None:
        value += f"; accounturi={account_uri}"
    if methods:
        value += f"; validationmethods={','.join(methods)}"
    allowance = _read_allowance(value)
    if not allowance.issuer or (account_uri is not None and allowance.of("accounturi") != [account_uri]):
        raise BadCaa(f"{value!r} is not the value of a CAA record")
    if any(not _METHOD.fullmatch(method) for method in methods):
        raise BadCaa(f"{', '.join(methods)} are not methods of validation")
    return value


def climbed(name: str) -> Iterator[str]:
    """Where a CA looks for the records of a name or wildcard, in this order, until it finds one (RFC 8659 3).

    The first set that is found counts alone. (What a CNAME stands for, a resolver says with it.)
    """
    rest = name.removeprefix("*.").removesuffix(".")
    while rest:
        yield rest
        rest = rest.partition(".")[2]


def caa_permits(
    records: Iterable[Caa], issuers: Collection[str], *, wildcard: bool, account_uri: str | None, method: str
) -> Verdict:
    """Whether `records`, all of the relevant set, let this account at this CA get a certificate.

    `issuers` are the names that the CA goes by (a directory's `caaIdentities`, RFC 8555 7.1.1), `method` that
    of validation (`dns-01`); without an `account_uri` (there is no account yet) no record that names one is
    met.
    """
    records = tuple(records)
    for record in records:
        if record.flags & CRITICAL and record.tag not in _UNDERSTOOD:
            return Verdict(False, f"the CAA record {record.tag!r} is critical, and unknown")
    tags = {record.tag for record in records}
    tag = ISSUEWILD if wildcard and ISSUEWILD in tags else ISSUE
    if tag not in tags:
        return Verdict(True)
    wanted = {issuer.lower().removesuffix(".") for issuer in issuers}
    why: list[str] = []
    for_others = False
    for record in records:
        if record.tag == tag:
            allowance = _read_allowance(record.value)
            problem = _problem(allowance, wanted, method)
            accounts = allowance.of("accounturi")
            if problem is None and accounts and accounts != [account_uri]:  # RFC 8657 3: several: met by none
                problem = f"is not for the account {account_uri or '(there is none yet)'}"
                for_others = True
            if problem is None:
                return Verdict(True)
            why.append(f"{tag} {record.value!r} {problem}")
    return Verdict(False, "CAA: " + "; ".join(why), for_others)


def _problem(allowance: _Allowance, issuers: Collection[str], method: str) -> str | None:
    if not allowance.issuer:
        return "allows nobody"
    if allowance.issuer not in issuers:
        return f"is not for {' or '.join(sorted(issuers)) or 'this CA, which has no name'}"
    for methods in allowance.of("validationmethods"):
        if method not in methods.split(","):
            return f"is not for {method}"
    return None


def _read_allowance(value: str) -> _Allowance:
    """RFC 8659 4.2; a value that is not as the grammar has it is one without an issuer."""
    first, semicolon, rest = value.partition(";")
    issuer = first.strip(_WHITE)
    if issuer and not _ISSUER.fullmatch(issuer):
        return _Allowance("")
    parameters = []
    texts = rest.split(";") if semicolon and rest.strip(_WHITE) else []
    for text in texts:
        found = _PARAMETER.fullmatch(text.strip(_WHITE))
        if found is None:
            return _Allowance("")
        parameters.append((found[1].lower(), found[2]))
    return _Allowance(issuer.lower(), tuple(parameters))
