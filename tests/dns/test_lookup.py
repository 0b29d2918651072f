"""RFC 1034 4.3.2 and what came after, as a table. (test_differential asks NSD and Knot the same kind of
thing.)"""

from __future__ import annotations

import pytest

from appliance.dns import names
from appliance.dns.lookup import MAX_CHAIN, look_up, zone_for
from appliance.dns.responder import Responder
from tests.dns.asking import ask, opt, zone

EXAMPLE = zone(
    """\
@ TXT "apex"
www A 192.0.2.1
www A 192.0.2.2
www AAAA 2001:db8::1
alias CNAME WWW
alias2 CNAME alias
away CNAME www.other.test.
far CNAME www.invalid.
gone CNAME nothing
loop1 CNAME loop2
loop2 CNAME loop1
self CNAME self
a.b.c A 192.0.2.3
*.w A 192.0.2.4
*.w TXT "wild"
x.w TXT "x"
deep.y.w A 192.0.2.5
*.wc CNAME www
*.wx CNAME nothing
*.wl CNAME a.wl
foo.*.we A 192.0.2.6
sub NS ns.sub
sub NS ns1
sub NS ns.elsewhere.invalid.
sub DS 1 13 2 abababababababababababababababababababababababababababababababab
ns.sub A 192.0.2.7
ns.sub AAAA 2001:db8::7
below.sub A 192.0.2.8
tosub CNAME x.sub
old DNAME new
new TXT "new"
x.new A 192.0.2.9
out DNAME other.test.
u TYPE65280 \\# 2 0a0b
"""
)
OTHER = zone("www A 192.0.2.99\nback CNAME www.example.test.\n", "other.test")
CHILD = zone("host A 192.0.2.50\n@ MX 10 host\n", "child.other.test")
SERVED = Responder([EXAMPLE, OTHER, CHILD])

SOA = "example.test 60 SOA ns1.example.test. hostmaster.example.test. 7 7200 3600 1209600 60"
REFERRAL = [
    f"sub.example.test 300 NS {target}."
    for target in ("ns.elsewhere.invalid", "ns.sub.example.test", "ns1.example.test")
]
GLUE = [
    "ns.sub.example.test 300 A 192.0.2.7",
    "ns.sub.example.test 300 AAAA 2001:db8::7",
    "ns1.example.test 300 A 192.0.2.1",
]
OK, NX = "NOERROR", "NXDOMAIN"

# Name and type asked, rcode, AA, answer (names within example.test cut short), authority.
CASES: list[tuple[str, str, str, bool, list[str], list[str]]] = [
    ("www", "A", OK, True, ["www 300 A 192.0.2.1", "www 300 A 192.0.2.2"], []),
    ("www", "MX", OK, True, [], [SOA]),
    ("www", "TYPE65281", OK, True, [], [SOA]),
    ("www", "ANY", OK, True, ["www 300 A 192.0.2.1", "www 300 A 192.0.2.2"], []),
    ("u", "TYPE65280", OK, True, ["u 300 TYPE65280 \\# 2 0a0b"], []),
    ("nothing", "A", NX, True, [], [SOA]),
    ("x.nothing", "ANY", NX, True, [], [SOA]),
    ("@", "NS", OK, True, ["example.test 300 NS ns1.example.test."], []),
    ("@", "SOA", OK, True, [SOA.replace(" 60 ", " 300 ", 1)], []),
    ("@", "DS", OK, True, [], [SOA]),
    ("@", "A", OK, True, [], [SOA]),
    # Aliases
    ("alias", "CNAME", OK, True, ["alias 300 CNAME WWW.example.test."], []),
    ("alias", "ANY", OK, True, ["alias 300 CNAME WWW.example.test."], []),
    ("alias", "AAAA", OK, True, ["WWW 300 AAAA 2001:db8::1", "alias 300 CNAME WWW.example.test."], []),
    (
        "alias2",
        "MX",
        OK,
        True,
        ["alias 300 CNAME WWW.example.test.", "alias2 300 CNAME alias.example.test."],
        [SOA],
    ),
    ("gone", "A", NX, True, ["gone 300 CNAME nothing.example.test."], [SOA]),
    ("far", "A", OK, True, ["far 300 CNAME www.invalid."], []),
    ("away", "A", OK, True, ["away 300 CNAME www.other.test.", "www.other.test 300 A 192.0.2.99"], []),
    ("self", "A", OK, True, ["self 300 CNAME self.example.test."], []),
    (
        "loop1",
        "A",
        OK,
        True,
        ["loop1 300 CNAME loop2.example.test.", "loop2 300 CNAME loop1.example.test."],
        [],
    ),
    # Empty non-terminals
    ("c", "A", OK, True, [], [SOA]),
    ("b.c", "TXT", OK, True, [], [SOA]),
    ("x.b.c", "A", NX, True, [], [SOA]),
    ("a.b.c", "A", OK, True, ["a.b.c 300 A 192.0.2.3"], []),
    # Wildcards
    ("z.w", "A", OK, True, ["z.w 300 A 192.0.2.4"], []),
    ("z.z.w", "TXT", OK, True, ['z.z.w 300 TXT "wild"'], []),
    ("z.w", "MX", OK, True, [], [SOA]),
    ("*.w", "A", OK, True, ["*.w 300 A 192.0.2.4"], []),
    ("w", "A", OK, True, [], [SOA]),
    ("x.w", "A", OK, True, [], [SOA]),
    ("z.x.w", "A", NX, True, [], [SOA]),
    ("y.w", "A", OK, True, [], [SOA]),
    ("z.y.w", "A", NX, True, [], [SOA]),
    ("z.*.w", "A", NX, True, [], [SOA]),
    ("z.wc", "CNAME", OK, True, ["z.wc 300 CNAME www.example.test."], []),
    ("z.wc", "AAAA", OK, True, ["www 300 AAAA 2001:db8::1", "z.wc 300 CNAME www.example.test."], []),
    ("z.wx", "A", NX, True, ["z.wx 300 CNAME nothing.example.test."], [SOA]),
    ("z.wl", "A", OK, True, ["a.wl 300 CNAME a.wl.example.test.", "z.wl 300 CNAME a.wl.example.test."], []),
    ("z.we", "A", OK, True, [], [SOA]),  # *.we exists, without records
    # Delegations
    ("sub", "A", OK, False, [], REFERRAL),
    ("sub", "NS", OK, False, [], REFERRAL),
    ("sub", "SOA", OK, False, [], REFERRAL),
    ("sub", "ANY", OK, False, [], REFERRAL),
    ("below.sub", "A", OK, False, [], REFERRAL),
    ("ns.sub", "A", OK, False, [], REFERRAL),
    ("no.such.sub", "DS", OK, False, [], REFERRAL),
    ("sub", "DS", OK, True, ["sub 300 DS 1 13 2 " + "ab" * 32], []),
    ("tosub", "A", OK, True, ["tosub 300 CNAME x.sub.example.test."], REFERRAL),
    # DNAME
    ("old", "DNAME", OK, True, ["old 300 DNAME new.example.test."], []),
    ("old", "TXT", OK, True, [], [SOA]),
    (
        "x.old",
        "A",
        OK,
        True,
        ["old 300 DNAME new.example.test.", "x.new 300 A 192.0.2.9", "x.old 300 CNAME x.new.example.test."],
        [],
    ),
    (
        "y.old",
        "A",
        NX,
        True,
        ["old 300 DNAME new.example.test.", "y.old 300 CNAME y.new.example.test."],
        [SOA],
    ),
    (
        "x.old",
        "CNAME",
        OK,
        True,
        ["old 300 DNAME new.example.test.", "x.old 300 CNAME x.new.example.test."],
        [],
    ),
    (
        "www.out",
        "A",
        OK,
        True,
        ["out 300 DNAME other.test.", "www.out 300 CNAME www.other.test.", "www.other.test 300 A 192.0.2.99"],
        [],
    ),
]


def full(line: str) -> str:
    owner, rest = line.split(" ", 1)
    return line if owner.endswith(".test") else f"{owner}.example.test {rest}"


@pytest.mark.parametrize(("name", "kind", "rcode", "aa", "answer", "authority"), CASES)
def test_lookup(name: str, kind: str, rcode: str, aa: bool, answer: list[str], authority: list[str]) -> None:
    read = ask(SERVED, "example.test" if name == "@" else f"{name}.example.test", kind, edns=opt())
    assert (read.rcode, read.aa, read.tc) == (rcode, aa, False)
    assert read.answer == sorted(map(full, answer))
    assert read.authority == sorted(authority)
    assert read.additional == (GLUE if authority == REFERRAL else [])


def test_the_closest_zone_answers_and_ds_is_the_parents() -> None:
    zones = SERVED.zones
    host = names.from_text("host.child.other.test")
    apex = names.from_text("child.other.test")
    assert zone_for(zones, host, 1) is CHILD
    assert zone_for(zones, host, 43) is CHILD
    assert zone_for(zones, apex, 1) is CHILD
    assert zone_for(zones, apex, 43) is OTHER
    assert zone_for(zones, OTHER.apex, 43) is OTHER, "its parent is not ours"
    assert zone_for(zones, names.from_text("test"), 43) is None
    assert zone_for({**zones, b"\0": EXAMPLE}, names.from_text("test"), 43) is EXAMPLE


def test_a_nameservers_address_may_be_a_wildcards() -> None:
    read = ask(zone("sub NS x.ns\n*.ns A 192.0.2.53\n"), "www.sub.example.test")
    assert read.additional == ["x.ns.example.test 300 A 192.0.2.53"]


def test_refused_outside() -> None:
    read = ask(SERVED, "www.invalid")
    assert (read.rcode, read.aa, read.answer, read.authority) == ("REFUSED", False, [], [])


def test_a_chain_is_cut_at_its_cap() -> None:
    lines = "".join(f"c{number} CNAME c{number + 1}\n" for number in range(40))
    made = zone(lines)
    found = look_up({made.apex: made}, names.from_text("c0.example.test"), 1)
    assert len(found.answer) == MAX_CHAIN + 1
    assert (found.rcode, found.authority) == (0, [])


def test_a_dname_that_makes_a_name_too_long() -> None:
    long = ".".join(["x" * 60] * 3)
    read = ask(zone(f"old DNAME {long}\n"), ".".join(["y" * 60] * 3) + ".old.example.test")
    assert (read.rcode, len(read.answer)) == ("YXDOMAIN", 1)


def test_a_dname_that_leads_below_itself_is_taken_once() -> None:
    read = ask(zone("old DNAME a.old\n"), "x.old.example.test")
    assert (read.rcode, len(read.answer)) == ("NOERROR", 2)


def test_the_longest_names_end() -> None:
    long = ".".join(["a"] * 120)
    assert ask(EXAMPLE, f"{long}.test").rcode == "REFUSED"
    assert ask(EXAMPLE, f"{long[:200]}.w.example.test").answer != []


def test_an_answer_names_every_zone_that_it_came_from() -> None:
    found = look_up(SERVED.zones, names.from_text("www.out.example.test"), 1)
    assert found.apexes == [EXAMPLE.apex, OTHER.apex]
