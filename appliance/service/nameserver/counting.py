"""What the nameserver has counted, as the status shows it: every answer and every drop is in one of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import dns.rcode
import dns.rdatatype

from appliance.dns.counts import OTHER
from appliance.dns.names import to_text
from appliance.dns.responder import Dropped, Responder


def counted(responder: Responder, transports: Iterable[Counter[str]]) -> dict[str, Any]:
    """`answers` by zone, type, rcode and transport; `dropped` and `events` by what happened.

    `transports` are the counters of the sockets.
    """
    sockets: Counter[str] = Counter()
    for counters in transports:
        sockets.update(counters)
    dropped = {kind.value: count for kind, count in responder.counters.items() if isinstance(kind, Dropped)}
    return {
        "answers": [
            {
                "zone": to_text(kind.zone) if kind.zone is not None else None,
                "type": dns.rdatatype.RdataType.to_text(kind.qtype) if kind.qtype != OTHER else "other",
                "rcode": dns.rcode.Rcode.to_text(kind.rcode),
                "transport": "udp" if kind.udp else "tcp",
                "count": count,
            }
            for kind, count in responder.answers.items()
        ],
        "dropped": dropped,
        "events": {
            kind.value: count for kind, count in responder.counters.items() if not isinstance(kind, Dropped)
        }
        | dict(sockets),
    }
