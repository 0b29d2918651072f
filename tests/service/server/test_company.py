"""Visitors that may have to end together, in a real relay."""

from __future__ import annotations

from contextlib import ExitStack

from appliance.service.relay import Relay
from appliance.service.server.company import Company
from tests.service.turning import tcp_pair, turning


def test_all_end_at_once_and_the_last_who_leaves_is_told_of() -> None:
    company = Company()
    told: list[Company] = []
    company.emptied = told.append
    with turning() as (reactor, readiness), ExitStack() as stack:
        relay = Relay(readiness)
        visitors = []
        for _ in range(3):
            (visitor, near), (far, lane) = tcp_pair(), tcp_pair()
            stack.enter_context(visitor)
            stack.enter_context(lane)
            visitors.append(visitor)
            for wire in (near, far):
                readiness.register(wire, lambda events: None)
            relay.join(near, far, among=company)
            if len(visitors) == 1:
                visitor.close()
                lane.close()
                reactor.until(lambda: not company)
                assert told == [company]
        assert len(company) == 2
        company.abort()
        assert not company
        assert not relay.joined
        assert told == [company, company]
        relay.stop()
