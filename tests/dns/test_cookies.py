"""Cookies: the vectors of RFC 9018, who is believed and for how long, and that nothing grows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns.cookies import (
    MAX_AGE_SECONDS,
    MAX_AHEAD_SECONDS,
    MAX_REMEMBERED,
    MAX_SECRETS,
    OPTION_OCTETS,
    PERIOD_SECONDS,
    REMEMBERED_SECONDS,
    RENEWAL_AGE_SECONDS,
    Cookies,
    CookieSecretsRefused,
    Function,
    is_cookie,
    read_secrets,
)
from tests.effort import examples

CLIENT = b"abcdefgh"
WALL = 1_800_000_000.0
SOURCE = "192.0.2.1"


def cookies(*secrets: int, function: Function = Function.BLAKE2S) -> Cookies:
    return Cookies([bytes((number,)) * 16 for number in secrets or (1,)], function)


def made(by: Cookies, source: str = SOURCE, wall: float = WALL, cookie: bytes = CLIENT) -> bytes:
    """The cookie that comes back."""
    rdata = by.verdict(source, cookie, wall).rdata
    assert rdata[:6] == b"\0\x1c\0\x0a\0\x18"
    assert len(rdata) == 2 + OPTION_OCTETS
    return rdata[6:]


def is_valid(by: Cookies, cookie: bytes, source: str = SOURCE, wall: float = WALL) -> bool:
    return by.verdict(source, cookie, wall).valid


# RFC 9018, Appendix A: (secret, client's address, time, cookie sent, cookie that comes back, valid)
VECTORS = [
    (
        *("e5e973e5a6b2a43f48e7dc849e37bfcf", "198.51.100.100", 1559731985, "2464c4abcf10c957"),
        *("2464c4abcf10c957010000005cf79f111f8130c3eee29480", False),
    ),
    (
        *("e5e973e5a6b2a43f48e7dc849e37bfcf", "198.51.100.100", 1559734385),
        "2464c4abcf10c957010000005cf79f111f8130c3eee29480",
        *("2464c4abcf10c957010000005cf7a871d4a564a1442aca77", True),
    ),
    (
        *("e5e973e5a6b2a43f48e7dc849e37bfcf", "203.0.113.203", 1559727985),
        "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5",
        *("fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5", True),
    ),
    (
        *("dd3bdf9344b678b185a6f5cb60fca715", "2001:db8:220:1:59de:d0f4:8769:82b8", 1559741961),
        "22681ab97d52c298010000005cf7c57926556bd0934c72f8",
        *("22681ab97d52c298010000005cf7c57926556bd0934c72f8", True),
    ),
]


@pytest.mark.parametrize(("secret", "source", "wall", "sent", "back", "valid"), VECTORS)
def test_rfc_9018(secret: str, source: str, wall: int, sent: str, back: str, valid: bool) -> None:
    verdict = Cookies([bytes.fromhex(secret)], Function.SIPHASH).verdict(source, bytes.fromhex(sent), wall)
    assert verdict.rdata[6:].hex() == back
    assert verdict.valid is valid
    assert verdict.option == verdict.rdata[2:]


def test_rfc_9018_rolled_over() -> None:
    """A.4: the cookie of a secret that has been replaced is believed, and answered with the new one's."""
    old, new = (VECTORS[3][0], "445536bcd2513298075a5d379663c962")
    both = Cookies([bytes.fromhex(new), bytes.fromhex(old)], Function.SIPHASH)
    sent = bytes.fromhex("22681ab97d52c298010000005cf7c57926556bd0934c72f8")
    verdict = both.verdict(VECTORS[3][1], sent, 1559741961)
    assert verdict.valid
    assert verdict.option[4:].hex() == "22681ab97d52c298010000005cf7c609a6bb79d16625507a"


@pytest.mark.parametrize("function", Function)
def test_what_was_given_is_believed_and_nothing_else(function: Function) -> None:
    ours = cookies(function=function)
    cookie = made(ours)
    assert cookie[:8] == CLIENT
    assert cookie[8:12] == bytes((function.value, 0, 0, 0))
    assert is_valid(ours, cookie)
    assert not is_valid(ours, CLIENT)
    assert not is_valid(ours, cookie, "192.0.2.2")
    assert not is_valid(ours, cookie, "2001:db8::1")
    assert not is_valid(cookies(2, function=function), cookie)
    for at in range(len(cookie)):
        assert not is_valid(ours, cookie[:at] + bytes((cookie[at] ^ 1,)) + cookie[at + 1 :]), at
    assert not is_valid(ours, cookie[:-1])
    assert not is_valid(ours, cookie + b"x")


@pytest.mark.parametrize(
    ("age", "valid", "renewed"),
    [
        (0, True, False),
        (RENEWAL_AGE_SECONDS, True, False),
        (RENEWAL_AGE_SECONDS + 1, True, True),
        (MAX_AGE_SECONDS, True, True),
        (MAX_AGE_SECONDS + 1, False, True),
        (-MAX_AHEAD_SECONDS, True, False),
        (-MAX_AHEAD_SECONDS - 1, False, True),
    ],
)
def test_age(age: int, valid: bool, renewed: bool) -> None:
    for wall in (WALL, 2.0**32 + 100):  # and when 32 bits have overflowed
        cookie = made(cookies(), wall=wall - age)
        ours = cookies()
        assert is_valid(ours, cookie, wall=wall) is valid
        assert (made(ours, wall=wall, cookie=cookie) != cookie) is renewed


def test_a_secret_is_replaced_without_a_break() -> None:
    cookie = made(cookies(1))
    assert is_valid(cookies(2, 1), cookie)
    assert made(cookies(2, 1)) == made(cookies(2))
    running = cookies(1)
    assert is_valid(running, cookie)
    running.renew([bytes((2,)) * 16])
    assert not is_valid(running, cookie)


def test_the_key_is_another_every_day() -> None:
    midnight = WALL // PERIOD_SECONDS * PERIOD_SECONDS
    before, after = made(cookies(), wall=midnight - 1), made(cookies(), wall=midnight)
    ours = cookies()
    assert is_valid(ours, before, wall=midnight)
    assert is_valid(ours, after, wall=midnight)
    assert len(ours._hash._keyed) == 2  # type: ignore[attr-defined]
    for day in range(100):
        made(ours, wall=WALL + day * PERIOD_SECONDS)
    assert len(ours._hash._keyed) <= 2 * MAX_SECRETS  # type: ignore[attr-defined]


def test_what_is_remembered_ends() -> None:
    """A verdict is remembered for less than a cookie's life may be wrong by, whichever way the clock goes."""
    ours = cookies()
    cookie = made(ours)
    for later in (MAX_AGE_SECONDS + REMEMBERED_SECONDS, -MAX_AHEAD_SECONDS - 1):
        assert is_valid(ours, cookie)
        assert not is_valid(ours, cookie, wall=WALL + later)


def test_a_flood_of_cookies_is_bounded() -> None:
    ours = cookies()
    for number in range(MAX_REMEMBERED + 1000):
        ours.verdict(SOURCE, number.to_bytes(8, "big"), WALL)
    assert len(ours) <= MAX_REMEMBERED


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.floats(0, 2000)), max_size=20))
def test_memory_changes_no_verdict(steps: list[tuple[int, bool, float]]) -> None:
    """The same as one asks who remembers nothing, but that a cookie may be a minute older."""
    ours = cookies()
    wall, held = WALL, CLIENT
    for host, brings, passed in steps:
        wall += passed
        source = f"192.0.2.{host}"
        sent = held if brings else CLIENT
        verdict = ours.verdict(source, sent, wall)
        fresh = cookies()
        if verdict.valid != fresh.verdict(source, sent, wall).valid:
            assert cookies().verdict(source, sent, wall - REMEMBERED_SECONDS).valid == verdict.valid
        held = verdict.rdata[6:]


def test_sizes() -> None:
    assert [size for size in range(64) if is_cookie(bytes(size))] == [8, *range(16, 41)]


def test_secrets_of_a_file() -> None:
    text = f"# ours\n{'0a' * 16}\n\n  {'FF' * 16}  # before\n"
    assert read_secrets(text) == (b"\n" * 16, b"\xff" * 16)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("# nothing", 1),
        ("00" * 15, 1),
        ("\n" + "0g" * 16, 2),
        ("+0" * 16, 1),
        ("00" * 17, 1),
        ("00" * 16 + "\n" + "\u0660\u0660" * 16, 2),
        (("00" * 16 + "\n") * (MAX_SECRETS + 1), 1),
    ],
)
def test_bad_secrets(text: str, line: int) -> None:
    with pytest.raises(CookieSecretsRefused) as refused:
        read_secrets(text)
    assert str(refused.value).startswith(f"{line}: ")
    assert "0g" not in str(refused.value), "a secret is in no message"


@pytest.mark.parametrize("secrets", [[], [b"short"], [bytes(16)] * (MAX_SECRETS + 1)])
def test_wrong_secrets(secrets: list[bytes]) -> None:
    with pytest.raises(ValueError, match="16 octets"):
        Cookies(secrets)
