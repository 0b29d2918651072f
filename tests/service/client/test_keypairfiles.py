"""Files of certificates that somebody else writes, at any moment and in any order."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from appliance.service.client.keypairfiles import LOOK_SECONDS, KeypairFiles
from appliance.service.client.keypairs import Keypairs
from appliance.service.client.tickets import Tickets
from tests.certificates import Pems, issue
from tests.effort import examples
from tests.service.client.test_visits import log_of

CA = trustme.CA()
FIRST = issue(CA, "www.example.com", "two.example.com")
SECOND = issue(CA, "www.example.com", "two.example.com")
OTHER = issue(CA, "other.example.com")
WWW = "www.example.com"


class Watched:
    def __init__(self, directory: Path, *names: str) -> None:
        self.certificate, self.key = directory / "fullchain.pem", directory / "privkey.pem"
        self.clock = Clock()
        tickets = Tickets(directory / "state")
        tickets.renew(datetime.now(UTC))
        self.keypairs = Keypairs(tickets)
        files = dict.fromkeys(names or (WWW,), (self.certificate, self.key))
        self.files = KeypairFiles(self.clock, self.keypairs, files)

    def write(self, pems: Pems) -> None:
        pems.write(self.certificate, self.key)

    def look(self, times: int = 2) -> None:
        for _ in range(times):
            self.clock.advance(LOOK_SECONDS)

    def shows(self, pems: Pems, name: str = WWW) -> bool:
        return self.keypairs.current.get(name) == pems.pair


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    yield made
    made.files.stop()
    assert not made.clock.getDelayedCalls()


@pytest.fixture
def lines() -> Iterator[list[str]]:
    with log_of("appliance.service.client.keypairfiles") as lines:
        yield lines


def test_what_is_there_is_in_use_at_once(watched: Watched, lines: list[str]) -> None:
    watched.write(FIRST)
    watched.files.start()
    assert watched.shows(FIRST)
    expires = FIRST.pair.expires
    assert lines == [
        f"{WWW}: the certificate in {watched.certificate} is in use, good until {expires:%Y-%m-%d}"
    ]
    watched.look(5)
    assert len(lines) == 1


def test_what_is_awaited_is_said_once(watched: Watched, lines: list[str]) -> None:
    watched.files.start()
    watched.look(5)
    alert = "until it is right, visitors by TLS get an alert"
    assert lines == [f"{WWW}: {watched.certificate} is awaited: it is not there yet; {alert}"]
    assert not watched.keypairs.current
    watched.certificate.write_bytes(FIRST.certificate)
    watched.look(5)
    assert lines[1:] == [f"{WWW}: {watched.key} is awaited: it is not there yet; {alert}"]
    watched.write(FIRST)
    watched.look()
    assert watched.shows(FIRST)
    assert "is in use" in lines[2]


def test_a_newer_one_is_taken_within_two_looks(watched: Watched) -> None:
    watched.write(FIRST)
    watched.files.start()
    watched.look()
    watched.write(SECOND)
    watched.look(1)
    assert watched.shows(FIRST)
    watched.look(1)
    assert watched.shows(SECOND)


def test_behind_a_symbolic_link(watched: Watched) -> None:
    """As certbot has them: live/…/fullchain.pem leads to archive/…/fullchain7.pem."""
    directory = watched.certificate.parent
    for number, pems in enumerate((FIRST, SECOND)):
        pems.write(directory / f"c{number}", directory / f"k{number}")
    watched.certificate.symlink_to(directory / "c0")
    watched.key.symlink_to(directory / "k0")
    watched.files.start()
    assert watched.shows(FIRST)
    for link, target in ((watched.certificate, "c1"), (watched.key, "k1")):
        link.unlink()
        link.symlink_to(directory / target)
    watched.look()
    assert watched.shows(SECOND)


def test_a_file_that_is_written_to_is_read_when_it_is_left_alone(watched: Watched, lines: list[str]) -> None:
    watched.write(FIRST)
    watched.files.start()
    for end in range(100, len(SECOND.certificate), 100):
        watched.certificate.write_bytes(SECOND.certificate[:end])
        watched.look(1)
    watched.write(SECOND)
    watched.look()
    assert watched.shows(SECOND)
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        (SECOND.certificate[:500], FIRST.key, "{certificate} is cut off"),
        (SECOND.certificate, FIRST.key, "{key} is not the key of the first certificate"),
        (FIRST.certificate, b"", "{key} holds no private key in PEM that can be read whole"),
        (OTHER.certificate, OTHER.key, "{certificate} is not for www.example.com but for other.example.com"),
    ],
    ids=["cut off", "another's key", "no key", "another name"],
)
def test_what_is_wrong_leaves_the_old_one_in_use(
    watched: Watched, lines: list[str], certificate: bytes, key: bytes, words: str
) -> None:
    watched.write(FIRST)
    watched.files.start()
    Pems(certificate, key).write(watched.certificate, watched.key)
    watched.look(5)
    assert watched.shows(FIRST)
    at_fault = words.format(certificate=watched.certificate, key=watched.key)
    assert lines[1:] == [f"{WWW}: {at_fault}; the certificate before it stays in use"]
    watched.write(SECOND)
    watched.look()
    assert watched.shows(SECOND)
    assert "is in use" in lines[2]


def test_the_old_one_again_ends_the_complaint(watched: Watched, lines: list[str]) -> None:
    watched.write(FIRST)
    watched.files.start()
    watched.certificate.write_bytes(b"")
    watched.look()
    watched.write(FIRST)
    watched.look()
    assert ["stays in use" in line for line in lines] == [False, True, False]


def test_a_key_that_everybody_can_read_is_refused(watched: Watched, lines: list[str]) -> None:
    watched.write(FIRST)
    watched.key.chmod(0o644)
    watched.files.start()
    assert not watched.keypairs.current
    assert f"{watched.key} can be read by everybody: chmod o-r {watched.key}" in lines[0]
    watched.key.chmod(0o640)
    watched.look()
    assert watched.shows(FIRST)


def test_a_directory_for_a_file(watched: Watched, lines: list[str]) -> None:
    watched.certificate.mkdir()
    watched.files.start()
    assert f"{watched.certificate} cannot be read: Is a directory" in lines[0]


def test_somebody_says_that_it_is_right_now(watched: Watched) -> None:
    watched.write(FIRST)
    watched.files.start()
    watched.write(SECOND)
    watched.files.read_now()
    assert watched.shows(SECOND)


def test_one_pair_for_several_names(tmp_path: Path, lines: list[str]) -> None:
    watched = Watched(tmp_path, WWW, "two.example.com", "three.example.com")
    watched.write(FIRST)
    watched.files.start()
    assert watched.shows(FIRST)
    assert watched.shows(FIRST, "two.example.com")
    assert set(watched.keypairs.current) == {WWW, "two.example.com"}
    assert "is not for three.example.com" in lines[2]
    watched.files.stop()


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["certificate", "key", "both", "look"]),
            st.sampled_from([FIRST, SECOND, OTHER]),
            st.floats(0, 1),
        ),
        max_size=12,
    )
)
def test_whatever_is_written_when_one_good_pair_is_shown_for_good(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Pems, float]]
) -> None:
    """From the first good pair on there is always one, it is for the name, and the last whole one wins."""
    watched = Watched(tmp_path_factory.mktemp("files"))
    watched.write(FIRST)
    watched.files.start()
    for what, pems, part in steps:
        if what in ("certificate", "both"):
            watched.certificate.write_bytes(pems.certificate[: int(len(pems.certificate) * part)])
        if what in ("key", "both"):
            watched.key.write_bytes(pems.key[: int(len(pems.key) * part)])
        if what == "look":
            watched.look(1)
        assert watched.shows(FIRST) or watched.shows(SECOND)
    watched.write(SECOND)
    watched.look()
    assert watched.shows(SECOND)
    watched.files.stop()
