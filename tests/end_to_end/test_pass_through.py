"""Visitors by TLS, octet by octet: ends, resets, those who do not read, and many at once."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.end_to_end.origins import Visited
from tests.end_to_end.programs import wait_for
from tests.end_to_end.scripted import (
    JOINED,
    PATIENCE_SECONDS,
    WILDCARD,
    ScriptedSite,
    Scripts,
    descriptors,
    echo,
    exactly,
    hello,
    pid_of,
    reset,
    resident_octets,
    rest,
    scripted_site,
    until_end,
    wait_until_same,
)
from tests.end_to_end.site import ZONE

MANY = random.Random(7).randbytes(3_000_000)
"""More than all the buffers on the way, and than a read or a pipe of the relay."""
BULK_OCTETS = 96 << 20
BLOCK = random.Random(8).randbytes(1 << 20)
GROWN_OCTETS_AT_MOST = 8 << 20
"""What a process may grow by while somebody does not read: a thousand such visitors would not fit else."""
CROWD = 300
FLOOR_LANES = 2
SHRUNK_SECONDS = 300.0
"""Eight times half a minute, from 256 lanes to 2, and what it takes on a busy machine."""


def measured(name: str, value: float, unit: str) -> None:
    print(f"measured {name} {value:.3f} {unit}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedSite]:
    with scripted_site(tmp_path_factory.mktemp("pass")) as made:
        yield made


# The hello


@pytest.mark.parametrize("how", ["octets", "records", "records and octets"])
def test_a_hello_in_many_pieces(site: ScriptedSite, how: str) -> None:
    """The origin gets it as it was sent, however it came; and what follows it."""

    def serve(visited: Visited) -> bytes:
        visited.send(JOINED)
        return bytes(visited.octets) + rest(visited)

    script = site.script(serve)
    cuts = tuple(range(1, 64)) if "records" in how else ()
    octets = hello(script.name, cuts=cuts)
    assert len(octets) > 1300
    with site.connect() as sock:
        for at in range(0, len(octets), 1 if "octets" in how else 100):
            sock.sendall(octets[at : at + (1 if "octets" in how else 100)])
        assert exactly(sock, 1) == JOINED
        sock.sendall(b"behind")
        sock.shutdown(socket.SHUT_WR)
        assert script.result() == octets + b"behind"


# Ends


def test_the_visitor_ends_first(site: ScriptedSite) -> None:
    def serve(visited: Visited) -> bytes:
        visited.send(JOINED)
        got = rest(visited)
        visited.send(MANY)
        return got

    script = site.script(serve)
    with site.visit(script.name) as sock:
        sock.sendall(MANY)
        sock.shutdown(socket.SHUT_WR)
        assert until_end(sock) == MANY
    assert script.result() == MANY


def test_the_origin_ends_first(site: ScriptedSite) -> None:
    def serve(visited: Visited) -> bytes:
        visited.send(JOINED + MANY)
        visited.sock.shutdown(socket.SHUT_WR)
        return rest(visited)

    script = site.script(serve)
    with site.visit(script.name) as sock:
        assert until_end(sock) == MANY
        sock.sendall(MANY)
        sock.shutdown(socket.SHUT_WR)
        assert script.result() == MANY


def test_the_visitor_ends_before_he_is_joined(site: ScriptedSite) -> None:
    begun, go = threading.Event(), threading.Event()

    def serve(visited: Visited) -> bytes:
        begun.set()
        assert go.wait(PATIENCE_SECONDS)
        visited.send(JOINED)
        got = rest(visited)
        visited.send(b"all the same")
        return got

    script = site.script(serve)
    with site.visit(script.name, b"more", joins=False) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert begun.wait(PATIENCE_SECONDS)
        go.set()
        assert until_end(sock) == JOINED + b"all the same"
    assert script.result() == b"more"


# Resets

IDLE = "nobody sends"
SENDING = "the other one sends and is not read"
HALF = "he has ended his side before"
OTHER_HALF = "the other one has ended his side before"
STATES = [IDLE, SENDING, HALF, OTHER_HALF]


def stay(sock: socket.socket, state: str, sent: list[int]) -> OSError | None:
    """The end that stays: what it meets, None for an end of stream that looks like any other."""
    try:
        if state == OTHER_HALF:
            sock.shutdown(socket.SHUT_WR)
        if state in (SENDING, HALF):
            while True:
                sent[0] += sock.send(BLOCK)
        while sock.recv(1 << 16):
            pass
    except OSError as error:
        return error
    return None


def go_away(sock: socket.socket, state: str, sent: list[int]) -> None:
    """The end that resets, once it has come to the state."""
    if state == HALF:
        sock.shutdown(socket.SHUT_WR)
    if state == OTHER_HALF:
        assert sock.recv(1) == b""
    if state in (SENDING, HALF):
        assert wait_until_same(lambda: sent[0], "no more room for the other end's octets")
    reset(sock)


@pytest.mark.parametrize("state", STATES)
def test_a_visitor_who_resets(site: ScriptedSite, state: str) -> None:
    sent = [0]

    def serve(visited: Visited) -> OSError | None:
        visited.send(JOINED)
        return stay(visited.sock, state, sent)

    script = site.script(serve)
    go_away(site.visit(script.name), state, sent)
    assert isinstance(script.result(), ConnectionResetError | BrokenPipeError)


@pytest.mark.parametrize("state", STATES)
def test_an_origin_that_resets(site: ScriptedSite, state: str) -> None:
    sent = [0]

    def serve(visited: Visited) -> None:
        visited.send(JOINED)
        go_away(visited.sock, state, sent)

    script = site.script(serve)
    with site.visit(script.name) as sock:
        assert isinstance(stay(sock, state, sent), ConnectionResetError | BrokenPipeError)
    assert script.result() is None


def test_a_visitor_who_resets_before_he_is_joined(site: ScriptedSite) -> None:
    """His origin is let go at once, not when it has answered."""
    begun = threading.Event()

    def serve(visited: Visited) -> bytes:
        begun.set()
        return rest(visited)

    script = site.script(serve)
    sock = site.visit(script.name, joins=False)
    assert begun.wait(PATIENCE_SECONDS)
    reset(sock)
    assert script.result(2.0) == b""


# Who does not read


@pytest.mark.parametrize("seconds", [3.0, pytest.param(120.0, marks=pytest.mark.slow)])
def test_who_does_not_read_is_not_cut(site: ScriptedSite, seconds: float) -> None:
    """A visitor, and an origin: their octets wait, in bounded memory, and nobody else notices."""
    whole = hashlib.sha256(BLOCK * (BULK_OCTETS // len(BLOCK))).hexdigest()
    read = threading.Event()
    sent = {"to the visitor": 0, "to the origin": 0}

    def pour(sock: socket.socket, where: str) -> None:
        for _ in range(BULK_OCTETS // len(BLOCK)):
            sock.settimeout(seconds + PATIENCE_SECONDS)
            sock.sendall(BLOCK)
            sent[where] += len(BLOCK)
        sock.shutdown(socket.SHUT_WR)

    def digest(sock: socket.socket) -> str:
        sock.settimeout(PATIENCE_SECONDS)
        digest = hashlib.sha256()
        while octets := sock.recv(1 << 18):
            digest.update(octets)
        return digest.hexdigest()

    def sends(visited: Visited) -> None:
        visited.send(JOINED)
        pour(visited.sock, "to the visitor")
        assert not rest(visited)

    def takes(visited: Visited) -> str:
        visited.send(JOINED)
        assert read.wait(seconds + PATIENCE_SECONDS)
        return digest(visited.sock)

    sending, taking = site.script(sends), site.script(takes)
    for _ in range(5):
        site.page()
    pids = [pid_of(site.appliance), pid_of(site.client)]
    before = [resident_octets(pid) for pid in pids]
    with site.visit(sending.name) as deaf, site.visit(taking.name) as loud, ThreadPoolExecutor(1) as pool:
        poured = pool.submit(pour, loud, "to the origin")
        began = time.monotonic()
        slowest = grown = 0.0
        while time.monotonic() < began + seconds:
            slowest = max(slowest, site.page())
            grown = max(grown, *(resident_octets(pid) - was for pid, was in zip(pids, before, strict=True)))
        assert all(0 < count < BULK_OCTETS for count in sent.values()), "nobody was held up"
        stopped = dict(sent)
        read.set()
        assert digest(deaf) == whole
        assert taking.result() == whole
        poured.result(PATIENCE_SECONDS)
        deaf.shutdown(socket.SHUT_WR)
        assert sending.result() is None
    measured("unread_other_visitor_slowest", slowest * 1000, "ms")
    measured("unread_memory_grown", grown / 2**20, "MiB")
    assert slowest < 1.0
    assert grown < GROWN_OCTETS_AT_MOST, stopped


def test_slow_visitors_are_cut_and_nobody_waits_for_them(site: ScriptedSite) -> None:
    """An octet of the hello a second, or none at all: cut 5 s after they came, without a word or a line."""
    slow_octets = hello(site.script(rest).name)
    count = 200
    assert site.appliance.process is not None
    lines = site.appliance.process.output
    came = {site.connect(): time.monotonic() for _ in range(count)}
    speaking = set(list(came)[::2])
    lasted: list[float] = []
    slowest, sent = 0.0, 0
    begun = time.monotonic()
    try:
        while came and time.monotonic() < begun + 8.0:
            for sock in select.select(list(came), [], [], 0)[0]:
                try:
                    assert sock.recv(10) == b""
                except ConnectionResetError:
                    pass
                lasted.append(time.monotonic() - came.pop(sock))
                sock.close()
            if time.monotonic() > begun + sent and came:
                for sock in speaking & came.keys():
                    sock.send(slow_octets[sent : sent + 1])
                sent += 1
            slowest = max(slowest, site.page())
    finally:
        for sock in came:
            sock.close()
    assert len(lasted) == count
    assert min(lasted) > 4.5
    assert max(lasted) < 7.0
    assert sent >= 5
    assert site.appliance.process.output == lines
    assert slowest < 1.0
    measured("slow_visitors_other_visitor_slowest", slowest * 1000, "ms")


# Whose visitor


def test_everyone_gets_his_own_visitors(site: ScriptedSite) -> None:
    """Exact names before the wildcard, the closest wildcard, and two clients who have nothing to do with each
    other.
    """
    closer = Scripts(f"*.deep.apps.{ZONE}")
    exact = Scripts(WILDCARD)
    other = Scripts(f"*.other.{ZONE}")
    name = exact.add(echo).name
    site.scripts.add(echo, name)  # would answer as well, if it were asked
    for scripts in (closer, exact, other):
        site.running.callback(scripts.origin.close)
    second = site.join("second", {name: exact.origin.port, f"*.deep.apps.{ZONE}": closer.origin.port})
    third = site.join("third", {f"*.other.{ZONE}": other.origin.port})
    plain = site.script(echo)
    deep, elsewhere = closer.add(echo), other.add(echo)
    homes = {
        name: exact,
        plain.name: site.scripts,
        deep.name: closer,
        elsewhere.name: other,
    }
    before = {scripts: len(scripts.origin.visited) for scripts in homes.values()}
    count = 60

    def go(number: int) -> None:
        wanted = list(homes)[number % len(homes)]
        token = f"{number} for {wanted}".encode()
        with site.visit(wanted, token) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert until_end(sock) == token

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(go, range(count)))
    for wanted, scripts in homes.items():
        came = scripts.origin.visited[before[scripts] :]
        assert len(came) == count // len(homes)
        assert all(f"for {wanted}".encode() in visited.octets for visited in came)
        assert not scripts.strangers
    for client in (second, third):
        client.kill()


# Many


def test_three_hundred_at_once_on_a_fresh_client(site: ScriptedSite) -> None:
    _crowd(site, shrinks=False)


@pytest.mark.slow
def test_three_hundred_at_once_and_their_lanes_go(site: ScriptedSite) -> None:
    _crowd(site, shrinks=True)


def _crowd(site: ScriptedSite, *, shrinks: bool) -> None:
    scripts = Scripts(f"*.crowd.{ZONE}")
    fresh = site.join("fresh", {f"*.crowd.{ZONE}": scripts.origin.port})
    everyone = threading.Event()

    def serve(visited: Visited) -> None:
        visited.send(JOINED)
        number = visited.take(4)
        assert everyone.wait(2 * PATIENCE_SECONDS)
        visited.send(number)

    script = scripts.add(serve)
    wait_for(lambda: site.idle_lanes("fresh") == FLOOR_LANES, 5, "the first lanes of a client")
    pids = [pid_of(site.appliance), pid_of(fresh)]
    wait_until_same(lambda: descriptors(pids[0]), "the server at rest")

    def without_idle_lanes() -> list[int]:
        """What the server holds besides the idle lanes of all its clients, and the client besides its own."""
        held = [descriptors(pid) for pid in pids]
        every = sum(session["idle_lanes"] for session in site.status()["sessions"])
        return [held[0] - every, held[1] - site.idle_lanes("fresh")]

    before = without_idle_lanes()
    began = time.monotonic()
    socks = [site.visit(script.name, number.to_bytes(4), joins=False) for number in range(CROWD)]
    for sock in socks:
        assert exactly(sock, 1) == JOINED
    measured("crowd_all_joined", time.monotonic() - began, "s")
    assert site.status()["joined"] >= CROWD
    everyone.set()
    for number, sock in enumerate(socks):
        assert until_end(sock) == number.to_bytes(4)
        sock.close()
    for _ in range(CROWD):
        assert script.result() is None
    assert not scripts.strangers
    if shrinks:
        wait_for(lambda: site.idle_lanes("fresh") == FLOOR_LANES, SHRUNK_SECONDS, "as many lanes as at first")
        measured("crowd_lanes_gone", time.monotonic() - began, "s")
    what = f"the descriptors of the start, {before}, without idle lanes"
    wait_for(lambda: without_idle_lanes() == before, PATIENCE_SECONDS, what)
    assert site.idle_lanes("fresh") <= 256
    fresh.kill()
    scripts.origin.close()


# Anything, mixed

SOAK_POOL = random.Random(9).randbytes(8 << 20)
HEAD_OCTETS = 32
BOTH, UP_FIRST, VISITOR_RESETS, ORIGIN_RESETS, ASKS, LEAVES = range(6)
MODES = (BOTH, BOTH, UP_FIRST, VISITOR_RESETS, ORIGIN_RESETS, ASKS, ASKS, LEAVES)


class Plan:
    """What one visitor and his origin do with each other; all of it follows from a number."""

    def __init__(self, seed: int, number: int) -> None:
        self.key = (seed, number)
        dice = random.Random(seed << 32 | number)
        self.mode = dice.choice(MODES)
        self.up = self._some(dice)
        self.down = self._some(dice)
        self.breaks_at = dice.randrange(len(self.up if self.mode == VISITOR_RESETS else self.down) + 1)
        self.dice = dice

    @staticmethod
    def _some(dice: random.Random) -> bytes:
        size = dice.choice([0, 1, 100, 5_000, 65_536, dice.randrange(300_000), dice.randrange(3_000_000)])
        at = dice.randrange(len(SOAK_POOL) - size)
        return SOAK_POOL[at : at + size]

    def head(self) -> bytes:
        return self.key[0].to_bytes(16) + self.key[1].to_bytes(16)


def exchange(
    sock: socket.socket,
    out: bytes,
    wanted: bytes,
    got: bytes,
    dice: random.Random,
    *,
    breaks_at: int | None = None,
) -> str:
    """Send `out`, then the end, and take what comes up to the end, both at once and in random pieces.

    "whole": all of `wanted` came, then the end; "reset": its beginning, and then a reset; "broke": so many
    were sent, and then it was we who reset. Anything else is an assertion.
    """
    sock.setblocking(False)
    at, taken, sent_end, got_end = 0, len(got), False, False
    assert wanted.startswith(got)
    limit = len(out) if breaks_at is None else breaks_at
    end = time.monotonic() + PATIENCE_SECONDS
    while not (sent_end and got_end):
        assert time.monotonic() < end, f"stuck at {at} of {len(out)} sent, {taken} of {len(wanted)} taken"
        if breaks_at is not None and at >= breaks_at:
            reset(sock)
            return "broke"
        readable, writable, _ = select.select([sock] * (not got_end), [sock] * (not sent_end), [], 1)
        try:
            if writable:
                if at == limit:
                    sock.shutdown(socket.SHUT_WR)
                    sent_end = True
                else:
                    at += sock.send(out[at : min(limit, at + dice.randrange(1, 200_000))])
            if readable:
                octets = sock.recv(dice.randrange(1, 300_000))
                assert octets == wanted[taken : taken + len(octets)], "somebody else's octets"
                taken += len(octets)
                got_end = not octets
        except BlockingIOError:
            pass
        except OSError:
            return "reset"
    assert taken == len(wanted), "an end before the end"
    return "whole"


def soak_origin(visited: Visited) -> str:
    visited.send(JOINED)
    head = visited.take(HEAD_OCTETS)
    if len(head) < HEAD_OCTETS:
        return "left"
    plan = Plan(int.from_bytes(head[:16]), int.from_bytes(head[16:]))
    got = bytes(visited.octets[visited.taken :])
    sock = visited.sock
    match plan.mode:
        case 0 | 2 | 3:
            breaks = plan.breaks_at if plan.mode == ORIGIN_RESETS else None
            return exchange(sock, plan.down, plan.up, got, plan.dice, breaks_at=breaks)
        case 1:
            assert rest(visited) == plan.up
            visited.send(plan.down)
            return "whole"
        case 4:
            for at in range(0, len(plan.up), 1000):
                part = visited.take(len(plan.up[at : at + 1000]))
                assert part == plan.up[at : at + 1000]
                visited.send(bytes(reversed(part)))
            return "whole" if not rest(visited) else "too much"
        case _:
            return "left"


def soak_visitor(site: ScriptedSite, name: str, plan: Plan) -> str:
    with site.visit(name, plan.head(), joins=plan.mode != LEAVES) as sock:
        match plan.mode:
            case 5:
                if plan.breaks_at % 2:
                    reset(sock)
                return "left"
            case 1:
                sock.sendall(plan.up)
                sock.shutdown(socket.SHUT_WR)
                assert until_end(sock) == plan.down
                return "whole"
            case 4:
                for at in range(0, len(plan.up), 1000):
                    part = plan.up[at : at + 1000]
                    sock.sendall(part)
                    assert exactly(sock, len(part)) == bytes(reversed(part))
                sock.shutdown(socket.SHUT_WR)
                assert until_end(sock) == b""
                return "whole"
            case _:
                breaks = plan.breaks_at if plan.mode == VISITOR_RESETS else None
                return exchange(sock, plan.up, plan.down, b"", plan.dice, breaks_at=breaks)


EXPECTED = {
    BOTH: ("whole", "whole"),
    UP_FIRST: ("whole", "whole"),
    ASKS: ("whole", "whole"),
    VISITOR_RESETS: ("broke", "reset"),
    ORIGIN_RESETS: ("reset", "broke"),
}
"""What visitor and origin see, by mode. Who leaves at once may be seen in several ways."""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [4.0, 300.0])
def test_a_soak_of_all_sorts(site: ScriptedSite, seconds: float) -> None:
    seed = int(os.environ.get("SOAK_SEED", random.randrange(1 << 32)))
    print(f"SOAK_SEED={seed}")
    numbers = itertools.count()
    over = time.monotonic() + seconds
    pids = [pid_of(site.appliance), pid_of(site.client)]

    def visits(_: int) -> int:
        done = 0
        script = site.script(soak_origin)
        while time.monotonic() < over:
            plan = Plan(seed, next(numbers))
            try:
                seen = soak_visitor(site, script.name, plan)
                told = script.result() if plan.mode != LEAVES else "left"
                if isinstance(told, Exception):
                    raise told
            except Exception as error:
                raise AssertionError(f"visit {plan.key[1]}, mode {plan.mode}: {error!r}") from error
            expected = EXPECTED.get(plan.mode)
            assert expected is None or (seen, told) == expected, (plan.key[1], plan.mode, seen, told)
            if plan.mode == LEAVES:
                script = site.script(soak_origin)
            done += 1
        return done

    with ThreadPoolExecutor(6) as pool:
        done = sum(pool.map(visits, range(6)))
    measured("soak_visits", done / seconds, "1/s")
    assert done > 10 * seconds / 6
    wait_for(lambda: site.status()["joined"] == 0, PATIENCE_SECONDS, "the end of all visits")
    wait_until_same(lambda: sum(map(descriptors, pids)), "descriptors at rest")
    assert site.page() < 1.0
    for one in (site.appliance, site.client):
        assert one.process is not None
        assert "Traceback" not in one.process.output
