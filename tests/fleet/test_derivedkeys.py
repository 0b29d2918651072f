"""Families of keys that share a secret have no key in common."""

from __future__ import annotations

from appliance.fleet.derivedkeys import DerivedKeys, KeyFamily

SECRET = bytes(32)
ONE, OTHER = KeyFamily("one.internal", b"one"), KeyFamily("other.internal", b"other")


def test_each_family_has_names_and_secrets_of_its_own() -> None:
    keys = [family.key_of(SECRET, "a", 1) for family in (ONE, OTHER)]
    assert len({key.secret for key in keys}) == len({key.name for key in keys}) == 2
    assert ONE.whose(keys[0].name) == ("a", 1)
    assert ONE.whose(keys[1].name) is None
    assert DerivedKeys(ONE, SECRET)[keys[0].name] == keys[0]
    assert DerivedKeys(ONE, SECRET).get(keys[1].name) is None
