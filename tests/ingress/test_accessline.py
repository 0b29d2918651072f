from __future__ import annotations

import json

import pytest

from appliance.ingress.accessline import FORMATS, AccessLine, as_json, plain

LINE = AccessLine(
    1764295200.25, "www.example.org", ("192.0.2.1", 50000), "home", 12, 3456, 1.23456, "ended", b"\x01\xff"
)
LONE = AccessLine(1764295200, "", ("2001:db8::1", 1), "", 0, 0, 0, "bad_request", b"")


def test_plain() -> None:
    assert plain(LINE) == (
        b"2025-11-28T02:00:00.250Z www.example.org 192.0.2.1:50000 home 12 3456 1.235 ended 01ff\n"
    )
    assert plain(LONE) == b"2025-11-28T02:00:00.000Z - [2001:db8::1]:1 - 0 0 0.000 bad_request -\n"


def test_json() -> None:
    assert json.loads(as_json(LINE)) == {
        "time": "2025-11-28T02:00:00.250Z",
        "name": "www.example.org",
        "visitor": "192.0.2.1:50000",
        "client": "home",
        "octets_in": 12,
        "octets_out": 3456,
        "seconds": 1.235,
        "end": "ended",
        "id": "01ff",
    }


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize("line", [LINE, LONE])
def test_one_line(form: object, line: AccessLine) -> None:
    assert callable(form)
    octets = form(line)
    assert octets.endswith(b"\n")
    assert octets.count(b"\n") == 1
