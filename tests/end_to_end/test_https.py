"""https for plain origins, through the whole of it: the client has the certificate, and ends the TLS.

What nobody but client and origin may see is looked for in the server's memory and in every packet on the way.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wsproto
from wsproto.events import AcceptConnection, Event, Request, TextMessage

from appliance.tunnel.proxyheader import read_proxy_header
from tests.certificates import Pems, issue
from tests.end_to_end.joined import Joined, rest_of
from tests.end_to_end.looking import Capture, in_memory
from tests.end_to_end.origins import Visited, answer, keep_alive
from tests.end_to_end.programs import free_port, need, wait_for
from tests.end_to_end.site import ZONE, Client, Nginx, tls_context
from tests.end_to_end.test_port_80 import (
    CHUNKS_REFUSED,
    MEGABYTES,
    REFUSED,
    SMUGGLED,
    block,
    chunked_digest,
    ends_first,
    reads_and_resets,
    request,
    status_of,
    until_the_end,
    websocket,
)
from tests.end_to_end.visitors import Crowd, fetch

MARK = b"nobody-but-the-two-ends-6e0f"
"""In the body of a request and of its answer."""
IDENTITY = (
    "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: {host}\r\n"
    "Forwarded: for=127.0.0.1;host={host};proto=https\r\n"
)
INTERNAL_ERROR = "(?i)internal.error"
HELD_OCTETS_MAX = 32 << 20
"""By how much a client may grow while 50 MB go through it to a visitor who does not read."""


def sse(visited: Visited) -> None:
    """Server-sent events, the next one when the test says so by the file's name in the first line."""
    head = visited.head()
    gate = Path(head.split(b" ")[1].decode())
    visited.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for number in range(3):
        event = b"data: %d\n\n" % number
        visited.send(b"%x\r\n%s\r\n" % (len(event), event))
        wait_for((gate.parent / f"{gate.name}{number}").exists, 20, "the test")
    visited.send(b"0\r\n\r\n")


def continues(visited: Visited) -> None:
    """Ask for the body only when the head is here."""
    head = visited.head()
    assert b"expect: 100-continue" in head.lower()
    visited.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = visited.take(5)
    visited.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)


def odd_answers(visited: Visited) -> None:
    """Answers without a body: to HEAD, 204, 304."""
    while head := visited.head():
        if head.startswith(b"HEAD"):
            visited.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        else:
            visited.send(b"HTTP/1.1 %s X\r\nETag: \"a\"\r\n\r\n" % head.split(b" ")[1][1:])


def echo(visited: Visited) -> None:
    """Answer with the request's counted body."""
    while head := visited.head():
        body = visited.take(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        visited.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def proxied(visited: Visited) -> None:
    """Answer with who the PROXY protocol's header says the visitor is."""
    start = visited.take(16)
    header = read_proxy_header(start + visited.take(int.from_bytes(start[14:16])))
    visited.head()
    visited.send(answer(f"{header.source[0]} {header.authority} {header.alpn!r}".encode()))
    visited.read()


class Site(Joined):
    """One appliance, two clients, and an origin for each thing that an origin can do."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.nginx = Nginx(directory / "nginx", [f"passed.{ZONE}"], self.ca)
        self.other = self.origin(keep_alive("other"))
        self.refusing = free_port("tcp")
        self.origins = {
            "script": self.origin(keep_alive("script")),
            "chunks": self.origin(chunked_digest),
            "ws": self.origin(websocket),
            "events": self.origin(sse),
            "continues": self.origin(continues),
            "odd": self.origin(odd_answers),
            "ends": self.origin(ends_first),
            "resets": self.origin(reads_and_resets),
            "half": self.origin(until_the_end),
            "echo": self.origin(echo),
            "proxied": self.origin(proxied),
        }
        self.ports_of = {label: origin.port for label, origin in self.origins.items()}
        self.clients: dict[str, Client] = {}
        self.files: dict[str, tuple[Path, Path]] = {}

    def issue(self, label: str) -> Pems:
        return issue(self.ca, f"{label}.{ZONE}")

    def terminated(self, label: str, port: int, *, written: bool = True) -> dict[str, int | bool | Path]:
        """The settings of a name, and its files."""
        name = label.replace("*", "any")
        files = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        self.files[label] = files
        if written:
            self.issue(label).write(*files)
        return {"http_origin": port, "certificate": files[0], "key": files[1]}

    def start(self) -> None:
        self.running.callback(self.nginx.kill)
        self.nginx.start()
        super().start()
        ports = {**self.ports_of, "www": self.nginx.http, "refusing": self.refusing, "two": self.refusing}
        names = {label: self.terminated(label, port) for label, port in ports.items()}
        names["proxied"]["proxy_protocol"] = True
        names["*.apps"] = self.terminated("*.apps", self.nginx.http)
        names["awaited"] = self.terminated("awaited", self.nginx.http, written=False)
        names["passed"] = {"tls_origin": self.nginx.tls}
        self.clients["home"] = self.join("home", names)
        two: dict[str, int | bool | Path] = {**names["two"], "http_origin": self.other.port}
        self.clients["second"] = self.join("second", {"two": two})

    @property
    def log(self) -> str:
        process = self.clients["home"].process
        assert process is not None
        return process.output

    def ask(self, label: str, octets: bytes) -> bytes:
        """All that is said to these octets inside TLS, until the end."""
        with self.visit_tls(label) as tls:
            with contextlib.suppress(OSError):
                tls.sendall(octets)
            return rest_of(tls)

    def visited(self, label: str) -> list[Visited]:
        return self.origins[label].visited


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("https"))
    with made.running:
        made.start()
        yield made


def identified(octets: bytes, label: str) -> bytes:
    """A request as the origin gets it."""
    head, _, body = octets.partition(b"\r\n\r\n")
    return head + b"\r\n" + IDENTITY.format(host=f"{label}.{ZONE}").encode() + b"\r\n" + body


def test_a_page(site: Site) -> None:
    assert site.curl(f"https://www.{ZONE}/who") == f"origin www.{ZONE} http GET\n"
    assert site.curl(f"https://www.{ZONE}/who", "--http1.1", "-X", "POST", "-d", "a=b").endswith("POST\n")
    assert site.curl(f"https://passed.{ZONE}/who") == f"origin passed.{ZONE} https GET\n"


def test_the_origin_is_told_who_the_visitor_is_and_nothing_of_what_he_says_himself(site: Site) -> None:
    before = len(site.visited("script"))
    asked = request("script", "/first") + request("script", "/second", close=True)
    lies = b"X-Forwarded-For: 10.1.1.1\r\nFORWARDED: for=10.1.1.1\r\nX_Forwarded_Host: lie.example\r\n"
    site.ask("script", asked.replace(b"\r\n\r\n", b"\r\n" + lies + b"\r\n"))
    (visited,) = site.visited("script")[before:]
    first, second = request("script", "/first"), request("script", "/second", close=True)
    assert bytes(visited.octets) == identified(first, "script") + identified(second, "script")


def test_the_proxy_protocol_is_spoken_to_the_origin(site: Site) -> None:
    said = site.curl(f"https://proxied.{ZONE}/")
    assert said == f"127.0.0.1 proxied.{ZONE} b'http/1.1'"


def test_hundreds_of_requests_on_one_connection(site: Site) -> None:
    output = site.directory / "many"
    stats = site.curl(
        f"https://www.{ZONE}/who?[1-300]", "-o", output, "-w", "%{num_connects} %{http_code}\n"
    ).splitlines()
    assert stats == ["1 200", *["0 200"] * 299]


def test_several_names_and_a_wildcard_have_their_own_certificates(site: Site) -> None:
    for label, shown in (("www", "www"), ("script", "script"), ("one.apps", "*.apps"), ("two", "two")):
        with site.visit_tls(label) as tls:
            certificate = tls.getpeercert()
            assert certificate
            assert certificate["subjectAltName"] == (("DNS", f"{shown}.{ZONE}"),)
            assert (tls.version(), tls.selected_alpn_protocol()) == ("TLSv1.3", None)
    assert site.curl(f"https://one.apps.{ZONE}/who") == f"origin one.apps.{ZONE} http GET\n"
    with site.visit_tls("www", "h2", "http/1.1") as tls:
        assert tls.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("spelling", [f"www.{ZONE}.", f"WWW.{ZONE}", f"one.apps.{ZONE}.", f"-a-.apps.{ZONE}"])
def test_another_spelling_of_a_name(site: Site, spelling: str) -> None:
    """What some visitors put into the SNI and the Host: the server routes it, and the client takes it."""
    context = tls_context(site.ca)
    context.check_hostname = False
    said = fetch(context, site.appliance.address, site.ports.tls, spelling, "/who")
    assert said == f"origin {spelling.lower().removesuffix('.')} http GET\n"


def test_fifty_megabytes_in_chunks_each_way(site: Site) -> None:
    digest = hashlib.sha256()
    for number in range(MEGABYTES):
        digest.update(block(number))
    down = site.directory / "down"
    site.curl(f"https://chunks.{ZONE}/", "-o", down)
    assert hashlib.sha256(down.read_bytes()).hexdigest() == digest.hexdigest()
    said = site.curl(
        f"https://chunks.{ZONE}/", "-T", down, "-H", "Transfer-Encoding: chunked", "-H", "Expect:"
    )
    assert said == digest.hexdigest()
    down.unlink()


def test_bodies_are_never_held(site: Site) -> None:
    """A visitor who does not read stops the origin; the client holds what fits into its sockets, no more."""
    process = site.clients["home"].process
    assert process is not None
    before = peak_octets(process.pid)
    with site.visit_tls("chunks") as tls:
        tls.sendall(request("chunks"))
        count = len(tls.recv(1000))
        visited = site.visited("chunks")[-1]
        wait_for(lambda: is_stuck(visited.sock), 20, "an origin that cannot go on")
        assert peak_octets(process.pid) - before < HELD_OCTETS_MAX
        while count < MEGABYTES << 20:
            count += len(tls.recv(1 << 20))


def peak_octets(pid: int) -> int:
    """The most memory that a process has had (VmHWM, proc(5))."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def is_stuck(sock: socket.socket) -> bool:
    """Whether what was sent does not get any less in a tenth of a second, nor any more."""

    def unsent() -> int:
        import fcntl
        import struct
        import termios

        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0])

    first = unsent()
    time.sleep(0.1)
    return first > 0 and unsent() == first


def test_a_websocket(site: Site) -> None:
    connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    with site.visit_tls("ws") as tls:
        tls.sendall(connection.send(Request(host=f"ws.{ZONE}", target="/chat")))

        def next_event() -> Event:
            while True:
                for event in connection.events():
                    return event
                connection.receive_data(tls.recv(1 << 16))

        assert isinstance(next_event(), AcceptConnection)
        for text in (f"GET / HTTP/1.1\r\nHost: www.{ZONE}\r\n\r\n", "bare\nlines\n", "x" * 100_000):
            tls.sendall(connection.send(TextMessage(text)))
            said = ""
            while len(said) < len(text):
                event = next_event()
                assert isinstance(event, TextMessage)
                said += event.data
            assert said == text


def test_server_sent_events_come_one_by_one(site: Site) -> None:
    gate = site.directory / "gate"
    with site.visit_tls("events") as tls:
        tls.sendall(request("events", str(gate)))
        got = b""
        for number in range(3):
            while b"data: %d\n\n" % number not in got:
                got += tls.recv(1 << 16)
            assert b"data: %d" % (number + 1) not in got
            (gate.parent / f"{gate.name}{number}").touch()
        assert rest_of(tls).endswith(b"0\r\n\r\n")


def test_a_body_that_waits_for_100_continue(site: Site) -> None:
    with site.visit_tls("continues") as tls:
        tls.sendall(
            request("continues", "/", "Expect: 100-continue", "Content-Length: 5", method="POST", close=True)
        )
        assert tls.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        tls.sendall(b"hello")
        assert rest_of(tls).endswith(b"\r\n\r\nhello")


def test_answers_without_a_body(site: Site) -> None:
    with site.visit_tls("odd") as tls:
        connection = http.client.HTTPConnection("unused")
        connection.sock = tls
        for method, status in (("HEAD", 200), ("GET", 204), ("GET", 304), ("HEAD", 200), ("GET", 204)):
            connection.putrequest(method, f"/{status}", skip_host=True)
            connection.putheader("Host", f"odd.{ZONE}")
            connection.endheaders()
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (status, b"")


def test_half_close_by_the_origin(site: Site) -> None:
    asked = request("ends", "/", "Upgrade: other", "Connection: Upgrade")
    body = MARK * 40_000
    with site.visit_tls("ends") as tls:
        tls.sendall(asked)
        assert status_of(rest_of(tls)) == 101
        tls.sendall(body)
        tls.shutdown(socket.SHUT_WR)
        (visited,) = site.visited("ends")
        wait_for(lambda: visited.ended, 10, "the end at the origin")
    assert bytes(visited.octets) == identified(asked, "ends") + body


@pytest.mark.parametrize("probe", REFUSED.values(), ids=REFUSED.keys())
def test_what_can_be_read_in_two_ways_reaches_no_origin(site: Site, probe: str) -> None:
    before = len(site.visited("script"))
    page = site.ask("script", probe.encode("latin-1") + request("script", "/smuggled"))
    assert status_of(page) == 400
    assert page.count(b"<!DOCTYPE") == 1
    for visited in site.visited("script")[before:]:
        wait_for(lambda: visited.ended, 5, "the end at the origin")  # noqa: B023
        assert visited.octets == b""


@pytest.mark.parametrize("body", CHUNKS_REFUSED.values(), ids=CHUNKS_REFUSED.keys())
def test_a_chunked_body_that_can_be_read_in_two_ways(site: Site, body: str) -> None:
    before = len(site.visited("half"))
    head = request("half", "/", "Transfer-Encoding: chunked", method="POST")
    page = site.ask("half", head + body.encode() + SMUGGLED.encode())
    (visited,) = site.visited("half")[before:]
    wait_for(lambda: visited.ended, 5, "the end at the origin")
    behind = bytes(visited.octets).removeprefix(identified(head, "half"))
    assert b"smuggled" not in behind
    assert not behind.endswith(b"0\r\n\r\n")
    assert b"HTTP/1.1 400 Bad Request\r\n" in page


def test_a_request_for_another_site_than_the_sni(site: Site) -> None:
    before = len(site.visited("script"))
    assert status_of(site.ask("script", request("www", "/who"))) == 421
    got = site.ask("script", request("script", "/one") + request("echo", "/two"))
    assert b"script: /one" in got
    assert b"HTTP/1.1 421 Misdirected Request" in got
    assert b"echo" not in b"".join(bytes(one.octets) for one in site.visited("script")[before:])


def test_a_dead_origin_is_another_clients_visitor(site: Site) -> None:
    for number in range(4):
        said = site.ask("two", request("two", f"/{number}", close=True))
        assert f"other: /{number}, 0 octets".encode() in said


def test_a_dead_origin_of_the_only_client_is_an_alert(site: Site) -> None:
    with pytest.raises(ssl.SSLError, match=INTERNAL_ERROR):
        site.visit_tls("refusing")


def test_an_origin_that_breaks_off_is_a_502_inside_tls(site: Site) -> None:
    page = site.ask("resets", request("resets"))
    assert status_of(page) == 502
    assert b"\r\nConnection: close\r\n" in page


def test_until_there_is_a_certificate_visitors_get_an_alert_and_the_log_says_why(site: Site) -> None:
    certificate, key = site.files["awaited"]
    for _ in range(3):
        with pytest.raises(ssl.SSLError, match=INTERNAL_ERROR):
            site.visit_tls("awaited")
    assert site.log.count(f"awaited.{ZONE}: {certificate} is awaited") == 1
    pems = site.issue("awaited")
    # Half of it first: nobody takes it for a certificate.
    pems.write(certificate, key)
    certificate.write_bytes(pems.certificate[:400])
    wait_for(lambda: f"{certificate} is cut off" in site.log, 20, "what is wrong with the half")
    with pytest.raises(ssl.SSLError, match=INTERNAL_ERROR):
        site.visit_tls("awaited")
    pems.write(certificate, key)
    wait_for(lambda: f"the certificate in {certificate} is in use" in site.log, 20, "the certificate")
    assert site.curl(f"https://awaited.{ZONE}/who") == f"origin awaited.{ZONE} http GET\n"
    assert site.log.count(f"{certificate} is cut off") == 1


def test_a_bad_file_leaves_the_certificate_before_it_in_use(site: Site) -> None:
    certificate, key = site.files["www"]
    whole = certificate.read_bytes()
    certificate.write_bytes(site.issue("www").certificate)  # its key is not written yet
    wait_for(lambda: f"{key} is not the key of the first certificate" in site.log, 20, "the complaint")
    assert "the certificate before it stays in use" in site.log
    assert site.curl(f"https://www.{ZONE}/who") == f"origin www.{ZONE} http GET\n"
    certificate.write_bytes(whole)


def test_port_80_leads_to_https(site: Site) -> None:
    with site.visit() as sock:
        sock.sendall(request("script", "/a?b", close=True))
        page = rest_of(sock)
    assert status_of(page) == 308
    assert f"\r\nLocation: https://script.{ZONE}:{site.ports.tls}/a?b\r\n".encode() in page


def s_client(site: Site, label: str, *options: str | Path, said: bytes = b"") -> str:
    done = subprocess.run(
        [
            *(need("openssl"), "s_client", "-connect", f"{site.appliance.address}:{site.ports.tls}"),
            *("-servername", f"{label}.{ZONE}", "-CAfile", site.directory / "ca.pem", *options),
        ],
        input=said,
        capture_output=True,
        timeout=30,
    )
    return (done.stdout + done.stderr).decode()


def test_what_openssl_says_of_it(site: Site) -> None:
    said = s_client(site, "script", "-verify_return_error", "-verify_hostname", f"script.{ZONE}")
    assert "Verify return code: 0 (ok)" in said
    assert "Protocol  : TLSv1.3" in said or "New, TLSv1.3" in said
    assert "Early data was not sent" in said
    said = s_client(site, "script", "-tls1_2", "-verify_return_error")
    assert "Cipher is ECDHE-ECDSA-AES256-GCM-SHA384" in said
    assert "Secure Renegotiation IS supported" in said
    assert "Compression: NONE" in said


@pytest.mark.parametrize(
    "options",
    [
        ("-tls1", "-cipher", "ALL:@SECLEVEL=0"),
        ("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"),
        ("-tls1_2", "-cipher", "AES128-GCM-SHA256"),
        ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA384"),
        ("-tls1_2", "-cipher", "NULL,aNULL,EXPORT,DES,RC4:@SECLEVEL=0"),
    ],
    ids=lambda options: "-".join(options),
)
def test_what_is_not_spoken(site: Site, options: tuple[str, ...]) -> None:
    said = s_client(site, "script", *options)
    assert "Cipher is (NONE)" in said or "no cipher match" in said or "no protocols" in said, said
    assert "BEGIN CERTIFICATE" not in said


def test_another_name_is_unrecognized(site: Site) -> None:
    assert "unrecognized name" in s_client(site, "never")


def test_no_early_data(site: Site) -> None:
    """A ticket says how much may come with it (RFC 8446 4.2.10). None."""
    said = s_client(
        site, "script", "-ign_eof", said=request("script", close=True)
    )
    assert "Max Early Data: 0" in said
    assert "Post-Handshake New Session Ticket arrived" in said


def visit_again(
    site: Site, context: ssl.SSLContext, label: str, session: ssl.SSLSession | None
) -> ssl.SSLSocket:
    raw = socket.create_connection((site.appliance.address, site.ports.tls), timeout=20)
    return context.wrap_socket(raw, server_hostname=f"{label}.{ZONE}", session=session)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_ticket_works_after_a_restart_of_the_client(site: Site, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context()
    site.ca.configure_trust(context)
    context.maximum_version = version
    with visit_again(site, context, "two", None) as tls:
        assert not tls.session_reused
        tls.sendall(request("two", close=True))
        rest_of(tls)
        session = tls.session
    second = site.clients["second"]
    process = second.process
    assert process is not None
    process.stop()
    second.start("s1")
    for name, state in (("second", "ticket-secret"), ("home", "ticket-secret")):
        assert (site.directory / name / "state" / state).stat().st_mode & 0o777 == 0o600
    with visit_again(site, context, "two", session) as tls:
        assert tls.session_reused
        tls.sendall(request("two", close=True))
        assert b"other: /, 0 octets" in rest_of(tls)


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_certificates_are_swapped_under_load_without_one_failed_request(site: Site, times: int) -> None:
    context = ssl.create_default_context()
    site.ca.configure_trust(context)
    certificate, key = site.files["www"]

    def shown() -> str:
        with site.visit_tls("www") as tls:
            found = tls.getpeercert()
            assert found
            return str(found["serialNumber"])

    with site.visit_tls("www") as long, Crowd(
        context, f"www.{ZONE}", [site.appliance.address], site.ports.tls
    ) as crowd:
        for number in range(times):
            pems = site.issue("www")
            pems.write(certificate, key)
            wait_for(lambda: int(shown(), 16) == pems.pair.serial_number, 20, "the new one")  # noqa: B023
            long.sendall(request("www", f"/asked/long-{number}"))
            assert b"/asked/long-" in long.recv(1 << 16)
        wait_for(lambda: len(crowd.visits) > 100, 30, "requests")
    losses = crowd.check([site.nginx])
    assert (losses.lost, losses.broken) == (0, 0), losses


def test_what_is_said_is_nowhere_at_the_server_nor_on_the_way(site: Site) -> None:
    """0 octets of it: in the server's memory while both ends hold it, and in every packet from or to it."""
    process = site.appliance.process
    assert process is not None
    body = MARK * 4000
    name = f"echo.{ZONE}".encode()
    with Capture(site.ports.tls, [MARK, name]) as capture:
        with Capture(site.ports_of["echo"], [MARK]) as control:
            with site.visit_tls("echo") as tls:
                tls.sendall(request("echo", method="POST", body=body))
                got = b""
                while len(got) < len(body):
                    got += tls.recv(1 << 16)
                assert got.count(MARK) > 3000
                # Now: the connection is open, and everything has passed.
                assert in_memory(process.pid, MARK) == 0
                assert in_memory(process.pid, name) > 0  # what it does know
            wait_for(lambda: control.seen[MARK] > 0, 10, "the mark on the way to the origin")
        wait_for(lambda: capture.seen[name] > 0, 10, "the name in the ClientHello")
    assert capture.packets > 10
    assert capture.seen[MARK] == 0
