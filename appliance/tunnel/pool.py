"""How many idle lanes a client keeps ready at a server: the arithmetic of demand, without a socket.

The aim doubles when the visitors of a second have taken half of it and as many lanes as are left, and halves
when it is quiet. Lanes above the aim are closed: a burst must not be paid for with connections for ever.
"""

from __future__ import annotations

LOOK_SECONDS = 1.0
"""What counts as one burst: a page with all that it embeds."""
QUIET_SECONDS = 30.0
"""How long a look must be quiet for the aim to be halved: people read a page before they go to the next."""
FIRST_BACK_OFF_SECONDS = 0.2
LONGEST_BACK_OFF_SECONDS = 15.0


class Pool:
    """Counts the idle lanes of one kind to one server, and says how many to dial.

    Each lane that `to_dial` asks for is to be reported, as `opened` or `failed`; each that opened, as
    `taken`, `lost` or `refused`. `floor` lanes are kept ready always, never more than `ceiling` idle. `now`
    is monotonic seconds.
    """

    def __init__(self, floor: int, ceiling: int) -> None:
        self.idle = 0
        self.dialling = 0
        self.failures = 0
        """Dials that failed since one last succeeded, those that failed together counted once."""
        self._floor = floor
        self._ceiling = ceiling
        self._aim = floor
        self._taken_since_look = 0
        self._looked_at: float | None = None
        self._quiet_since: float | None = None
        self._hold_until: float | None = None
        self._refusals = 0

    @property
    def aim(self) -> int:
        """How many idle lanes are wanted now."""
        return self._aim

    def opened(self) -> None:
        """A dial succeeded: one more idle lane."""
        self.dialling = max(self.dialling - 1, 0)
        self.idle += 1
        self.failures = 0
        if not self._refusals:  # else an open lane proves nothing: the ones before it were opened as well
            self._hold_until = None

    def failed(self, now: float) -> None:
        """A dial failed. The next waits 0.2 s, then twice as long each time up to 15 s, and goes alone."""
        self.dialling = max(self.dialling - 1, 0)
        if self._hold_until is None or now >= self._hold_until:
            self._back_off(self.failures, now)
            self.failures += 1

    def lost(self) -> None:
        """An idle lane was closed by the other end or by the path."""
        self.idle = max(self.idle - 1, 0)

    def refused(self, now: float) -> None:
        """An idle lane ended as soon as it was open, as `lost`; the next waits as after a failed dial."""
        self.lost()
        self._back_off(self._refusals, now)
        self._refusals += 1

    def taken(self, now: float) -> None:
        """A visitor came on an idle lane."""
        self.idle = max(self.idle - 1, 0)
        if self._refusals:
            self._refusals = 0
            self._hold_until = None
        if self._looked_at is None or now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._taken_since_look = 0
        self._taken_since_look += 1
        if self._taken_since_look >= max(self.idle, self._aim / 2):
            self._grow(2 * self._aim, now)
        elif self._taken_since_look * 4 > self._aim:
            self._quiet_since = now

    def asked(self, waiting: int, now: float) -> None:
        """The server says that visitors wait for lanes: they need one each, and so will the next as many."""
        if waiting > 0:
            self._grow(max(2 * self._aim, waiting) if waiting > self.idle + self.dialling else waiting, now)

    def to_dial(self, now: float, *, room: int | None = None) -> int:
        """How many lanes to dial now, at most `room`; they count as begun."""
        self._shrink(now)
        wanted = max(self._aim - self.idle - self.dialling, 0)
        if self._hold_until is not None:
            wanted = min(wanted, 1) if now >= self._hold_until and self.dialling == 0 else 0
        if room is not None:
            wanted = max(min(wanted, room), 0)
        self.dialling += wanted
        return wanted

    def to_close(self, now: float) -> int:
        """How many idle lanes, the oldest, to close now; they count as gone."""
        self._shrink(now)
        spare = max(self.idle - self._aim, 0)
        self.idle -= spare
        return spare

    def next_deadline(self) -> float | None:
        """When to ask `to_dial` and `to_close` again, if nothing happens before: at the end of a back-off, or
        of a quiet time.
        """
        deadlines = []
        if self._hold_until is not None and self.dialling == 0 and self._aim > self.idle:
            deadlines.append(self._hold_until)
        if self._quiet_since is not None and self._aim > self._floor:
            deadlines.append(self._quiet_since + QUIET_SECONDS)
        return min(deadlines, default=None)

    def _back_off(self, times: int, now: float) -> None:
        wait = min(FIRST_BACK_OFF_SECONDS * 2.0 ** min(times, 10), LONGEST_BACK_OFF_SECONDS)
        self._hold_until = now + wait

    def _grow(self, aim: int, now: float) -> None:
        self._aim = min(max(aim, self._aim), self._ceiling)
        self._taken_since_look = 0
        self._looked_at = self._quiet_since = now

    def _shrink(self, now: float) -> None:
        while (
            self._aim > self._floor
            and self._quiet_since is not None
            and now >= self._quiet_since + QUIET_SECONDS  # as next_deadline() says, to the last bit
        ):
            self._aim = max(self._aim // 2, self._floor)
            self._quiet_since += QUIET_SECONDS
