from __future__ import annotations

import pytest

from appliance.dns.names import from_text
from appliance.dns.numbers import AAAA, TXT, A
from appliance.dns.policy import Kind, Policy, allowed


def policy(kind: Kind, *names: str, types: tuple[int, ...] = ()) -> Policy:
    return Policy(kind, tuple(map(from_text, names)), frozenset(types))


@pytest.mark.parametrize(
    ("names", "name", "expected"),
    [
        ((), "anything.demo.test", True),
        (("www.demo.test",), "www.demo.test", True),
        (("www.demo.test",), "a.www.demo.test", False),
        (("www.demo.test",), "demo.test", False),
        (("*.apps.demo.test",), "a.apps.demo.test", True),
        (("*.apps.demo.test",), "a.b.apps.demo.test", True),
        (("*.apps.demo.test",), "*.apps.demo.test", True),
        (("*.apps.demo.test",), "apps.demo.test", False),
        (("*.apps.demo.test",), "xapps.demo.test", False),
        (("*.apps.demo.test", "apps.demo.test"), "apps.demo.test", True),
    ],
)
def test_names(names: tuple[str, ...], name: str, expected: bool) -> None:
    assert policy(Kind.UPDATE, *names).allows(from_text(name), A) is expected


def test_types() -> None:
    one = policy(Kind.UPDATE, types=(A, AAAA))
    name = from_text("www.demo.test")
    assert one.allows(name, A)
    assert not one.allows(name, TXT)
    assert allowed((one, policy(Kind.UPDATE, types=(TXT,))), name, TXT)
    assert not allowed((), name, TXT)


@pytest.mark.parametrize(
    ("names", "name", "expected"),
    [
        ((), "_acme-challenge.www.demo.test", True),
        ((), "www.demo.test", False),
        ((), "_acme-challengex.www.demo.test", False),
        ((), "a._acme-challenge.www.demo.test", False),
        (("www.demo.test",), "_acme-challenge.www.demo.test", True),
        (("www.demo.test",), "_acme-challenge.demo.test", False),
        (("www.demo.test",), "_acme-challenge.a.www.demo.test", False),
        (("*.demo.test",), "_acme-challenge.demo.test", True),
        (("*.demo.test",), "_acme-challenge.www.demo.test", True),
        (("*.demo.test",), "_acme-challenge.test", False),
    ],
)
def test_challenges(names: tuple[str, ...], name: str, expected: bool) -> None:
    one = policy(Kind.ACME, *names)
    assert one.allows(from_text(name), TXT) is expected
    assert not one.allows(from_text(name), A)
