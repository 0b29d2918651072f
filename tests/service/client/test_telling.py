"""What servers are told: those of now, and those that are joined later."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from appliance.service.client.telling import Said, Telling
from appliance.tunnel.account import MAX_ISSUERS
from appliance.tunnel.session import ClientSession
from tests.service.client.issuance import NOON, Calendar

WWW = "www.example.org"
URL, OTHER = "https://ca.test/1", "https://ca.test/2"
AT = int(NOON.timestamp())


class Link(ClientSession):
    """A link whose session says nothing but what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def tell(self, say: Said) -> None:
        say(self)

    def account(self, url: str, issuers: tuple[str, ...], at: int, signature: str) -> None:
        assert signature == f"{at} {url} {issuers} by us"
        self.said.append((url, issuers, at))

    def uncertified(self, name: str, text: str, since: int) -> None:
        self.said.append((name, text, since))

    def certified(self, name: str) -> None:
        self.said.append((name,))


class Ground:
    def __init__(self) -> None:
        self.clock = Calendar()
        self.links = [Link(), Link()]
        self.telling = Telling(lambda: self.links, self._sign, self.clock.wall)

    def _sign(self, at: int, url: str, issuers: Sequence[str]) -> str:
        return f"{at} {url} {issuers} by us"

    def said(self) -> list[tuple[object, ...]]:
        """By every link the same."""
        first, *others = [link.said for link in self.links]
        assert all(other == first for other in others)
        for link in self.links:
            link.said = []
        return first


@pytest.fixture
def ground() -> Ground:
    return Ground()


def test_an_account_is_told_once_and_to_whoever_is_joined_later(ground: Ground) -> None:
    ground.telling.account(URL, ["CA.test.", "ca.test", "other.test"])
    assert ground.said() == [(URL, ("ca.test", "other.test"), AT)]
    ground.clock.advance(100)
    ground.telling.account(URL, ["ca.test", "other.test"])
    assert ground.said() == []
    later = Link()
    ground.telling.welcomed(later)
    assert later.said == [(URL, ("ca.test", "other.test"), AT)]


def test_another_account_counts_more_than_the_one_before(ground: Ground) -> None:
    ground.telling.account(URL, [])
    ground.telling.account(OTHER, [])
    assert ground.said() == [(URL, (), AT), (OTHER, (), AT + 1)]


def test_what_cannot_be_in_a_record_is_not_told(ground: Ground) -> None:
    ground.telling.account("", ["ca.test"])
    ground.telling.account("https://ca.test/1;2", ["ca.test"])
    ground.telling.account(URL, ["ca test"])
    assert ground.said() == []
    many = [f"ca{number}.test" for number in range(MAX_ISSUERS + 1)]
    ground.telling.account(URL, many)
    assert ground.said() == [(URL, tuple(many[:-1]), AT)]


def test_a_missing_certificate_is_told_until_it_is_there(ground: Ground) -> None:
    ground.telling.certified(WWW)
    ground.telling.uncertified(WWW, "no")
    ground.clock.advance(100)
    ground.telling.uncertified(WWW, "no")
    ground.telling.uncertified(WWW, "still no")
    assert ground.said() == [(WWW, "no", AT), (WWW, "still no", AT)]
    later = Link()
    ground.telling.welcomed(later)
    assert later.said == [(WWW, "still no", AT)]
    ground.telling.certified(WWW)
    ground.telling.certified(WWW)
    assert ground.said() == [(WWW,)]
    ground.telling.uncertified(WWW, "no")
    assert ground.said() == [(WWW, "no", AT + 100)]
