"""On what terms answers go out: cookies, the rate limit, NSID and extended errors, as a client sees them."""

from __future__ import annotations

import struct

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import numbers
from appliance.dns.cookies import Cookies
from appliance.dns.counts import OTHER, Kind
from appliance.dns.gate import Gate
from appliance.dns.names import from_text
from appliance.dns.ratelimit import RateLimit
from appliance.dns.responder import Counted, Dropped, Responder
from tests.dns.asking import opt, outcome, query, zone
from tests.effort import examples

APEX = from_text("example.test")
ZONE = zone(
    "www A 192.0.2.7\n*.apps A 192.0.2.8\nfour A 192.0.2.1\n A 192.0.2.2\n A 192.0.2.3\n A 192.0.2.4\n"
    + "".join(f'wide TXT "{"x" * 90}{number}"\n' for number in range(10))
)
CLIENT = b"abcdefgh"


def cookie(octets: bytes = CLIENT) -> bytes:
    """A COOKIE option."""
    return struct.pack("!HH", 10, len(octets)) + octets


def gate(rate: int | None = None, slip: int = 2, **more: object) -> Gate:
    return Gate(cookies=Cookies([bytes(16)]), rate_limit=RateLimit(rate, slip) if rate else None, **more)  # type: ignore[arg-type]


def read(octets: object) -> dns.message.Message:
    assert isinstance(octets, bytes)
    return dns.message.from_wire(octets)


def given_cookie(answer: dns.message.Message) -> bytes:
    (found,) = (option for option in answer.options if option.otype == dns.edns.OptionType.COOKIE)
    return found.to_wire() or b""


@pytest.mark.parametrize("udp", [True, False])
@pytest.mark.parametrize("name", ["www.example.test", "nothing.example.test", "WwW.example.test"])
def test_an_answer_to_a_cookie_is_the_answer_and_a_cookie(name: str, udp: bool) -> None:
    """Composed, finished, and whatever options came beside it."""
    served = Responder([ZONE], gate=gate())
    for _ in range(2):
        plain = read(outcome(Responder([ZONE]), query(name, edns=opt()), udp=udp))
        for options in (cookie(), cookie() + b"\0\x0c\0\0", b"\0\x0c\0\0" + cookie()):
            answer = read(outcome(served, query(name, edns=opt(options=options)), udp=udp))
            assert given_cookie(answer)[:8] == CLIENT
            assert len(given_cookie(answer)) == 24
            assert (answer.answer, answer.authority, answer.rcode()) == (
                plain.answer,
                plain.authority,
                plain.rcode(),
            )
            again = cookie(given_cookie(answer))
            returned = read(outcome(served, query(name, edns=opt(options=again)), udp=udp))
            assert given_cookie(returned) == given_cookie(answer)
        assert not read(outcome(served, query(name, edns=opt()), udp=udp)).options
        assert read(outcome(served, query(name), udp=udp)).edns == -1


@pytest.mark.parametrize("payload", [512, 1100, 1140, 1150, 1165, 1175, 1232, 4096])
def test_a_cookie_makes_no_answer_too_long(payload: int) -> None:
    served = Responder([ZONE], gate=gate(nsid=b"ns1"))
    for options in (cookie(), cookie() + b"\0\3\0\0"):
        for _ in range(2):
            octets = outcome(served, query("wide.example.test", "TXT", edns=opt(payload, options=options)))
            answer = read(octets)
            assert isinstance(octets, bytes)
            assert len(octets) <= min(payload, 1232)
            assert given_cookie(answer)
            assert bool(answer.flags & dns.flags.TC) is not bool(answer.answer)


@pytest.mark.parametrize("size", [0, 1, 7, 9, 15, 41])
def test_a_cookie_of_no_size_is_a_format_error(size: int) -> None:
    asked = query("www.example.test", edns=opt(options=cookie(bytes(size))))
    assert read(outcome(Responder([ZONE], gate=gate()), asked)).rcode() == dns.rcode.FORMERR
    assert read(outcome(Responder([ZONE]), asked)).rcode() == dns.rcode.NOERROR  # cookies are off


def test_refusals_carry_the_cookie_too() -> None:
    served = Responder([ZONE], gate=gate())
    for asked in (
        query("www.example.com", edns=opt(options=cookie())),
        query("a.test", qclass=3, edns=opt(options=cookie())),
    ):
        answer = read(outcome(served, asked))
        assert answer.rcode() == dns.rcode.REFUSED
        assert given_cookie(answer)


def test_asking_for_a_cookie_alone() -> None:
    """RFC 7873 5.4."""
    served = Responder([ZONE], gate=gate())

    def ask(octets: bytes) -> dns.message.Message:
        return read(outcome(served, struct.pack("!6H", 7, 0, 0, 0, 0, 1) + opt(options=cookie(octets))))

    first = ask(CLIENT)
    assert (first.id, first.rcode(), first.question) == (7, dns.rcode.NOERROR, [])
    good = given_cookie(first)
    assert ask(good).rcode() == dns.rcode.NOERROR
    assert ask(good[:-1] + b"x").rcode() == dns.rcode.BADCOOKIE
    assert ask(b"short").rcode() == dns.rcode.FORMERR


def answers(served: Responder, asked: bytes, count: int, **how: object) -> list[object]:
    return [outcome(served, asked, **how) for _ in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "asked",
    [
        query("www.example.test"),
        query("nothing.example.test"),
        query("elsewhere.test"),
        query("www.example.test", flags=0x2000),
        query("www.example.test") + b"x",
    ],
)
def test_the_rate_limit(asked: bytes) -> None:
    served = Responder([ZONE], gate=gate(50))
    found = answers(served, asked, 225)
    assert found.count(Dropped.OVER_LIMIT) == 50
    assert served.counters[Dropped.OVER_LIMIT] == 50
    assert all(isinstance(octets, bytes) for octets in found[:125])
    slipped = [octets for octets in found[125:] if octets is not Dropped.OVER_LIMIT]
    assert len(slipped) == 50
    for octets in slipped:
        assert isinstance(octets, bytes)
        assert len(octets) <= len(asked), "no amplification"
        assert read(octets).flags & dns.flags.TC or read(octets).rcode() != dns.rcode.NOERROR
    assert all(isinstance(one, bytes) for one in answers(served, asked, 300, udp=False)), "not over TCP"
    assert all(isinstance(one, bytes) for one in answers(served, asked, 125, source="192.0.2.99"))


def test_names_that_do_not_exist_and_a_wildcards_are_one_answer() -> None:
    for names in ("{}.example.test", "{}.apps.example.test"):
        served = Responder([ZONE], gate=gate(50, slip=0))
        found = [outcome(served, query(names.format(number))) for number in range(300)]
        assert found.count(Dropped.OVER_LIMIT) == 175


@pytest.mark.parametrize("warm", [True, False])
def test_a_cookie_lifts_the_limit(warm: bool) -> None:
    served = Responder([ZONE], gate=gate(50))
    if warm:
        outcome(served, query("www.example.test", edns=opt()))
    asked = query("www.example.test", edns=opt(options=cookie()))
    found = answers(served, asked, 300)
    held_back = [read(one) for one in found if one is not Dropped.OVER_LIMIT][-1]
    assert held_back.rcode() == dns.rcode.BADCOOKIE
    assert not held_back.flags & dns.flags.TC
    good = query("www.example.test", edns=opt(options=cookie(given_cookie(held_back))))
    assert all(read(one).answer for one in answers(served, good, 300))
    assert Dropped.OVER_LIMIT in answers(served, good, 300, source="192.0.2.77"), "it is not his"


def test_nsid() -> None:
    asked = query("www.example.test", edns=opt(options=b"\0\3\0\0"))
    (option,) = read(outcome(Responder([ZONE], gate=Gate(nsid=b"ns1")), asked)).options
    assert option.otype == dns.edns.OptionType.NSID
    assert option.to_wire() == b"ns1"
    assert not read(
        outcome(Responder([ZONE], gate=Gate(nsid=b"ns1")), query("www.example.test", edns=opt()))
    ).options
    assert not read(outcome(Responder([ZONE]), asked)).options


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (query("elsewhere.test", edns=opt()), numbers.NOT_AUTHORITATIVE),
        (query("version.bind", "TXT", qclass=3, edns=opt()), numbers.NOT_SUPPORTED),
        (query("www.example.test", edns=opt()), None),
        (query("elsewhere.test"), None),
        (query("www.example.test", edns=opt(version=1)), None),
    ],
)
def test_extended_errors(asked: bytes, code: int | None) -> None:
    options = read(outcome(Responder([ZONE], gate=Gate(explain=True)), asked)).options
    assert [option.code for option in options if isinstance(option, dns.edns.EDEOption)] == (
        [code] if code else []
    )
    assert not read(outcome(Responder([ZONE]), asked)).options


def test_counts() -> None:
    served = Responder([ZONE], gate=gate(50, slip=0))
    for _ in range(3):
        outcome(served, query("www.example.test"))
        outcome(served, query("www.example.test", edns=opt(options=cookie())))
        outcome(served, query("www.example.test"), udp=False)
        outcome(served, query("nothing.example.test", "TXT"))
        outcome(served, query("www.example.test", "TYPE65333"))
        outcome(served, query("elsewhere.test"))
        outcome(served, b"short")
    assert served.answers == {
        Kind(APEX, numbers.A, numbers.NOERROR, True): 6,
        Kind(APEX, numbers.A, numbers.NOERROR, False): 3,
        Kind(APEX, numbers.TXT, numbers.NXDOMAIN, True): 3,
        Kind(APEX, OTHER, numbers.NOERROR, True): 3,
        Kind(None, OTHER, numbers.REFUSED, True): 3,
    }
    assert served.counters[Dropped.TOO_SHORT] == 3
    for _ in range(300):
        outcome(served, query("www.example.test"))
    everything = sum(served.answers.values()) + served.counters[Dropped.OVER_LIMIT] + 3
    assert everything == 21 + 300, "each message is in one count"


def test_rotation() -> None:
    def firsts(served: Responder, name: str, idents: range) -> list[str]:
        found = (read(outcome(served, query(name, ident=ident))).answer[0] for ident in idents)
        return [str(rrset[0]) for rrset in found]

    still = firsts(Responder([ZONE]), "four.example.test", range(24))
    assert set(still) == {"192.0.2.1"}
    served = Responder([ZONE], rotate=True)
    for _ in range(2):
        assert sorted(firsts(served, "four.example.test", range(24))) == sorted(
            [f"192.0.2.{last}" for last in range(1, 5)] * 6
        )
    composed = served.counters[Counted.COMPOSED]
    firsts(served, "four.example.test", range(100))
    assert served.counters[Counted.COMPOSED] == composed, "rotated answers are in tables, too"
    served.replace(zone("four A 192.0.2.9\n"))
    assert set(firsts(served, "four.example.test", range(24))) == {"192.0.2.9"}


def test_a_flood_of_random_names_leaves_memory_as_it_is() -> None:
    served = Responder([ZONE], gate=gate(50))
    for number in range(40_000):
        outcome(
            served,
            query(f"n{number}.example.test"),
            source=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
        )
    assert len(served._table) <= 32_768
    assert len(served.answers) == 1


OPTIONS = st.lists(
    st.one_of(
        st.sampled_from((cookie(), b"\0\3\0\0", b"\0\x0c\0\1x", b"\0\x0a\0", cookie(bytes(24)))),
        st.binary(max_size=9),
    ),
    max_size=4,
).map(b"".join)


@settings(max_examples=examples(200), deadline=None)
@given(OPTIONS, st.integers(0, 65535), st.booleans(), st.booleans())
def test_no_options_make_it_fail(options: bytes, payload: int, udp: bool, warm: bool) -> None:
    """And they change nothing but the options of the answer."""
    served = Responder([ZONE], gate=gate(50, nsid=b"ns1", explain=True), rotate=True)
    if warm:
        outcome(served, query("www.example.test", edns=opt(payload)), udp=udp)
    octets = outcome(served, query("www.example.test", edns=opt(payload, options=options)), udp=udp)
    assert Counted.FAULT not in served.counters
    answer = read(octets)
    assert answer.rcode() in (dns.rcode.NOERROR, dns.rcode.FORMERR)
    assert (answer.rcode() == dns.rcode.NOERROR) is bool(answer.answer)
