from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from appliance.tunnel.certificates import MAX_NAMES, SERVICE_NAME
from appliance.tunnel.liveness import HEARD_SLACK_SECONDS, PONG_SECONDS
from appliance.tunnel.messages import Goodbye, Lines, Message, Ping, Pong, Refused, Register, encode
from appliance.tunnel.session import (
    CLIENT_ROWS,
    HELLO_SECONDS,
    MAX_UNSENT_OCTETS,
    PING_SECONDS,
    SERVER_ROWS,
    AccountSaid,
    CertificateMissed,
    ChallengeDenied,
    ChallengeSaid,
    ChallengeWithdrawn,
    ClientDraining,
    ClientSession,
    Ended,
    Event,
    HelloReceived,
    LanesAsked,
    NameRefused,
    NameRegistered,
    NameUnregistered,
    Offer,
    ServerDraining,
    ServerSession,
    State,
    Welcomed,
)
from tests.effort import examples
from tests.tunnel.cuts import CUTS, cut

INSTANCE = "0123456789abcdef" * 2
SESSION = b"\x01\x02\x03\x04\x05\x06\x07\x08"
GRANT = ("www.example.org", "*.apps.example.org")
BOTH, TLS_ONLY = Offer(True, "serve"), Offer(True, "redirect")
HELLO = b'{"type":"hello","version":1,"instance":"' + INSTANCE.encode() + b'","agent":"test"}\n'
WELCOME = b'{"type":"welcome","server":"s1","boot":"b1","session":"0102030405060708","ping_seconds":5}\n'


def nonces() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"n{next(numbers)}"


def server(grant: tuple[str, ...] = GRANT, service_name: str = SERVICE_NAME) -> ServerSession:
    return ServerSession(
        peer_names=grant,
        server_id="s1",
        boot="b1",
        session_id=SESSION,
        nonce=nonces(),
        now=0.0,
        service_name=service_name,
    )


def client(**offers: Offer) -> ClientSession:
    names = {name.replace("_", "."): offer for name, offer in offers.items()}
    return ClientSession(instance=INSTANCE, offers=names, nonce=nonces(), now=0.0, agent="test")


class Wire:
    """A client and a server, and between them a wire that delivers at once, in whatever cut."""

    def __init__(self, client: ClientSession, server: ServerSession) -> None:
        self.client, self.server = client, server
        self.at_client: list[Event] = []
        self.at_server: list[Event] = []
        self.now = 0.0
        self.carry()

    def carry(self, places: list[int] | None = None) -> None:
        while True:
            up, down = self.client.data_to_send(), self.server.data_to_send()
            for piece in cut(up, places or []):
                self.at_server += self.server.receive(piece, self.now)
            for piece in cut(down, places or []):
                self.at_client += self.client.receive(piece, self.now)
            if not up and not down:
                return

    def pass_time(self, until: float) -> None:
        while True:
            deadlines = [
                d for d in (self.client.next_deadline(), self.server.next_deadline()) if d is not None
            ]
            if not deadlines or min(deadlines) > until:
                break
            self.now = max(self.now, min(deadlines))
            self.at_client += self.client.tick(self.now)
            self.at_server += self.server.tick(self.now)
            self.carry()
        self.now = until

    def events(self) -> tuple[list[Event], list[Event]]:
        seen = self.at_client, self.at_server
        self.at_client, self.at_server = [], []
        return seen


def begun(**offers: Offer) -> Wire:
    wire = Wire(client(**offers), server())
    wire.events()
    return wire


def said(session: ClientSession | ServerSession) -> list[Message]:
    return Lines().feed(session.data_to_send())


VALUE = "v" * 43


def test_a_challenge_reaches_the_server_and_is_withdrawn() -> None:
    wire = begun(www_example_org=BOTH)
    wire.client.challenge("WWW.example.org.", VALUE, 600, "sig=")
    wire.client.challenge("*.apps.example.org", VALUE, 1, "sig=")
    wire.client.challenge("a.apps.example.org", VALUE, 1, "sig=")
    wire.client.challenge_over("www.Example.org.", VALUE)
    wire.client.challenge_over("a..b", VALUE)
    wire.carry()
    assert wire.events() == (
        [],
        [
            ChallengeSaid("www.example.org", VALUE, 600, "sig="),
            ChallengeSaid("*.apps.example.org", VALUE, 1, "sig="),
            ChallengeSaid("a.apps.example.org", VALUE, 1, "sig="),
            ChallengeWithdrawn("www.example.org", VALUE),
        ],
    )


STRANGE = ("example.org", "a.www.example.org", "apps.example.org", "192.0.2.1", "a..b")


@pytest.mark.parametrize("name", STRANGE)
def test_a_challenge_of_a_name_that_is_not_granted_is_refused_and_the_link_goes_on(name: str) -> None:
    wire = begun(www_example_org=BOTH)
    wire.client.challenge(name, VALUE, 600, "sig=")
    wire.carry()
    at_client, at_server = wire.events()
    assert at_client == at_server
    (denied,) = at_client
    assert isinstance(denied, ChallengeDenied)
    assert (denied.name, denied.value) == (name, VALUE)
    assert name in denied.text
    assert wire.server.state is State.OPEN


def test_an_account_and_missing_certificates_reach_the_server() -> None:
    wire = begun(www_example_org=BOTH)
    wire.client.account("https://ca.test/1", ("ca.test",), 7, "sig=")
    wire.client.uncertified("www.example.org", "the CA says:\nno" + "x" * 400, 5)
    wire.client.uncertified("a.apps.example.org", "not yet", 6)
    wire.client.uncertified("bank.example.org", "not granted", 6)
    wire.carry()
    why = ("the CA says:?no" + "x" * 400)[:300]
    assert wire.events() == (
        [],
        [
            AccountSaid("https://ca.test/1", ("ca.test",), 7, "sig="),
            CertificateMissed("www.example.org", why),
            CertificateMissed("a.apps.example.org", "not yet"),
        ],
    )
    wire.client.certified("www.example.org")
    wire.client.certified("strange.example.org")
    wire.client.uncertified("a.apps.example.org", "still not", 6)
    wire.carry()
    assert {name: (one.text, one.since) for name, one in wire.server.uncertified.items()} == {
        "a.apps.example.org": ("still not", 6)
    }


def test_no_more_certificates_are_missing_than_there_are_names_in_a_session() -> None:
    wire = begun(www_example_org=BOTH)
    for number in range(MAX_NAMES + 1):
        wire.client.uncertified(f"n{number}.apps.example.org", "no", 1)
        wire.carry()
    wire.client.uncertified("n0.apps.example.org", "another no", 1)
    wire.carry()
    assert len(wire.server.uncertified) == MAX_NAMES
    assert wire.server.uncertified["n0.apps.example.org"].text == "another no"


def test_nothing_is_said_of_accounts_and_certificates_before_the_welcome() -> None:
    session = client(www_example_org=BOTH)
    said(session)
    session.account("https://ca.test/1", (), 7, "sig=")
    session.uncertified("www.example.org", "no", 5)
    session.certified("www.example.org")
    assert said(session) == []


def test_nothing_is_said_of_challenges_before_the_welcome() -> None:
    session = client()
    said(session)
    session.challenge("www.example.org", VALUE, 600, "sig=")
    session.challenge_over("www.example.org", VALUE)
    assert said(session) == []


def test_a_client_joins() -> None:
    wire = Wire(client(www_example_org=BOTH, evil_example=TLS_ONLY), server())
    assert wire.events() == (
        [
            Welcomed("s1", "b1", SESSION, PING_SECONDS),
            NameRegistered("www.example.org", BOTH),
            NameRefused(
                "evil.example",
                "not_granted",
                "the certificate does not grant evil.example; it grants www.example.org, *.apps.example.org",
            ),
        ],
        [
            HelloReceived(INSTANCE, "test"),
            NameRegistered("www.example.org", BOTH),
            NameRefused(
                "evil.example",
                "not_granted",
                "the certificate does not grant evil.example; it grants www.example.org, *.apps.example.org",
            ),
        ],
    )
    assert wire.server.offers == {"www.example.org": BOTH}
    assert wire.client.state is wire.server.state is State.OPEN


@given(CUTS)
@settings(max_examples=examples(50), deadline=None)
def test_any_cut_of_the_conversation_is_the_same_conversation(places: list[int]) -> None:
    ends = client(www_example_org=BOTH, evil_example=TLS_ONLY), server()
    whole = Wire(*ends).events()
    wire = Wire.__new__(Wire)
    wire.client, wire.server = client(www_example_org=BOTH, evil_example=TLS_ONLY), server()
    wire.at_client, wire.at_server, wire.now = [], [], 0.0
    wire.carry(places)
    assert wire.events() == whole


def test_names_come_and_go_while_the_link_lives() -> None:
    wire = begun(www_example_org=TLS_ONLY)
    wire.client.register("*.apps.example.org", BOTH)
    wire.client.register("www.example.org", BOTH)
    wire.carry()
    assert wire.events()[1] == [
        NameRegistered("*.apps.example.org", BOTH),
        NameRegistered("www.example.org", BOTH),
    ]
    wire.client.unregister("www.example.org")
    wire.client.unregister("never.example")
    wire.carry()
    assert wire.events() == ([], [NameUnregistered("www.example.org")])
    assert list(wire.server.offers) == ["*.apps.example.org"]


def test_a_name_taken_back_while_its_answer_is_on_its_way_is_no_event() -> None:
    wire = begun()
    wire.client.register("www.example.org", BOTH)
    wire.at_server += wire.server.receive(wire.client.data_to_send(), 0.0)
    wire.client.unregister("www.example.org")
    wire.carry()
    assert wire.events() == (
        [],
        [NameRegistered("www.example.org", BOTH), NameUnregistered("www.example.org")],
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("foo.apps.example.org", "not_granted"),
        ("apps.example.org", "not_granted"),
        ("*.example.org", "not_granted"),
        ("a..b", "bad_name"),
        ("", "bad_name"),
        ("192.0.2.1", "bad_name"),
        ("x" * 255, "bad_name"),
        (SERVICE_NAME, "service_name"),
        ("*.internal", "service_name"),
        ("Tunnel-Server.internal.", "service_name"),
    ],
)
def test_names_that_are_refused(name: str, reason: str) -> None:
    session = server((*GRANT, SERVICE_NAME, "*.internal"))
    session.receive(HELLO, 0.0)
    session.data_to_send()
    (event,) = session.receive(encode(Register(name, True, "serve")), 0.0)
    assert isinstance(event, NameRefused)
    assert event.reason == reason
    (message,) = said(session)
    assert message == Refused(event.name, reason, event.text)
    assert session.state is State.OPEN
    assert session.offers == {}


def test_an_offer_of_nothing_is_refused() -> None:
    wire = begun(www_example_org=Offer(False, "redirect"))
    assert wire.server.offers == {}
    wire.client.register("www.example.org", Offer(False, "serve"))
    wire.carry()
    assert wire.server.offers == {"www.example.org": Offer(False, "serve")}
    wire.events()
    wire.client.register("www.example.org", Offer(False, "redirect"))
    wire.carry()
    assert [type(event) for event in wire.at_server] == [NameUnregistered, NameRefused]
    assert wire.server.offers == {}


def test_an_offer_says_whether_requests_tell_who_the_visitor_is() -> None:
    wire = begun(www_example_org=Offer(False, "serve", True))
    assert wire.server.offers == {"www.example.org": Offer(False, "serve", True)}
    wire.client.register("www.example.org", Offer(False, "serve"))
    wire.carry()
    assert wire.server.offers == {"www.example.org": Offer(False, "serve")}


def test_a_session_has_a_bounded_number_of_names() -> None:
    names = [f"n{n}.example" for n in range(MAX_NAMES + 1)]
    wire = Wire(
        ClientSession(instance=INSTANCE, offers=dict.fromkeys(names, BOTH), nonce=nonces(), now=0.0),
        server(tuple(names)),
    )
    assert len(wire.server.offers) == MAX_NAMES
    refused = wire.at_client[-1]
    assert isinstance(refused, NameRefused)
    assert (refused.name, refused.reason) == (names[-1], "too_many_names")


def test_the_server_says_how_many_lanes_it_holds_and_only_the_latest() -> None:
    session = server()
    session.lanes("plain", 1, 1)
    assert session.data_to_send() == b""
    wire = Wire(client(), session)
    wire.events()
    wire.server.lanes("plain", 1, 9)
    wire.server.lanes("tls", 0, 1)
    wire.server.lanes("plain", 2, 0)
    wire.carry()
    assert wire.events() == ([LanesAsked("plain", 2, 0), LanesAsked("tls", 0, 1)], [])


def test_both_ends_may_drain() -> None:
    wire = begun(www_example_org=BOTH)
    wire.server.drain(2.5)
    wire.server.drain(9.0)
    wire.carry()
    assert wire.events() == ([ServerDraining(2.5)], [])
    wire.client.register("*.apps.example.org", BOTH)
    wire.carry()
    assert wire.events()[1] == [NameRegistered("*.apps.example.org", BOTH)]
    wire.client.drain()
    wire.client.drain()
    wire.carry()
    assert wire.events() == ([], [ClientDraining()])
    assert wire.client.state is wire.server.state is State.BOTH_DRAINING
    wire.client.unregister("www.example.org")
    wire.carry()
    assert wire.events() == ([], [NameUnregistered("www.example.org")])


def test_a_draining_client_registers_nothing() -> None:
    wire = begun()
    wire.client.drain()
    wire.client.register("www.example.org", BOTH)
    wire.carry()
    assert wire.events() == ([], [ClientDraining()])
    (event,) = wire.server.receive(encode(Register("www.example.org", True, "serve")), 0.0)
    assert event == Ended("protocol", "register came while client draining")


@pytest.mark.parametrize("leaver", ["client", "server"])
def test_a_goodbye_ends_both(leaver: str) -> None:
    wire = begun(www_example_org=BOTH)
    getattr(wire, leaver).goodbye("revoked", "the certificate was revoked")
    getattr(wire, leaver).goodbye("again", "nothing")
    wire.carry()
    ended = [Ended("revoked", "the certificate was revoked")]
    assert wire.events() == (([], ended) if leaver == "client" else (ended, []))
    for session in (wire.client, wire.server):
        assert session.state is State.ENDED
        assert session.next_deadline() is None
        assert session.tick(1e9) == []
        assert session.receive(b"garbage\n", 1e9) == []
        assert session.data_to_send() == b""
    wire.server.drain(1.0)
    wire.server.lanes("plain", 1, 1)
    wire.client.drain()
    wire.client.register("www.example.org", BOTH)
    wire.client.unregister("www.example.org")
    assert wire.client.data_to_send() == wire.server.data_to_send() == b""


def test_a_refused_link_says_why() -> None:
    session = client(www_example_org=BOTH)
    session.data_to_send()
    octets = encode(Goodbye("expired", "the certificate expired on 2026-01-01 00:00 UTC"))
    assert session.receive(octets, 0.0) == [
        Ended("expired", "the certificate expired on 2026-01-01 00:00 UTC")
    ]
    assert session.state is State.ENDED
    assert session.data_to_send() == b""


def test_another_version_is_refused_in_words() -> None:
    session, late = server(), client()
    events = session.receive(HELLO.replace(b'"version":1', b'"version":2'), 0.0)
    text = "this server speaks version 1 of the protocol, the client version 2"
    assert events == [Ended("version", text)]
    assert late.receive(session.data_to_send(), 0.0) == [Ended("version", text)]


def test_a_quiet_link_lives_by_its_pings() -> None:
    wire = begun()
    wire.pass_time(1000.0)
    assert wire.events() == ([], [])
    assert wire.client.state is wire.server.state is State.OPEN


def test_the_server_sets_the_pace() -> None:
    session = client()
    session.receive(WELCOME.replace(b'seconds":5', b'seconds":30'), 7.0)
    assert session.next_deadline() == 37.0 + HEARD_SLACK_SECONDS


@pytest.mark.parametrize("stopped", ["client", "server"])
def test_an_end_that_stopped_is_noticed(stopped: str) -> None:
    wire = begun()
    living: ClientSession | ServerSession = wire.server if stopped == "client" else wire.client
    due = PING_SECONDS if stopped == "client" else PING_SECONDS + HEARD_SLACK_SECONDS
    assert living.next_deadline() == due
    assert living.tick(due - 0.1) == []
    assert said(living) == []
    assert living.tick(due) == []
    assert said(living) == [Ping("n1")]
    assert living.next_deadline() == due + PONG_SECONDS
    assert living.tick(due + PONG_SECONDS - 0.1) == []
    assert said(living) == []
    ended = Ended("silent", "a ping was not answered in time")
    assert living.tick(due + PONG_SECONDS) == [ended]
    assert said(living) == [Goodbye("silent", "a ping was not answered in time")]


@pytest.mark.parametrize("crossed", [0, 1])
@pytest.mark.parametrize("first", ["client", "server"])
def test_of_two_ends_one_pings(first: str, crossed: int) -> None:
    """Also after pings that crossed, because both ends were late."""
    wire = begun()
    ends = {"client": wire.client, "server": wire.server}
    names = ["client", "server"] if first == "client" else ["server", "client"]
    now, sent = (5.5 if crossed else 0.0), {"client": 0, "server": 0}
    for _ in range(400):
        now += 0.1
        octets = {}
        for name in names:
            assert ends[name].tick(now) == []
            octets[name] = ends[name].data_to_send()
            sent[name] += octets[name].count(b'"ping"')
        wire.server.receive(octets["client"], now + 0.05)
        wire.client.receive(octets["server"], now + 0.05)
    assert sent["client"] == crossed
    assert sent["server"] in (7, 8, 9)


@pytest.mark.parametrize("pinging", ["client", "server"])
def test_a_server_changes_how_often_both_ping(pinging: str) -> None:
    wire = begun()
    wire.server.ping_every(30.0)
    one, other = (wire.client, wire.server) if pinging == "client" else (wire.server, wire.client)
    slack = {"client": HEARD_SLACK_SECONDS, "server": 0.0}
    own, others = slack[pinging], HEARD_SLACK_SECONDS - slack[pinging]
    assert one.tick(PING_SECONDS + own) == []
    assert other.receive(one.data_to_send(), 5.6) == []
    assert one.receive(other.data_to_send(), 5.7) == []
    assert one.next_deadline() == 35.0 + 2 * own
    assert other.next_deadline() == 5.6 + 30.0 + others + HEARD_SLACK_SECONDS
    assert one.tick(36.0) == []
    assert said(one) == [Ping("n2")]  # it is told once


def test_an_end_that_was_itself_stopped_looks_again_before_it_blames() -> None:
    wire = begun()
    wire.server.tick(5.0)
    pong = encode(Pong("n1"))
    assert wire.server.tick(60.0) == []
    assert wire.server.receive(pong, 60.1) == []
    wire.server.tick(60.1)
    wire.server.data_to_send()
    assert wire.server.tick(75.0) == []
    assert wire.server.tick(76.0) == [Ended("silent", "a ping was not answered in time")]


@pytest.mark.parametrize(("session", "words"), [(server(), "no hello"), (client(), "no welcome")])
def test_nobody_waits_for_a_first_message_for_ever(
    session: ClientSession | ServerSession, words: str
) -> None:
    session.data_to_send()
    assert session.next_deadline() == HELLO_SECONDS
    assert session.tick(HELLO_SECONDS - 0.1) == []
    ended = Ended("no_hello", f"{words} came within 5 seconds")
    assert session.tick(HELLO_SECONDS) == [ended]
    assert said(session) == [Goodbye(ended.reason, ended.text)]


REGISTER = encode(Register("www.example.org", True, "serve"))


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "a line is not JSON: JSONDecodeError"),
        (b"{}\n", "a message has no type"),
        (b"x" * 65536, "a line is longer than 65536 octets"),
        (REGISTER, "register came while opening"),
        (encode(Ping("n")), "ping came while opening"),
        (WELCOME, "welcome came while opening"),
        (encode(Refused("a.example", "x", "")), "refused came while opening"),
        (HELLO + HELLO, "hello came while open"),
        (HELLO + WELCOME, "welcome came while open"),
        (HELLO + encode(Pong("n")), "a pong came for no ping"),
        (HELLO + b'{"type":"draining"}\n{"type":"draining"}\n', "draining came while client draining"),
        (HELLO + b'{"type":"draining"}\n' + REGISTER, "register came while client draining"),
    ],
)
def test_whoever_breaks_the_protocol_is_told_once(octets: bytes, text: str) -> None:
    session = server()
    events = session.receive(octets, 0.0)
    assert events[-1] == Ended("protocol", text)
    assert said(session)[-1] == Goodbye("protocol", text)
    assert session.receive(octets, 0.0) == []
    assert session.data_to_send() == b""


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (HELLO, "hello came while opening"),
        (WELCOME + WELCOME, "welcome came while open"),
        (WELCOME + REGISTER, "register came while open"),
        (
            WELCOME + b'{"type":"registered","name":"a.example"}\n',
            "the server speaks of 'a.example', which was not registered",
        ),
        (b'{"type":"refused","reason":"x","text":"","name":"a.example"}\n', "refused came while opening"),
        (WELCOME + b'{"type":"draining"}\n{"type":"draining"}\n', "draining came while server draining"),
    ],
)
def test_a_server_that_breaks_the_protocol(octets: bytes, text: str) -> None:
    session = client()
    assert session.receive(octets, 0.0)[-1] == Ended("protocol", text)
    assert said(session)[-1] == Goodbye("protocol", text)


def test_what_comes_before_garbage_counts() -> None:
    events = server().receive(HELLO + REGISTER + b"garbage\n", 0.0)
    assert [type(event) for event in events] == [HelloReceived, NameRegistered, Ended]


def test_messages_of_a_later_version_are_passed_over() -> None:
    wire = begun()
    octets = b'{"type":"of_later","token":"x"}\n' + encode(Ping("n"))
    assert wire.server.receive(octets, 0.0) == []
    assert said(wire.server) == [Pong("n")]


def test_who_asks_and_does_not_read_is_ended() -> None:
    wire = begun()
    pings = encode(Ping("n" * 64)) * 1000
    for _ in range(10):
        events = wire.server.receive(pings, 0.0)
        if events:
            break
    assert events == [Ended("slow", f"more than {MAX_UNSENT_OCTETS} octets waited for the other end to read")]
    assert [type(message) for message in said(wire.server)] == [Goodbye]


@given(
    st.lists(st.sampled_from([HELLO, REGISTER, WELCOME, b"x", b"\n", encode(Ping("n")), b"{}"]), max_size=6),
    CUTS,
)
@settings(max_examples=examples(100), deadline=None)
def test_any_octets_in_any_cut_end_in_the_same_state(pieces: list[bytes], places: list[int]) -> None:
    octets = b"".join(pieces)
    whole, parts = server(), server()
    events = whole.receive(octets, 0.0)
    assert [event for piece in cut(octets, places) for event in parts.receive(piece, 0.0)] == events
    assert parts.state is whole.state
    assert parts.data_to_send() == whole.data_to_send()


class TwoHonestEnds(RuleBasedStateMachine):
    """Whatever two honest ends do, and however late it arrives, neither breaks the protocol."""

    @initialize(steps=st.integers(0, 3))
    def begin(self, steps: int) -> None:
        for _ in range(steps):
            self.carry_up(1000)
            self.carry_down(1000)

    NAMES = st.sampled_from([GRANT[0], "evil.example"])
    OFFERS = st.sampled_from([BOTH, TLS_ONLY, Offer(False, "redirect")])

    def __init__(self) -> None:
        super().__init__()
        self.client, self.server = client(), server()
        self.up, self.down = bytearray(), bytearray()
        self.now = 0.0
        self.wanted: dict[str, Offer] = {}
        self.drained = False
        self.ended: list[Ended] = []

    @rule(name=NAMES, offer=OFFERS)
    def register(self, name: str, offer: Offer) -> None:
        self.client.register(name, offer)
        self.wanted[name] = offer

    @rule(name=NAMES)
    def unregister(self, name: str) -> None:
        self.client.unregister(name)
        self.wanted.pop(name, None)

    @rule(what=st.sampled_from(["lanes", "lanes", "server drains", "client drains"]))
    def say(self, what: str) -> None:
        if what == "lanes":
            self.server.lanes("plain", 1, 0)
        elif what == "server drains":
            self.server.drain(1.0)
        else:
            self.client.drain()
            self.drained = self.drained or self.client.state is not State.OPENING

    @rule(octets=st.integers(1, 400))
    def carry_up(self, octets: int) -> None:
        self.up += self.client.data_to_send()
        self._saw(self.server.receive(bytes(self.up[:octets]), self.now))
        del self.up[:octets]

    @rule(octets=st.integers(1, 400))
    def carry_down(self, octets: int) -> None:
        self.down += self.server.data_to_send()
        self._saw(self.client.receive(bytes(self.down[:octets]), self.now))
        del self.down[:octets]

    @rule(later=st.floats(0.1, 0.3))
    def time_passes(self, later: float) -> None:
        self.now += later
        self._saw(self.client.tick(self.now))
        self._saw(self.server.tick(self.now))

    def teardown(self) -> None:
        for _ in range(4):
            self.carry_up(1 << 20)
            self.carry_down(1 << 20)
        assert not [ended for ended in self.ended if ended.reason not in ("silent", "no_hello")]
        if not self.ended and not self.drained:
            assert self.server.offers == {
                name: offer for name, offer in self.wanted.items() if name in GRANT and offer.tls
            }

    def _saw(self, events: list[Event]) -> None:
        self.ended += [event for event in events if isinstance(event, Ended)]


def test_two_honest_ends() -> None:
    run_state_machine_as_test(
        TwoHonestEnds, settings=settings(max_examples=examples(80), stateful_step_count=20, deadline=None)
    )


def test_the_tables_leave_no_way_back() -> None:
    order = list(State)
    for rows in (SERVER_ROWS, CLIENT_ROWS):
        for (before, _), after in rows.items():
            assert before is not State.ENDED
            assert after is before or order.index(after) > order.index(before)
