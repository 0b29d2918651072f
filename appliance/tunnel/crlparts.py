"""How a revocation list travels: in parts, for it may be longer than a line.

Both ends of a link, and of a watch, say in their first message which number they hold; whoever holds the
higher one gives his list, and gives a new one as soon as he has it. Nobody has to believe anybody: a list is
signed by the CA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from appliance.tunnel.crl import MAX_CRL_NUMBER, MAX_CRL_OCTETS, RevocationList
from appliance.tunnel.lines import MessageError, text, whole

MAX_PART_CHARACTERS = 60_000
"""A line of 64 KiB holds them: base64, and 1,000 line feeds that JSON writes as two."""
MAX_PARTS = -(-MAX_CRL_OCTETS // MAX_PART_CHARACTERS)


@dataclass(frozen=True, slots=True)
class Crl:
    """Either: a part of a revocation list (PEM) with this number; the parts of a list come in order."""

    number: Annotated[int, whole(0, MAX_CRL_NUMBER)]
    part: Annotated[int, whole(1, MAX_PARTS)]
    parts: Annotated[int, whole(1, MAX_PARTS)]
    pem: Annotated[str, text(MAX_PART_CHARACTERS)]


class CrlExchange:
    """What one end knows of the other's list. `theirs` is None until he has said that he keeps one."""

    def __init__(self) -> None:
        self.theirs: int | None = None
        self._held: list[Crl] = []

    def to_give(self, mine: RevocationList) -> tuple[Crl, ...]:
        """The parts to send now: none if his is as new, or he keeps none."""
        if self.theirs is None or mine.number <= self.theirs:
            return ()
        self.theirs = mine.number
        pem = mine.pem.decode("ascii")
        pieces = [pem[at : at + MAX_PART_CHARACTERS] for at in range(0, len(pem), MAX_PART_CHARACTERS)]
        return tuple(
            Crl(mine.number, part, len(pieces), piece) for part, piece in enumerate(pieces, start=1)
        )

    def take(self, part: Crl) -> bytes | None:
        """The whole list with its last part. Raises MessageError for a part out of its order."""
        first = self._held[0] if self._held else part
        due = (first.number, len(self._held) + 1, first.parts)
        if (part.number, part.part, part.parts) != due or part.part > part.parts:
            raise MessageError("crl: a part is out of its order")
        self._held.append(part)
        if part.part < part.parts:
            return None
        held, self._held = self._held, []
        self.theirs = max(part.number, self.theirs or 0)
        try:
            return "".join(one.pem for one in held).encode("ascii")
        except UnicodeEncodeError:
            raise MessageError("crl: it is not PEM") from None
