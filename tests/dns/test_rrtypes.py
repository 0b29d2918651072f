from __future__ import annotations

import pytest

from appliance.dns import names
from appliance.dns.numbers import TXT
from appliance.dns.rrtypes import BadType, from_text, text_of, to_text


def test_there_and_back() -> None:
    assert from_text("txt") == TXT
    assert from_text("TYPE65280") == 65280
    assert to_text(65280) == "TYPE65280"
    assert text_of(names.from_text("www.demo.test"), TXT) == "www.demo.test TXT"


@pytest.mark.parametrize("text", ["", "NOSUCH", "TYPE70000", "TYPE0", "ANY", "AXFR", "OPT", "TYPE"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(BadType):
        from_text(text)
