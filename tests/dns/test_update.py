from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.tsig
import dns.update
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names
from appliance.dns.numbers import (
    AAAA,
    BADVERS,
    CNAME,
    FORMERR,
    MX,
    NOERROR,
    NS,
    NXDOMAIN,
    REFUSED,
    SOA,
    TXT,
    YXDOMAIN,
    YXRRSET,
    A,
)
from appliance.dns.overlay import lay
from appliance.dns.policy import Kind, Policy
from appliance.dns.responder import Responder
from appliance.dns.tsig import Key, Signed, Unsigned, check
from appliance.dns.update import (
    NOTZONE,
    NXRRSET,
    Update,
    UpdateAsked,
    UpdateRefused,
    changed,
    check_prerequisites,
    read_update,
)
from appliance.dns.zone import RRset, Zone
from appliance.dns.zonefile import read_zone
from tests.effort import examples

APEX = names.from_text("demo.test")
SERIAL = 1000
TEXT = """$ORIGIN demo.test.
$TTL 300
@ SOA ns1 hostmaster 1 3600 600 86400 300
@ NS ns1
@ NS ns.elsewhere.test.
@ MX 10 Mail
ns1 A 192.0.2.53
www A 192.0.2.80
www A 192.0.2.81
www TXT "one"
alias CNAME www
sub NS ns.sub
ns.sub A 192.0.2.54
moved DNAME elsewhere.test.
"""
STATIC = read_zone(TEXT, filename="demo.zone")
EVERYTHING = (Policy(Kind.UPDATE),)


def live(*texts: str) -> dict[tuple[bytes, int], RRset]:
    found = {}
    for text in texts:
        name = names.from_text(text)
        found[name, A] = RRset(name, A, 15, (b"\x0a\x05\x00\x05",))
        found[name, TXT] = RRset(name, TXT, 15, (b"\x1cr=superprotocol;ip=10.5.0.5\x00"[:-1],))
    return found


LIVE = live("live.demo.test", "*.apps.demo.test")


def message(*steps: tuple[Any, ...]) -> bytes:
    """An UPDATE by dnspython: ("add", "www", 300, "A", "192.0.2.1") and so on."""
    made = dns.update.UpdateMessage("demo.test", id=1)
    for verb, *arguments in steps:
        getattr(made, verb)(*arguments)
    return made.to_wire(max_size=0xFFFF)


def done(
    *steps: tuple[Any, ...],
    policies: tuple[Policy, ...] = EVERYTHING,
    static: Zone = STATIC,
    living: dict[tuple[bytes, int], RRset] | None = None,
) -> Zone:
    """The static zone afterwards."""
    living = LIVE if living is None else living
    update = read_update(message(*steps), APEX)
    merged, _ = lay(static, living, SERIAL)
    check_prerequisites(update, merged)
    after, differing = changed(update, merged=merged, static=static, live=living, policies=policies)
    for (name, rtype), rrset in differing.items():
        assert after.node(name).get(rtype) == rrset
        assert static.node(name).get(rtype) != rrset
    assert after == Zone(after.apex, after.serial, after.rrsets)
    for part in ("empty", "cuts", "dnames", "soa", "negative_soa"):
        assert getattr(after, part) == getattr(Zone(after.apex, after.serial, after.rrsets), part), part
    return after


def rcode(run: Callable[[], object]) -> int:
    with pytest.raises(UpdateRefused) as refused:
        run()
    return refused.value.rcode


def at(zone: Zone, name: str, rtype: int) -> list[bytes]:
    rrset = zone.node(names.from_text(name)).get(rtype)
    return list(rrset.rdatas) if rrset else []


# Form


def test_prerequisites_and_changes_are_read_without_compression() -> None:
    octets = message(
        ("present", "www"), ("absent", "new", "A"), ("add", "new", 60, "CNAME", "target.demo.test.")
    )
    update = read_update(octets, APEX)
    assert [(one.name, one.rtype, one.rclass) for one in update.prerequisites] == [
        (names.from_text("www.demo.test"), 255, 255),
        (names.from_text("new.demo.test"), A, 254),
    ]
    (change,) = update.changes
    assert (change.ttl, change.rdata) == (60, names.from_text("target.demo.test"))
    assert update.edns is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("add", "www.other.test.", 60, "A", "192.0.2.1"), NOTZONE),
        (("present", "www.other.test."), NOTZONE),
        (("delete", "xdemo.test."), NOTZONE),
    ],
)
def test_names_outside_the_zone(change: tuple[Any, ...], expected: int) -> None:
    assert rcode(lambda: read_update(message(change), APEX)) == expected


def record(name: bytes, rtype: int, rclass: int, ttl: int, rdata: bytes) -> bytes:
    return (
        name
        + rtype.to_bytes(2, "big")
        + rclass.to_bytes(2, "big")
        + ttl.to_bytes(4, "big")
        + len(rdata).to_bytes(2, "big")
        + rdata
    )


def raw(prerequisites: list[bytes], changes: list[bytes], additional: tuple[bytes, ...] = ()) -> bytes:
    counts = (1, len(prerequisites), len(changes), len(additional))
    head = b"\x00\x01\x28\x00" + b"".join(count.to_bytes(2, "big") for count in counts)
    return head + APEX + b"\x00\x06\x00\x01" + b"".join((*prerequisites, *changes, *additional))


WWW = b"\x03www" + APEX
ADDRESS = b"\xc0\x00\x02\x01"
MALFORMED_PREREQUISITES = [
    record(WWW, A, 255, 1, b""),
    record(WWW, A, 254, 1, b""),
    record(WWW, A, 1, 1, ADDRESS),
    record(WWW, A, 255, 0, ADDRESS),
    record(WWW, A, 254, 0, ADDRESS),
    record(WWW, 255, 1, 0, b""),
    record(WWW, A, 3, 0, b""),
    record(WWW, 252, 255, 0, b""),
    record(WWW, A, 1, 0, b"\x01"),
]
MALFORMED_CHANGES = [
    record(WWW, A, 255, 1, b""),
    record(WWW, A, 254, 1, ADDRESS),
    record(WWW, A, 255, 0, ADDRESS),
    record(WWW, A, 254, 0, b""),
    record(WWW, 255, 254, 0, b""),
    record(WWW, 255, 1, 0, b""),
    record(WWW, 252, 255, 0, b""),
    record(WWW, 41, 255, 0, b""),
    record(WWW, 250, 1, 0, b"\x00"),
    record(WWW, A, 1, 0, b""),
    record(WWW, A, 1, 1 << 31, ADDRESS),
    record(WWW, MX, 1, 0, b"\x00\x0a"),
    record(WWW, MX, 1, 0, b"\x00\x0a\xc0\x50"),
    record(WWW, TXT, 1, 0, b"\x05one"),
    record(WWW, A, 4, 0, ADDRESS),
    record(WWW, 0, 1, 0, b""),
]


@pytest.mark.parametrize("octets", MALFORMED_PREREQUISITES)
def test_malformed_prerequisites(octets: bytes) -> None:
    assert rcode(lambda: read_update(raw([octets], []), APEX)) == FORMERR


@pytest.mark.parametrize("octets", MALFORMED_CHANGES)
def test_malformed_changes(octets: bytes) -> None:
    assert rcode(lambda: read_update(raw([], [record(WWW, A, 1, 60, ADDRESS), octets]), APEX)) == FORMERR


def test_edns_of_an_update() -> None:
    opt = b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x00"
    update = read_update(raw([], [], (opt,)), APEX)
    assert update.edns is not None
    assert (update.edns.payload, update.edns.dnssec_ok) == (1232, True)
    assert rcode(lambda: read_update(raw([], [], (opt, opt)), APEX)) == FORMERR
    opt = opt[:6] + b"\x01" + opt[7:]
    assert rcode(lambda: read_update(raw([], [], (opt,)), APEX)) == BADVERS


@settings(max_examples=examples(200), deadline=None)
@given(st.data())
def test_any_octets_of_a_signed_message_give_one_error_only(given_data: st.DataObject) -> None:
    whole = message(
        ("present", "www", "A", "192.0.2.80"), ("delete", "www", "TXT"), ("add", "m", 60, "MX", "10 a.b.")
    )
    changed_octets = bytearray(whole)
    for _ in range(given_data.draw(st.integers(1, 4))):
        changed_octets[given_data.draw(st.integers(12, len(whole) - 1))] = given_data.draw(
            st.integers(0, 255)
        )
    try:
        update = read_update(bytes(changed_octets), APEX)
        changed(update, merged=STATIC, static=STATIC, live={}, policies=EVERYTHING)
    except UpdateRefused:
        pass


# Prerequisites


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (("present", "www"), None),
        (("present", "nosuch"), NXDOMAIN),
        (("present", "live"), None),
        (("present", "live", "A"), None),
        (("present", "live", "AAAA"), NXRRSET),
        (("present", "www", "A"), None),
        (("present", "www", "AAAA"), NXRRSET),
        (("present", "nosuch", "AAAA"), NXRRSET),
        (("absent", "nosuch"), None),
        (("absent", "www"), YXDOMAIN),
        (("absent", "live"), YXDOMAIN),
        (("absent", "www", "AAAA"), None),
        (("absent", "www", "A"), YXRRSET),
        (("present", "www", "A", "192.0.2.81", "192.0.2.80"), None),
        (("present", "www", "A", "192.0.2.80"), NXRRSET),
        (("present", "www", "A", "192.0.2.80", "192.0.2.81", "192.0.2.82"), NXRRSET),
        (("present", "nosuch", "A", "192.0.2.80"), NXRRSET),
        (("present", "alias", "CNAME", "WWW.demo.test."), None),
        (("present", "@", "MX", "10 mail.DEMO.test."), None),
        (("present", "live", "A", "10.5.0.5"), None),
        (("absent", "below.apps"), None),  # a wildcard is no name that exists (RFC 2136 2.4.5)
    ],
)
def test_prerequisites(step: tuple[Any, ...], expected: int | None) -> None:
    add = ("add", "new", 60, "A", "192.0.2.1")
    if expected is None:
        assert at(done(step, add), "new.demo.test", A)
    else:
        assert rcode(lambda: done(step, add)) == expected


# Changes


def test_adding() -> None:
    after = done(
        ("add", "www", 60, "A", "192.0.2.82"),
        ("add", "www", 60, "A", "192.0.2.80"),
        ("add", "www", 300, "AAAA", "2001:db8::1"),
        ("add", "a.b.new", 300, "TXT", "text"),
    )
    assert at(after, "www.demo.test", A) == [bytes((192, 0, 2, last)) for last in (80, 81, 82)]
    assert after.node(WWW)[A].ttl == 60
    assert at(after, "www.demo.test", AAAA)
    assert names.from_text("new.demo.test") in after.empty


def test_only_the_ttl() -> None:
    after = done(("add", "www", 60, "TXT", "one"))
    assert after.node(WWW)[TXT] == RRset(WWW, TXT, 60, (b"\x03one",))


def test_deleting() -> None:
    after = done(("delete", "www", "A", "192.0.2.80"), ("delete", "www", "A", "192.0.2.99"))
    assert at(after, "www.demo.test", A) == [b"\xc0\x00\x02\x51"]
    assert at(done(("delete", "www", "A")), "www.demo.test", TXT)
    assert WWW not in done(("delete", "www")).rrsets
    assert WWW not in done(("delete", "www", "A"), ("delete", "www", "TXT", "one")).rrsets
    assert (
        done(("delete", "nosuch"), ("delete", "www", "AAAA"), ("delete", "nosuch", "A", "192.0.2.1"))
        is STATIC
    )


def test_replacing_is_deleting_and_adding() -> None:
    after = done(("replace", "www", 60, "A", "192.0.2.9"))
    assert at(after, "www.demo.test", A) == [b"\xc0\x00\x02\x09"]


def test_what_leads_back_is_no_change() -> None:
    assert done(("delete", "www", "TXT"), ("add", "www", 300, "TXT", "one")) is STATIC


def test_cname_and_other_records_exclude_each_other_silently() -> None:
    assert done(("add", "www", 60, "CNAME", "x.demo.test.")) is STATIC
    assert done(("add", "alias", 60, "A", "192.0.2.1")) is STATIC
    assert done(("add", "live", 60, "CNAME", "x.demo.test.")) is STATIC
    after = done(("add", "alias", 60, "CNAME", "x.demo.test."))
    assert at(after, "alias.demo.test", CNAME) == [names.from_text("x.demo.test")]
    after = done(("delete", "alias", "CNAME"), ("add", "alias", 60, "A", "192.0.2.1"))
    assert not at(after, "alias.demo.test", CNAME)
    assert at(after, "alias.demo.test", A)


def test_the_soa_only_forwards() -> None:
    soa = "ns1.demo.test. other.demo.test. {} 1 2 3 4"
    assert done(("add", "@", 60, "SOA", soa.format(SERIAL))) is STATIC
    assert done(("add", "@", 60, "SOA", soa.format(SERIAL - 1))) is STATIC
    assert done(("add", "www", 60, "SOA", soa.format(SERIAL + 1))) is STATIC
    assert done(("delete", "@", "SOA")) is STATIC
    assert done(("delete", "@", "SOA", soa.format(1))) is STATIC
    after = done(("replace", "@", 60, "SOA", soa.format(SERIAL + 1)))
    assert after.serial == SERIAL + 1
    assert at(after, "demo.test", SOA)[0].endswith(bytes((0, 0, 0, 4)))


def test_the_apex_keeps_its_soa_and_its_last_ns() -> None:
    after = done(("delete", "@"))
    assert set(after.node(APEX)) == {SOA, NS}
    assert done(("delete", "@", "NS")) is STATIC
    after = done(("delete", "@", "NS", "ns1.demo.test."), ("delete", "@", "NS", "ns.elsewhere.test."))
    assert at(after, "demo.test", NS) == [names.from_text("ns.elsewhere.test")]
    assert at(done(("delete", "sub", "NS", "ns.sub.demo.test.")), "sub.demo.test", NS) == []


def test_live_rrsets_are_nobodys_to_change() -> None:
    for step in (
        ("add", "live", 60, "A", "192.0.2.1"),
        ("add", "live", 60, "TXT", "text"),
        ("delete", "live", "A"),
        ("delete", "live", "A", "10.5.0.5"),
        ("add", "*.apps", 60, "A", "192.0.2.1"),
        ("add", "live", 60, "AAAA", "2001:db8::1"),  # would take the live A out (overlay)
        ("add", "apps", 60, "DNAME", "other.test."),
        ("add", "apps", 60, "NS", "ns.other.test."),
        ("add", "apps", 60, "CNAME", "ns.other.test."),
        ("add", "@", 60, "NS", "live.demo.test."),
    ):
        assert rcode(lambda: done(step)) == REFUSED, step  # noqa: B023


def test_other_types_at_a_live_name_are_allowed_and_stay_by_themselves() -> None:
    after = done(("add", "live", 60, "MX", "10 mail.demo.test."))
    assert at(after, "live.demo.test", MX)
    assert done(("delete", "live"), static=after) == STATIC  # the live ones are not there to be deleted
    assert at(
        done(("add", "_acme-challenge.a.apps", 60, "TXT", "x")), "_acme-challenge.a.apps.demo.test", TXT
    )


def test_beside_a_live_challenge_others_may_be_set_and_taken_away() -> None:
    """Two clients of a name, one of which has an ACME client of its own, at the same time."""
    owner = names.from_text("_acme-challenge.www.demo.test")
    living = {(owner, TXT): RRset(owner, TXT, 15, (b"\x04live",))}
    after = done(("add", "_acme-challenge.www", 60, "TXT", "own"), living=living)
    assert at(after, "_acme-challenge.www.demo.test", TXT) == [b"\x03own"]
    for deletion in (("delete", "_acme-challenge.www", "TXT"), ("delete", "_acme-challenge.www")):
        assert done(deletion, static=after, living=living) == STATIC
    assert rcode(lambda: done(("add", "_acme-challenge.www", 60, "CNAME", "x."), living=living)) == REFUSED


def test_where_the_static_record_won_it_can_be_changed() -> None:
    after = done(("add", "www", 60, "A", "192.0.2.9"), living=live("www.demo.test"))
    assert len(at(after, "www.demo.test", A)) == 3
    after = done(("delete", "www", "A"), living=live("www.demo.test"))
    assert not at(after, "www.demo.test", A)


def test_nobody_says_where_a_tunnel_server_is_but_the_fleet() -> None:
    assert rcode(lambda: done(("add", "new", 60, "TXT", '"r=superprotocol;ip=192.0.2.66"'))) == REFUSED


@pytest.mark.parametrize(
    "steps",
    [
        [("delete", "ns1")],
        [("add", "@", 60, "NS", "nosuch.demo.test.")],
        [("add", "@", 60, "NS", "alias.demo.test.")],
        [("delete", "ns.sub")],
        [("add", "@", 60, "DS", "1 13 2 " + "00" * 32)],
        [("add", "*.wild", 60, "NS", "ns.elsewhere.test.")],
        [("add", "sub", 60, "DNAME", "elsewhere.test.")],
        [("add", "www", 60, "DNSKEY", "256 3 13 AAAA")],
        [("add", "below.moved", 60, "A", "192.0.2.1")],
        [("add", "new", 60, "DNAME", "elsewhere.test."), ("add", "a.new", 60, "A", "192.0.2.1")],
        [("add", "new", 60, "NSEC", "a.demo.test. A")],
    ],
)
def test_what_a_zone_file_may_not_say_an_update_may_not_either(steps: list[tuple[Any, ...]]) -> None:
    assert rcode(lambda: done(*steps)) == REFUSED


def test_an_rrset_has_to_fit_an_answer() -> None:
    static = STATIC
    for part in range(4):
        steps = [("add", "big", 60, "TXT", f'"{part}-{number:0200}" ' * 10) for number in range(7)]
        static = done(*steps, static=static)
    assert (
        rcode(lambda: done(*((*step[:4], step[4].replace("3-", "4-")) for step in steps), static=static))
        == REFUSED
    )


def test_a_nameserver_and_its_address_in_one_message_whatever_the_order() -> None:
    after = done(("add", "@", 60, "NS", "ns2.demo.test."), ("add", "ns2", 60, "A", "192.0.2.55"))
    assert len(at(after, "demo.test", NS)) == 3
    done(("delete", "@", "NS", "ns1.demo.test."), ("delete", "ns1"))


def test_all_or_nothing() -> None:
    steps = (("add", "new", 60, "A", "192.0.2.1"), ("add", "live", 60, "A", "192.0.2.1"))
    assert rcode(lambda: done(*steps)) == REFUSED
    assert rcode(lambda: done(*reversed(steps))) == REFUSED


def test_the_policy_of_the_key() -> None:
    challenges = (Policy(Kind.ACME, (names.from_text("www.demo.test"),)),)
    step = ("add", "_acme-challenge.www", 60, "TXT", "token")
    after = done(step, policies=challenges)
    assert done(("delete", "_acme-challenge.www"), policies=challenges, static=after) == STATIC
    for other in (
        ("add", "_acme-challenge", 60, "TXT", "token"),
        ("add", "www", 60, "TXT", "token"),
        ("delete", "www"),
        ("delete", "www", "TXT"),
        ("add", "_acme-challenge.www", 60, "CNAME", "x.demo.test."),
    ):
        assert rcode(lambda: done(step, other, policies=challenges)) == REFUSED, other  # noqa: B023
    assert rcode(lambda: done(step, policies=())) == REFUSED
    texts = (Policy(Kind.UPDATE, (), frozenset((TXT,))),)
    assert rcode(lambda: done(("delete", "www"), policies=texts)) == REFUSED  # for it has an A, too


def test_the_answer_is_signed() -> None:
    key = Key(names.from_text("k1"), names.from_text("hmac-sha256"), bytes(32))
    signed = Signed(key, message(), b"mac", 0, 300)
    asked = UpdateAsked(signed, Update(APEX, (), (), None), message()[:27])
    answer = asked.answer(NOERROR, 1000.0)
    assert answer[:4] == b"\x00\x01\xa8\x00"
    assert answer[12:].startswith(APEX + b"\x00\x06\x00\x01")
    assert len(answer) == 12 + len(APEX) + 4 + key.record_octets
    assert not isinstance(check(answer, {key.name: key}, 1000), Unsigned)


def test_another_version_of_edns_is_answered_with_the_one_we_know() -> None:
    secret = bytes(32)
    made = dns.update.UpdateMessage("demo.test", id=1)
    made.use_edns(1)
    made.use_tsig(dns.tsig.Key("k1", secret, "hmac-sha256"))
    asked = made.to_wire()
    responder = Responder([STATIC])
    key = Key(names.from_text("k1"), names.from_text("hmac-sha256"), secret)
    responder.keys = {key.name: key}
    answer = responder.respond(asked, udp=True, source="192.0.2.1", now=0.0, wall=time.time())
    assert isinstance(answer, bytes)
    read = dns.message.from_wire(answer, keyring=made.keyring, request_mac=made.mac)
    assert read.rcode() == dns.rcode.BADVERS
    assert read.edns == 0
