"""The status' counts, in words."""

from __future__ import annotations

import json
from collections import Counter

from appliance.dns.gate import Gate
from appliance.dns.ratelimit import RateLimit
from appliance.dns.responder import Responder
from appliance.service.nameserver.counting import counted
from tests.dns.asking import outcome, query, zone


def test_counts_in_words() -> None:
    served = Responder([zone("www A 192.0.2.7\n")], gate=Gate(rate_limit=RateLimit(slip=0)))
    for _ in range(130):
        outcome(served, query("www.example.test"))
    outcome(served, query("www.example.com"), udp=False)
    outcome(served, b"")
    found = counted(served, (Counter(idle=1), Counter(idle=2)))
    www = {"zone": "example.test", "type": "A", "rcode": "NOERROR", "transport": "udp", "count": 125}
    other = {"zone": None, "type": "other", "rcode": "REFUSED", "transport": "tcp", "count": 1}
    assert found == {
        "answers": [www, other],
        "dropped": {"its answer was over the rate limit": 5, "shorter than a header": 1},
        "events": {"answers that were not in the table": 1, "idle": 3},
    }
    assert json.loads(json.dumps(found)) == found
