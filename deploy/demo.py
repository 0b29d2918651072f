"""`make run`: an appliance, a web server and a tunnel client on loopback, as an operator would start them.

Everything it makes is in a temporary directory, which goes with it. No root; Ctrl-C ends all of it.
"""

from __future__ import annotations

import argparse
import ctypes
import http.server
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from dnslib import DNSRecord

from deploy.demo_pebble import Pebble, may_issue

ROOT = Path(__file__).resolve().parent.parent
NAME = "www.demo.test"
PLAIN = "plain.demo.test"
"""A name whose web server has no certificate: the client gets one, where pebble is there to give it."""
HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05
PAGE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>It works</title></head>
<body><h1>It works</h1>
<p>This page came from a web server without a public address, through the tunnel.</p></body>
</html>
"""
_PR_SET_PDEATHSIG = 1

APPLIANCE = """\
[nameserver]
zones = "{zones}"
listen = [{listen}]
private_addresses = true

[server]
id = "demo"
addresses = ["{host}"]
tls = ["{host}:{tls}"]
http = ["{host}:{http}"]
"""
CLIENT = """\
invitation = "invitation.toml"
resolver = "{host}:{dns}"
tls_origin = "{host}:{tls_origin}"
http_origin = "{host}:{http_origin}"
"""
CLIENT_PLAIN = """
[names."{name}"]
acme = true

[acme]
directory = "{directory}"
root = "{root}"
terms_agreed = true
"""
READY = """
ready

  dig @{host} -p {dns} +noall +answer {name} TXT {name} A
  curl --cacert {ca} --resolve {name}:{tls}:{host} https://{name}:{tls}/
  curl --resolve {name}:{http}:{host} http://{name}:{http}/
{plain}
Ctrl-C ends it.
"""
READY_PLAIN = """  curl --cacert {root} --resolve {name}:{tls}:{host} https://{name}:{tls}/
  (its web server has no certificate: the client got one, by ACME from pebble)
"""
NO_PLAIN = """  (https for a web server without a certificate needs pebble, and port 53 of {host}: not shown)
"""


class DemoFailed(Exception):
    """The demonstration could not start; the text is what the operator reads."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dns-port", type=int, default=5354)
    parser.add_argument("--tls-port", type=int, default=8443)
    parser.add_argument("--http-port", type=int, default=8080)
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a shell's background job ignores INT
        signal.signal(number, _interrupt)
    try:
        with ExitStack() as running:
            watch = demonstration(running, options.dns_port, options.tls_port, options.http_port)
            while True:
                watch()
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        return 0
    except DemoFailed as error:
        print(error, file=sys.stderr)
        return 1


def demonstration(running: ExitStack, dns: int, tls: int, http: int) -> Callable[[], None]:
    """Start everything, print what to try; the returned function raises DemoFailed once something ended."""
    directory = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="tunnel-demo-")))
    ca = directory / "ca.pem"
    tls_origin = running.enter_context(web_server(web_tls(ca, directory / "web.pem")))
    http_origin = running.enter_context(web_server(None))
    ports = {"host": HOST, "dns": dns, "tls": tls, "http": http}
    listen = [f'"{HOST}:{dns}"']
    with_acme = may_issue()
    if with_acme:  # where a client asks a nameserver for its challenge, as the CA would
        listen.append(f'"{HOST}:53"')
    (directory / "appliance.toml").write_text(
        APPLIANCE.format(zones=ROOT / "zones", listen=", ".join(listen), **ports)
    )
    settings = CLIENT.format(tls_origin=tls_origin, http_origin=http_origin, **ports)
    appliance = running.enter_context(_Program("tunnel-appliance", directory / "appliance.toml"))
    _until(lambda: (directory / "state" / "control").exists(), appliance)
    issuer = None
    if with_acme:
        issuer = running.enter_context(Pebble(directory, f"{HOST}:{dns}", web_tls))
        settings += CLIENT_PLAIN.format(name=PLAIN, directory=issuer.directory_url, root=issuer.ca)
    (directory / "client.toml").write_text(settings)
    invitation = directory / "invitation.toml"
    names = [NAME] if issuer is None else [NAME, PLAIN]
    invite = [_beside("tunnel-appliance"), "--state", str(directory / "state"), "invite", *names]
    invited = subprocess.run(
        [*invite, "--output", str(invitation)], capture_output=True, text=True, check=False
    )
    if invited.returncode:
        raise DemoFailed(invited.stderr)
    client = running.enter_context(_Program("tunnel-client", directory / "client.toml"))

    def works() -> bool:
        if not (_resolves(dns) and _answers(NAME, tls, ca) and _answers(NAME, http, None)):
            return False
        return issuer is None or (issuer.has_root() and _answers(PLAIN, tls, issuer.root))

    _until(works, appliance, client)
    plain = NO_PLAIN.format(**ports)
    if issuer is not None:
        plain = READY_PLAIN.format(name=PLAIN, root=issuer.root, **ports)
    print(READY.format(name=NAME, ca=ca, plain=plain, **ports), flush=True)

    def watch() -> None:
        appliance.check()
        client.check()

    return watch


class _Program:
    """`twistd -n COMMAND --config FILE`, its log beside the file; ended with the demonstration."""

    def __init__(self, command: str, config: Path) -> None:
        self._log = config.with_suffix(".log")
        self._command = [_beside("twistd"), "-n", "--pidfile=", command, "--config", str(config)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Program:
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C comes to us, and we end everything in order.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._log.parent,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        return self

    def check(self) -> None:
        """Raises DemoFailed with the end of the log if the program has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise DemoFailed(self.log_end())

    def log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _until(reached: Callable[[], bool], *programs: _Program) -> None:
    limit = time.monotonic() + START_SECONDS
    while not reached():
        for program in programs:
            program.check()
        if time.monotonic() > limit:
            raise DemoFailed(
                "\n".join(["the demonstration did not start:", *(p.log_end() for p in programs)])
            )
        time.sleep(POLL_SECONDS)


def _resolves(port: int) -> bool:
    """Whether our nameserver gives the address of NAME."""
    try:
        answer = DNSRecord.parse(DNSRecord.question(NAME, "A").send(HOST, port, timeout=1))
    except OSError:
        return False
    return HOST in {str(record.rdata) for record in answer.rr}


def _answers(name: str, port: int, ca: Path | None) -> bool:
    """Whether the page comes, over TLS where a CA is given."""
    request = f"GET / HTTP/1.1\r\nHost: {name}:{port}\r\nConnection: close\r\n\r\n".encode()
    try:
        with ExitStack() as opened:
            connection = opened.enter_context(socket.create_connection((HOST, port), timeout=5))
            if ca is not None:
                context = ssl.create_default_context(cafile=str(ca))
                connection = opened.enter_context(context.wrap_socket(connection, server_hostname=name))
            connection.sendall(request)
            with connection.makefile("rb") as answer:
                return b"It works" in answer.read()
    except OSError:
        return False


class _Page(http.server.BaseHTTPRequestHandler):
    """The web server's one page."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(PAGE)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nobody reads it here."""


class _Server(http.server.ThreadingHTTPServer):
    """Wraps each connection in TLS in its own thread, so that no handshake holds up another."""

    daemon_threads = True
    tls: ssl.SSLContext | None = None

    def finish_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        if self.tls is not None:
            request = self.tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, *_: object) -> None:
        """A visitor who went is no error."""


@contextmanager
def web_server(tls: ssl.SSLContext | None, port: int = 0) -> Iterator[int]:
    """The web server without a public address; its port."""
    server = _Server((HOST, port), _Page)
    server.tls = tls
    thread = threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def web_tls(ca: Path, credential: Path, host: str = "") -> ssl.SSLContext:
    """A certificate for NAME, or another host, made on the spot; `ca` is what curl is told to trust."""
    host = host or NAME
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    ca.write_bytes(pem)
    credential.write_bytes(
        pem
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(credential)
    return context


def _beside(program: str) -> str:
    """A program of the same installation."""
    return str(Path(sys.executable).with_name(program))


def _die_with_parent() -> None:
    """Even a demonstration that was killed leaves nothing behind (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
