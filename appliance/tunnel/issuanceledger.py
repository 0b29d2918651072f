"""What has to outlive the process about a name's orders, as the octets of one file and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

LONGEST_PAUSE_SECONDS = 7 * 86400.0
"""Let's Encrypt counts nothing for longer than a week, so that no Retry-After of its is longer; and what is
lost by one more question is nothing beside a certificate.
"""


class LedgerRefused(ValueError):
    """That is no ledger of orders"""


@dataclass(frozen=True, slots=True)
class Order:
    """An order that was begun: the key of its certificate, and where it is at the CA; `""` until the CA has
    said so.
    """

    key_pem: str
    url: str = ""

    def __repr__(self) -> str:
        return f"Order(url={self.url!r})"


@dataclass(frozen=True, slots=True)
class Ledger:
    """`begun`: when orders were begun of late. After a failure `failed` is when that was, `pause_seconds` how
    long nothing is tried, `failures` how many there were since it last went well.
    """

    order: Order | None = None
    begun: tuple[datetime, ...] = ()
    failed: datetime | None = None
    pause_seconds: float = 0.0
    failures: int = 0

    def octets(self) -> bytes:
        """For `read_ledger`."""
        order = None if self.order is None else {"key": self.order.key_pem, "url": self.order.url}
        kept = {
            "order": order,
            "begun": [begun.isoformat() for begun in self.begun],
            "failed": None if self.failed is None else self.failed.isoformat(),
            "pause_seconds": self.pause_seconds,
            "failures": self.failures,
        }
        return json.dumps(kept, indent=1).encode("ascii") + b"\n"


def read_ledger(octets: bytes) -> Ledger:
    """What `octets()` made. Raises LedgerRefused."""
    try:
        kept = json.loads(octets)
        order = kept["order"]
        return Ledger(
            None if order is None else Order(_text(order["key"]), _text(order["url"])),
            tuple(_date(begun) for begun in kept["begun"]),
            None if kept["failed"] is None else _date(kept["failed"]),
            _pause(kept["pause_seconds"]),
            int(kept["failures"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise LedgerRefused(f"{type(error).__name__}: {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _pause(value: Any) -> float:
    seconds = float(value)
    if not seconds >= 0:  # NaN, too
        raise ValueError("a pause below nothing")
    return min(seconds, LONGEST_PAUSE_SECONDS)


def _date(value: Any) -> datetime:
    date = datetime.fromisoformat(_text(value))
    if date.tzinfo is None:
        raise ValueError("a date without its zone")
    return date
