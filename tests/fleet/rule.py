"""The rule of publication as a model, written from its sentence alone; tests of values and of a real fleet
compare themselves with it.

"A server proved dead goes out at once, but never the last one. Silent ones go out only while at least half of
the known servers remain. Known: verified and published once, and not left, removed, revoked, or silent for
more than an hour." "A leave or a drain never removes the last address."
"""

from __future__ import annotations

FORGET_SECONDS = 3600


class Rule:
    """For each server one word (up, silent, draining, dead, left) and since when; what follows is
    computed anew each time it is asked. `now` is seconds.
    """

    def __init__(self) -> None:
        self.word: dict[str, str] = {}
        self._at: dict[str, tuple[float, int]] = {}
        self._steps = 0

    def started(self, server: str, now: float) -> None:
        """It is met, and verified. Whoever heard nobody until then was deaf: nobody was silent meanwhile."""
        if "up" not in self.word.values():
            for other, word in self.word.items():
                if word == "silent":
                    self._at[other] = (now, self._at[other][1])
        self._becomes(server, "up", now)

    def refused(self, server: str, now: float) -> bool:
        """It is proved dead. Whether that is news."""
        return self._from(("up", "silent", "draining"), server, "dead", now)

    def unheard(self, server: str, now: float) -> bool:
        """Nothing is heard of it: if it was about to go, it has gone. Whether that is news."""
        return self._from(("up",), server, "silent", now) or self._from(("draining",), server, "left", now)

    def drains(self, server: str, now: float) -> bool:
        """It said that it will go. Whether that is news."""
        return self._from(("up", "silent"), server, "draining", now)

    def left(self, server: str, now: float) -> bool:
        """It said that it goes. Whether that is news."""
        return self._from(("up", "silent", "draining", "dead"), server, "left", now)

    def removed(self, server: str) -> None:
        """The operator took it out."""
        self.word.pop(server, None)

    def time_passes(self, now: float) -> None:
        """What was not heard for an hour, while another was, is not known any more."""
        if "up" in self.word.values():
            for server, word in list(self.word.items()):
                if word not in ("up", "draining") and now - self._at[server][0] > FORGET_SECONDS:
                    del self.word[server]

    def restarted(self, now: float) -> None:
        """The nameserver begins with what it published last, and has not asked anybody yet."""
        published = self.published()
        self.word = {}
        for server in sorted(published, key=lambda server: self._at[server][1]):
            self._becomes(server, "up", now)

    def published(self) -> set[str]:
        """The servers in the records."""
        up = {server for server, word in self.word.items() if word == "up"}
        silent = {server for server, word in self.word.items() if word == "silent"}
        draining = {server for server, word in self.word.items() if word == "draining"}
        known = {server for server, word in self.word.items() if word not in ("left", "draining")}
        chosen = up if len(up) >= len(known) / 2 else up | silent
        chosen |= set() if up else draining
        return chosen or self.last_to_go()

    def last_to_go(self) -> set[str]:
        """Where nobody is heard, and nobody merely silent: the one that went last."""
        return {max(self.word, key=lambda server: self._at[server][1])} if self.word else set()

    def _from(self, words: tuple[str, ...], server: str, word: str, now: float) -> bool:
        if self.word.get(server) not in words:
            return False
        self._becomes(server, word, now)
        return True

    def _becomes(self, server: str, word: str, now: float) -> None:
        self._steps += 1
        self.word[server] = word
        self._at[server] = (now, self._steps)
