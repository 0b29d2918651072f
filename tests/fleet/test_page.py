"""The section "Watch" of docs/reference/protocol.md is the specification: what it shows is what is said."""

from __future__ import annotations

import re
from pathlib import Path

from appliance.fleet import check, messages, pulse, watch
from appliance.fleet.events import SnapshotTaken
from appliance.tunnel.certificates import Peer, read_peer
from tests.tunnel.authority import CLIENT

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "protocol.md").read_text()
SECTION = PAGE[PAGE.index("\n## Watch\n") : PAGE.index("\n## Bounds\n")]


def conversation() -> list[tuple[str, bytes]]:
    (block,) = re.findall(r"```text watch\n(.*?)```", SECTION, re.DOTALL)
    return [(line[0], line[2:].encode() + b"\n") for line in block.splitlines()]


def test_every_line_is_what_the_program_reads_and_writes() -> None:
    for who, octets in conversation():
        if who == "S":
            (by_server,) = messages.ServerLines().feed(octets)
            assert messages.BY_SERVER.encode(by_server) == octets
        else:
            (by_nameserver,) = messages.NameserverLines().feed(octets)
            assert messages.BY_NAMESERVER.encode(by_nameserver) == octets


def test_the_conversation_is_one_that_both_ends_lead() -> None:
    nonces = iter(["00f1e2d3c4b5a697"])

    def judge(_certificate: object) -> Peer:
        return read_peer(CLIENT.certificate)

    observer = watch.Observer("ns1", lambda: next(nonces), 0.0, server_id="s1", examine=judge)
    shown = messages.shown(CLIENT.certificate)
    heard = []
    for who, octets in conversation():
        if who == "N":
            if b"known" in octets:
                observer.know(["www.example.org", "*.apps.example.org", "old.example.org"])
            elif b"ping" in octets:
                observer.tick(3.0)
            assert observer.data_to_send() == octets
        else:
            if b'"certificate"' in octets:
                octets = messages.BY_SERVER.encode(shown)
            octets = re.sub(rb"[0-9a-f]{64}", shown.fingerprint.encode(), octets)
            heard += observer.receive(octets, 2.0)
    assert observer.state is watch.WatchState.WATCHING
    assert {name for event in heard if isinstance(event, SnapshotTaken) for name in event.names} == {
        "www.example.org",
        "*.apps.example.org",
    }


def test_its_numbers_are_the_programs() -> None:
    for sentence in (
        f"`addresses`, at most {messages.MAX_ADDRESSES}",
        f"`pem` at most {messages.MAX_PEM_CHARACTERS:,} characters",
        f"`names`, at most {messages.MAX_NAMES_IN_MESSAGE}",
        f"within {watch.SNAPSHOT_SECONDS:g} seconds",
        f"a `ping` every {pulse.PING_SECONDS:g} seconds",
        f"for {pulse.SILENCE_SECONDS:g} seconds",
        f"not answered within {pulse.PONG_SECONDS:g}",
        f"{check.DIAL_INTERVAL_SECONDS:g} seconds apart",
        f"within {check.SILENT_SECONDS:g} seconds",
    ):
        assert sentence in SECTION.replace("\n", " "), sentence
