"""Who is let in over TCP, and who goes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.service.nameserver.places import KEPT_PLACES, PLACES, UNEARNED_PLACES, Places
from tests.effort import examples

FREE = PLACES - KEPT_PLACES


class _Peer:
    def __init__(self, places: Places, host: str, *, earning: bool = False) -> None:
        self.host = host
        self.earning = earning
        self.ended: list[str] = []
        places.take(self)

    def abort(self, why: str) -> None:
        self.ended.append(why)

    def is_earning(self) -> bool:
        return self.earning


def test_a_source_that_earns_nothing_gives_way_to_others() -> None:
    places = Places()
    good = [_Peer(places, f"192.0.2.{number}", earning=True) for number in range(20)]
    slow = [_Peer(places, f"198.51.100.{number}") for number in range(5)]
    flood = [_Peer(places, "203.0.113.1") for _ in range(500)]
    assert places.of("203.0.113.1") == FREE - 25
    late = [_Peer(places, f"192.0.2.{number}") for number in range(100, 120)]
    assert not any(peer.ended for peer in (*good, *slow, *late))
    assert sum(not peer.ended for peer in flood) == FREE - 45
    assert not flood[-1].ended, "the oldest ones went"


def test_our_own_always_find_a_place() -> None:
    places = Places(lambda host: host.startswith("10."))
    strangers = [_Peer(places, f"192.0.2.{number}", earning=True) for number in range(200)]
    assert len(places) == FREE
    ours = [_Peer(places, f"10.0.0.{number}", earning=True) for number in range(60)]
    assert len(places) == PLACES
    assert not any(peer.ended for peer in ours)
    assert sum(not peer.ended for peer in strangers) == 40
    more = [_Peer(places, f"10.0.1.{number}", earning=True) for number in range(60)]
    assert sum(not peer.ended for peer in strangers) == 0
    assert [bool(peer.ended) for peer in ours] == [True] * 20 + [False] * 40
    for peer in (*ours, *more):
        places.leave(peer)
    assert (len(places), places.sources, places._strangers) == (0, 0, 0)


def test_sources_of_ipv6() -> None:
    places = Places()
    _Peer(places, "2001:db8:1:2::1")
    _Peer(places, "2001:db8:1:2:9::9%eth0")
    _Peer(places, "2001:db8:1:3::1")
    assert places.of("2001:db8:1:2::") == 2
    assert places.sources == 2


def test_who_may_wait() -> None:
    places = Places()
    peers = [_Peer(places, "192.0.2.1") for _ in range(UNEARNED_PLACES + 1)]
    assert not places.may_wait(peers[0])
    peers[3].earning = True
    assert places.may_wait(peers[0])


def test_an_address_that_becomes_ours_meanwhile() -> None:
    ours: set[str] = set()
    places = Places(ours.__contains__)
    peer = _Peer(places, "192.0.2.1")
    ours.add("192.0.2.1")
    places.leave(peer)
    places.leave(peer)
    places.moved(peer)
    assert (len(places), places._strangers) == (0, 0)


STEPS = st.lists(st.tuples(st.sampled_from("tlme"), st.integers(0, 11), st.booleans()), max_size=400)


@settings(max_examples=examples(100), deadline=None)
@given(STEPS)
def test_the_count_is_right_whatever_happens(steps: list[tuple[str, int, bool]]) -> None:
    places = Places(lambda host: host.startswith("10."))
    there: list[_Peer] = []
    for step, number, flag in steps:
        if step in "te":
            for _ in range(5):
                there.append(_Peer(places, f"{'10' if number < 2 else '192'}.0.2.{number}", earning=flag))
        elif there and step == "l":
            places.leave(there.pop(number % len(there)))
        elif there:
            places.moved(there[number % len(there)])
        there = [peer for peer in there if not peer.ended]
        assert len(places) == len(there) <= PLACES
        assert places._strangers == sum(peer.host.startswith("192") for peer in there) <= FREE
        assert places.sources == len({peer.host for peer in there})
