"""What is said on a watch about renewals, both ways."""

from __future__ import annotations

import pytest

from appliance.fleet.messages import BY_NAMESERVER, BY_SERVER
from appliance.fleet.renewing import RenewalAnswered, RenewalAsked, RenewalMessage, Renewals, heard
from appliance.tunnel.lines import MessageError
from appliance.tunnel.renewal import Request, ask, new_key
from tests.tunnel.authority import CLIENT

REQUEST = ask(CLIENT, new_key())


def test_what_one_end_says_is_what_the_other_hears() -> None:
    said: list[RenewalMessage] = []
    renewals = Renewals(said.append)
    renewals.ask(REQUEST)
    renewals.answer(REQUEST.digest, REQUEST.certificate)
    renewals.refuse(REQUEST.digest, "not now")
    for vocabulary in (BY_SERVER, BY_NAMESERVER):
        lines = [vocabulary.encode(message) for message in said]
        assert [heard(vocabulary.decode(line)) for line in lines] == [  # type: ignore[arg-type]
            RenewalAsked(REQUEST),
            RenewalAnswered(REQUEST.digest, REQUEST.certificate, ""),
            RenewalAnswered(REQUEST.digest, "", "not now"),
        ]


@pytest.mark.parametrize("pem", ["", "ä", '"', "{}", "a" * 31_001])
def test_what_is_no_pem_breaks_the_protocol(pem: str) -> None:
    said: list[RenewalMessage] = []
    Renewals(said.append).ask(Request(REQUEST.certificate, pem, "sig="))
    with pytest.raises(MessageError):
        BY_SERVER.encode(said[0])
