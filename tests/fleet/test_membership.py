"""The rule of publication, by cases and against a model that is written from its sentence alone."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.fleet.membership import FORGET_SECONDS, Membership, Published, Standing
from appliance.tunnel.discovery import ServerAddress
from tests.effort import examples
from tests.fleet.rule import Rule

A, B, C, D = (ServerAddress(f"192.0.2.{number}") for number in (1, 2, 3, 4))
B6 = ServerAddress("2001:db8::2")


def fleet(*addresses: ServerAddress, names: tuple[str, ...] = ()) -> Membership:
    """Each address is the only one of a server that is up; ids are the addresses, the boot is `1`."""
    membership = Membership()
    for address in addresses:
        membership.joined(address, str(address), "1", names, 0.0)
    return membership


def sent(membership: Membership, name: str) -> tuple[ServerAddress, ...]:
    """Where visitors of a name are sent."""
    return membership.published().of_group(membership.group_of(name))


def served(membership: Membership) -> dict[str, tuple[ServerAddress, ...]]:
    """The same, of the names with a session at a published address."""
    published = membership.published()
    found = {name: published.serving(membership.group_of(name)) for name in NAMES}
    return {name: addresses for name, addresses in found.items() if addresses}


def test_nothing_is_published_of_nobody() -> None:
    assert Membership().published() == Published((), ())


def test_a_proved_death_is_out_at_once_but_never_the_last_one() -> None:
    membership = fleet(A, B)
    membership.dead(A, "1", 1.0)
    assert membership.published().addresses == (B,)
    membership.dead(B, "1", 2.0)
    assert membership.published() == Published((B,), (B,))
    membership.joined(A, str(A), "2", (), 3.0)
    assert membership.published() == Published((A,), ())


@pytest.mark.parametrize(
    ("count", "silent", "published", "held"),
    [
        (1, 1, 1, 1),
        (2, 1, 1, 0),
        (2, 2, 2, 2),
        (3, 1, 2, 0),
        (3, 2, 3, 2),
        (4, 2, 2, 0),
        (4, 3, 4, 3),
        (4, 4, 4, 4),
        (5, 2, 3, 0),
        (5, 3, 5, 3),
    ],
)
def test_silent_ones_are_out_only_while_half_remain(
    count: int, silent: int, published: int, held: int
) -> None:
    addresses = [ServerAddress(f"192.0.2.{number}") for number in range(1, count + 1)]
    membership = fleet(*addresses)
    for address in addresses[:silent]:
        membership.silent(address, "1", 1.0)
    assert len(membership.published().addresses) == published
    assert len(membership.published().held) == held


def test_the_dead_count_among_the_known() -> None:
    membership = fleet(A, B, C, D)
    membership.dead(A, "1", 1.0)
    membership.dead(B, "1", 1.0)
    membership.silent(C, "1", 1.0)
    assert membership.published() == Published((C, D), (C,))


def test_servers_are_counted_not_addresses() -> None:
    membership = fleet(A, C)
    membership.joined(B, "b", "1", (), 0.0)
    membership.joined(B6, "b", "1", (), 0.0)
    membership.silent(B6, "1", 1.0)
    assert membership.published().addresses == (A, B, C)
    membership.silent(A, "1", 1.0)
    assert membership.published().addresses == (B, C)
    membership.silent(B, "1", 1.0)
    assert set(membership.published().addresses) == {A, B, B6, C}


def test_a_silent_one_that_is_proved_dead_is_held_no_longer() -> None:
    membership = fleet(A, B)
    membership.silent(A, "1", 1.0)
    membership.silent(B, "1", 1.0)
    membership.dead(A, "1", 2.0)
    assert membership.published() == Published((B,), (B,))


def test_an_end_touches_only_its_boot() -> None:
    membership = fleet(A, B, names=("www.test",))
    membership.joined(A, str(A), "2", ("www.test",), 1.0)
    membership.dead(A, "1", 2.0)
    membership.silent(A, "1", 2.0)
    membership.left(str(A), "1", 2.0)
    membership.not_serving(A, "1", "www.test")
    assert sent(membership, "www.test") == (A, B)
    assert membership.boot_at(A) == "2"
    assert membership.boot_at(C) is None


def test_a_names_addresses_follow_its_sessions() -> None:
    membership = fleet(A, B, C)
    assert sent(membership, "www.test") == (A, B, C)
    membership.serving(B, "1", "www.test")
    assert sent(membership, "www.test") == (B,)
    membership.serving(C, "1", "www.test")
    assert sent(membership, "www.test") == (B, C)
    membership.dead(B, "1", 1.0)
    assert sent(membership, "www.test") == (C,)
    assert [member.names for member in membership.members()] == [0, 0, 1]
    membership.not_serving(C, "1", "www.test")
    assert sent(membership, "www.test") == (A, C)


def test_a_cut_off_observer_keeps_names_and_servers() -> None:
    membership = fleet(A, B, C, names=("www.test",))
    membership.not_serving(C, "1", "www.test")
    before, sent_before = membership.published(), sent(membership, "www.test")
    for address in (A, B, C):
        membership.silent(address, "1", 1.0)
    assert not membership.tick(100 * FORGET_SECONDS)
    assert sent(membership, "www.test") == sent_before == (A, B)
    assert membership.published().addresses == before.addresses
    # Its return is no cliff: what it did not hear meanwhile was its own deafness.
    membership.joined(A, str(A), "1", ("www.test",), 101 * FORGET_SECONDS)
    membership.tick(101 * FORGET_SECONDS + 1)
    assert membership.published().addresses == before.addresses


def test_after_an_hour_a_silent_server_does_not_count() -> None:
    membership = fleet(A, B, C)
    membership.silent(B, "1", 0.0)
    membership.silent(C, "1", 10.0)
    assert membership.published().held == (B, C)
    assert membership.next_deadline() == FORGET_SECONDS
    assert not membership.tick(FORGET_SECONDS)
    assert membership.tick(FORGET_SECONDS + 1)
    assert membership.published() == Published((A,), ())  # C is out: one of two known remains
    assert membership.tick(FORGET_SECONDS + 11)
    assert membership.next_deadline() is None


def test_a_leave_never_takes_the_last_one_and_a_removal_does() -> None:
    membership = fleet(A, B)
    membership.left(str(A), "1", 1.0)
    assert membership.published().addresses == (B,)
    membership.left(str(B), "1", 2.0)
    assert membership.published() == Published((B,), (B,))
    membership.removed(B)
    membership.removed(A)
    assert membership.published().addresses == ()


def test_who_left_does_not_count_when_the_half_is_counted() -> None:
    membership = fleet(A, B, C, D)
    membership.left(str(A), "1", 1.0)
    membership.left(str(B), "1", 1.0)
    membership.silent(C, "1", 1.0)
    assert membership.published() == Published((D,), ())


def test_who_drains_is_out_while_another_one_is_heard() -> None:
    membership = fleet(A, B, names=("www.test",))
    membership.draining(str(A), "1", 1.0)
    assert membership.published() == Published((B,), ())
    assert served(membership) == {"www.test": (B,)}
    membership.draining(str(B), "1", 2.0)  # the whole fleet: it serves until it leaves
    assert membership.published() == Published((A, B), ())
    assert served(membership) == {"www.test": (A, B)}
    membership.left(str(A), "1", 3.0)
    assert membership.published() == Published((B,), ())
    assert served(membership) == {"www.test": (B,)}
    membership.left(str(B), "1", 4.0)
    assert membership.published() == Published((B,), (B,))


def test_a_name_that_only_a_draining_server_serves_stays_there() -> None:
    membership = fleet(A, B)
    membership.serving(A, "1", "www.test")
    membership.draining(str(A), "1", 1.0)
    assert membership.published() == Published((B,), ())
    assert served(membership) == {"www.test": (A,)}
    membership.serving(B, "1", "www.test")
    assert served(membership) == {"www.test": (B,)}


def test_a_boot_that_drains_drains_for_ever() -> None:
    membership = fleet(A, B)
    membership.draining(str(A), "1", 1.0)
    membership.joined(A, str(A), "1", (), 2.0)  # its watch was lost and is back
    assert membership.published().addresses == (B,)
    membership.silent(A, "1", 3.0)
    assert membership.published() == Published((B,), ())
    membership.draining(str(A), "1", 3.0)  # late
    assert membership.members()[0].standing is Standing.LEFT
    membership.joined(A, str(A), "2", (), 4.0)
    assert membership.published().addresses == (A, B)


def test_who_drains_does_not_count_when_the_half_is_counted() -> None:
    membership = fleet(A, B, C, D)
    membership.draining(str(A), "1", 1.0)
    membership.draining(str(B), "1", 1.0)
    membership.silent(C, "1", 1.0)
    assert membership.published().addresses == (D,)
    membership.silent(D, "1", 1.0)
    assert membership.published() == Published((A, B, C, D), (C, D))


def test_the_first_answer_after_a_restart_is_the_last_one() -> None:
    membership = Membership()
    for address in (A, B, C):
        membership.restored(address, str(address), "1", 0.0)
    membership.joined(D, str(D), "1", (), 0.0)
    assert membership.published() == Published((A, B, C, D), ())
    membership.silent(A, "1", 1.0)
    assert membership.published().addresses == (B, C, D)
    membership.joined(B, str(B), "1", (), 1.0)
    assert [member.standing for member in membership.members()] == [
        Standing.SILENT,
        Standing.UP,
        Standing.RESTORED,
        Standing.UP,
    ]


def test_who_was_not_asked_since_the_restart_keeps_every_name() -> None:
    membership = Membership()
    for address in (A, B):
        membership.restored(address, str(address), "1", 0.0)
    membership.joined(C, str(C), "1", ("www.test",), 0.0)
    assert served(membership) == {"www.test": (A, B, C)}
    membership.joined(A, str(A), "1", ("api.test",), 0.0)
    assert served(membership) == {"www.test": (B, C), "api.test": (A, B)}
    membership.silent(B, "1", 1.0)
    assert served(membership) == {"www.test": (C,), "api.test": (A,)}
    membership.silent(A, "1", 1.0)  # both are held: too few would remain
    assert served(membership) == {"www.test": (B, C), "api.test": (A, B)}
    membership.joined(B, str(B), "1", (), 2.0)
    assert served(membership) == {"www.test": (C,)}


def test_what_is_no_longer_listed_stays_only_while_there_is_nothing_else() -> None:
    membership = Membership()
    membership.restored(A, "a", "1", 0.0)
    membership.unlisted(A, 0.0)
    assert membership.published().addresses == (A,)
    membership.joined(B, "b", "1", (), 1.0)
    assert membership.published().addresses == (B,)


def test_a_group_stays_what_it_is_when_a_server_dies() -> None:
    names = tuple(f"n{number}.test" for number in range(50))
    membership = fleet(A, B, C, names=names)
    (group,) = {id(group): group for group in map(membership.group_of, names)}.values()
    assert membership.published().of_group(group) == (A, B, C)
    membership.dead(B, "1", 1.0)
    assert {id(membership.group_of(name)) for name in names} == {id(group)}
    assert membership.published().of_group(group) == (A, C)
    assert membership.names_at(B) == set(names)
    membership.joined(B, str(B), "2", (), 2.0)
    assert membership.group_of(names[0]) == (A, C)


SERVERS = ["s1", "s2", "s3", "s4"]
PLACE = {f"s{number}": ServerAddress(f"192.0.2.{number}") for number in (1, 2, 3, 4)}
NAMES = ["www.test", "api.test"]
SERVER = st.sampled_from(SERVERS)
NAME = st.sampled_from(NAMES)


class AgainstTheRule(RuleBasedStateMachine):
    """The membership beside the model of its rule."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.membership = Membership()
        self.rule = Rule()
        self.boots = dict.fromkeys(SERVERS, 0)
        self.names: dict[str, set[str]] = {server: set() for server in SERVERS}
        self.was: tuple[ServerAddress, ...] = ()

    @rule(seconds=st.sampled_from([0.5, 10.0, 2000.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.membership.tick(self.now)
        self.rule.time_passes(self.now)

    @rule(server=SERVER, names=st.sets(NAME))
    def a_server_starts(self, server: str, names: set[str]) -> None:
        self.now += 0.001
        self.boots[server] += 1
        self.rule.started(server, self.now)
        self.names[server] = set(names)
        self.membership.joined(PLACE[server], server, str(self.boots[server]), names, self.now)

    @rule(server=SERVER, late=st.booleans())
    def a_server_is_refused(self, server: str, late: bool) -> None:
        self.now += 0.001
        self.membership.dead(PLACE[server], str(self.boots[server] - late), self.now)
        if not late and self.rule.refused(server, self.now):
            self.names[server].clear()

    @rule(server=SERVER, late=st.booleans())
    def a_server_is_not_heard(self, server: str, late: bool) -> None:
        self.now += 0.001
        self.membership.silent(PLACE[server], str(self.boots[server] - late), self.now)
        if not late and self.rule.unheard(server, self.now) and self.rule.word[server] == "left":
            self.names[server].clear()

    @rule(server=SERVER)
    def a_server_drains(self, server: str) -> None:
        self.now += 0.001
        self.membership.draining(server, str(self.boots[server]), self.now)
        self.rule.drains(server, self.now)

    @rule(server=SERVER)
    def a_server_leaves(self, server: str) -> None:
        self.now += 0.001
        self.membership.left(server, str(self.boots[server]), self.now)
        if self.rule.left(server, self.now):
            self.names[server].clear()

    @rule(server=SERVER)
    def a_server_is_removed(self, server: str) -> None:
        self.membership.removed(PLACE[server])
        self.rule.removed(server)
        self.was = ()

    @precondition(lambda self: bool({"up", "draining"} & set(self.rule.word.values())))
    @rule(server=SERVER, name=NAME, late=st.booleans())
    def a_name_comes(self, server: str, name: str, late: bool) -> None:
        if self.rule.word.get(server) in ("up", "draining"):
            self.membership.serving(PLACE[server], str(self.boots[server] - late), name)
            if not late:
                self.names[server].add(name)

    @rule(server=SERVER, name=NAME, late=st.booleans())
    def a_name_goes(self, server: str, name: str, late: bool) -> None:
        if self.rule.word.get(server) in ("up", "draining"):
            self.membership.not_serving(PLACE[server], str(self.boots[server] - late), name)
            if not late:
                self.names[server].discard(name)

    @invariant()
    def what_is_published_is_what_the_rule_says(self) -> None:
        published = self.membership.published()
        chosen = self.rule.published()
        assert set(published.addresses) == {PLACE[server] for server in chosen}
        for name in NAMES:
            serving = {PLACE[server] for server in chosen if name in self.names[server]}
            for server, word in () if serving else self.rule.word.items():
                if word == "draining" and name in self.names[server]:
                    serving.add(PLACE[server])
            assert set(sent(self.membership, name)) == (serving or set(published.addresses))

    @invariant()
    def nothing_but_a_removal_ever_empties_the_set(self) -> None:
        addresses = self.membership.published().addresses
        assert addresses or not self.was
        self.was = addresses


TestRule = AgainstTheRule.TestCase
TestRule.settings = settings(max_examples=examples(100), stateful_step_count=30, deadline=None)
