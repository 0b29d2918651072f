from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from appliance.tunnel.lane import (
    EXPORTED_OCTETS,
    MAGIC,
    MAX_SEALED_OCTETS,
    PREFACE_OCTETS,
    CounterWindow,
    LaneError,
    Preface,
    SealedHeader,
    Status,
    lane_keys,
    read_preface,
    seal_header,
    verify,
    write_preface,
)
from tests.effort import examples
from tests.tunnel.cuts import CUTS, cut

KEYS = lane_keys(bytes(range(64)))
OTHERS = lane_keys(bytes(64))
SESSION = b"session8"
PREFACE = read_preface(write_preface(KEYS, SESSION, 7))


def test_the_exported_octets_are_two_keys() -> None:
    assert KEYS.preface == bytes(range(32))
    assert KEYS.header == bytes(range(32, 64))
    assert repr(KEYS) == "LaneKeys()"
    for octets in (b"", bytes(EXPORTED_OCTETS - 1), bytes(EXPORTED_OCTETS + 1)):
        with pytest.raises(LaneError):
            lane_keys(octets)


def test_a_preface_is_40_octets_in_four_parts() -> None:
    octets = PREFACE.octets
    assert len(octets) == PREFACE_OCTETS == 40
    assert octets[:8] == MAGIC == b"\xf5tunnel\x01"
    assert octets[8:16] == SESSION
    assert octets[16:24] == bytes(7) + b"\x07"
    assert octets[24:] == hmac.digest(bytes(range(32)), octets[:24], hashlib.sha256)[:16]
    assert Preface(SESSION, 7, octets) == PREFACE


@given(st.binary(min_size=8, max_size=8), st.integers(0, 2**64 - 1))
@settings(max_examples=examples(50), deadline=None)
def test_a_preface_is_true_for_its_own_session_only(session: bytes, counter: int) -> None:
    preface = read_preface(write_preface(KEYS, session, counter))
    assert (preface.session_id, preface.counter) == (session, counter)
    assert verify(KEYS, preface)
    assert not verify(OTHERS, preface)


@given(st.integers(0, 319))
@settings(max_examples=examples(100), deadline=None)
def test_one_changed_bit_is_a_lie(bit: int) -> None:
    octets = bytearray(PREFACE.octets)
    octets[bit // 8] ^= 1 << bit % 8
    try:
        assert not verify(KEYS, read_preface(bytes(octets)))
    except LaneError:
        assert bit < 64


@given(st.binary(max_size=60))
@settings(max_examples=examples(50), deadline=None)
def test_any_octets_are_no_preface(octets: bytes) -> None:
    with pytest.raises(LaneError):
        read_preface(octets)
    if len(octets) != 32:
        with pytest.raises(LaneError):
            read_preface(MAGIC + octets)


@given(st.binary(max_size=701), st.binary(max_size=20), CUTS)
@settings(max_examples=examples(100), deadline=None)
def test_a_sealed_header_in_any_cut(header: bytes, behind: bytes, places: list[int]) -> None:
    reader = SealedHeader(KEYS, PREFACE)
    pieces = list(cut(seal_header(KEYS, PREFACE, header) + behind, places))
    for number, piece in enumerate(pieces):
        opened = reader.feed(piece)
        if opened is not None:
            assert opened[0] == header
            assert opened[1] + b"".join(pieces[number + 1 :]) == behind
            return
    raise AssertionError("the header was never complete")


def test_the_length_goes_first() -> None:
    sealed = seal_header(KEYS, PREFACE, b"header")
    assert len(sealed) == 2 + 6 + 16
    assert sealed[:2] == b"\x00\x16"


@pytest.mark.parametrize(
    "sealed",
    [
        b"\x00\x00",
        b"\x00\x0f" + bytes(15),
        b"\x08\x01",
        b"\xff\xff",
        seal_header(OTHERS, PREFACE, b"header"),
        seal_header(KEYS, read_preface(write_preface(KEYS, SESSION, 8)), b"header"),
        seal_header(KEYS, read_preface(write_preface(KEYS, b"another8", 7)), b"header"),
        seal_header(KEYS, PREFACE, b"header")[:-1] + b"x",
        b"\x00\x15" + seal_header(KEYS, PREFACE, b"header")[2:],
    ],
)
def test_a_header_of_somebody_else(sealed: bytes) -> None:
    with pytest.raises(LaneError):
        SealedHeader(KEYS, PREFACE).feed(sealed)


def test_a_header_may_not_be_longer_than_the_bound() -> None:
    longest = bytes(MAX_SEALED_OCTETS - 16)
    assert SealedHeader(KEYS, PREFACE).feed(seal_header(KEYS, PREFACE, longest)) == (longest, b"")
    with pytest.raises(LaneError):
        seal_header(KEYS, PREFACE, longest + b"x")


def test_the_answers() -> None:
    assert {status.name: status.value for status in Status} == {
        "JOINED": 1,
        "ORIGIN_REFUSED": 2,
        "ORIGIN_UNREACHABLE": 3,
        "ORIGIN_SILENT": 4,
        "NO_ORIGIN": 5,
        "BUSY": 6,
        "NO_CERTIFICATE": 7,
    }


def test_lanes_that_overtake_each_other() -> None:
    window = CounterWindow(size=4)
    assert [window.take(counter) for counter in (0, 2, 1, 2, 5, 1, 4, 3, 2)] == [
        True, True, True, False, True, False, True, True, False,
    ]  # fmt: skip


def test_a_leap_costs_no_memory() -> None:
    window = CounterWindow()
    assert window.take(0)
    assert window.take(2**64 - 1)
    assert not window.take(0)
    assert window.take(2**64 - 4096)
    assert not window.take(2**64 - 4097)
    assert not window.take(2**64 - 1)


class WindowAgainstASet(RuleBasedStateMachine):
    """A counter is taken once at most, and always if it is new and within the window."""

    SIZE = 16

    def __init__(self) -> None:
        super().__init__()
        self.window = CounterWindow(self.SIZE)
        self.used: set[int] = set()

    @rule(counter=st.integers(0, 60))
    def take(self, counter: int) -> None:
        self._take(counter)

    @rule(back=st.integers(0, 20))
    def take_near_the_highest(self, back: int) -> None:
        self._take(max(max(self.used, default=0) + 2 - back, 0))

    @invariant()
    def the_highest_is_used(self) -> None:
        if self.used:
            assert not self.window.take(max(self.used))

    def _take(self, counter: int) -> None:
        new = counter not in self.used and counter > max(self.used, default=counter) - self.SIZE
        assert self.window.take(counter) is new
        if new:
            self.used.add(counter)


def test_a_window_against_a_set() -> None:
    run_state_machine_as_test(
        WindowAgainstASet, settings=settings(max_examples=examples(50), stateful_step_count=40, deadline=None)
    )
