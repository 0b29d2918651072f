"""A browser shows a page by https whose web server has no certificate: the tunnel client has got one.

Its page asks again, holds a WebSocket, and takes server-sent events, all from a plain origin.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.service.client.acmestate import AcmeState
from tests.end_to_end.pebble import Pebble
from tests.end_to_end.programs import need, wait_for
from tests.end_to_end.site import Nginx
from tests.end_to_end.test_browser import NAME, SCREENSHOTS, Network

PAGE = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>A padlock</title>
<style>body { font: 32px sans-serif; background: #eef2f8; padding: 1em } h1 { color: #17315c }</style></head>
<body><h1>A plain web server, by https</h1><p>You are at <b id="where">nowhere</b>.</p>
<img src="/hold" alt=""><p id="fetched">Nothing was fetched.</p>
<p id="echo">Nothing was echoed.</p><p id="event">No event.</p>
<script>
const put = (place, text) => document.getElementById(place).textContent = text;
put("where", location.href + " " + window.isSecureContext);
fetch("/who").then(answer => answer.text()).then(text => { put("fetched", text); fetch("/seen-who"); });
const socket = new WebSocket("wss://" + location.host + "/socket");
socket.onopen = () => socket.send("over a WebSocket");
socket.onmessage = message => { put("echo", "echo: " + message.data); fetch("/seen-echo"); };
const events = new EventSource("/events");
events.onmessage = event => { put("event", "event: " + event.data); events.close(); fetch("/seen-event"); };
</script></body></html>
"""


class PlainOrigin(Network):
    """The name is served from a small server of the test's own, which knows no TLS."""

    def served_from(self, nginx: Nginx) -> list[str | Path]:
        (self.directory / "page.html").write_text(PAGE)
        origin = self.run(
            "origin", sys.executable, "-m", "tests.end_to_end.plain_origin", self.directory / "page.html"
        )
        origin.says("port ")
        port = origin.output.partition("port ")[2].split()[0]
        self.pebble = Pebble(self.directory / "pebble", "127.0.0.1:53", inside=self._inside)
        self.running.callback(self.pebble.kill)
        self.pebble.start()
        (self.directory / "ca.pem").write_bytes(self.pebble.root())
        (self.directory / "client.toml").write_text(
            f'http_origin = "127.0.0.1:{port}"\n[acme]\nterms_agreed = true\n'
            f'directory = "{self.pebble.url}"\nroot = "{self.pebble.ca}"\n'
        )
        return ["--config", self.directory / "client.toml"]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainOrigin]:
    if os.geteuid() != 0:
        pytest.skip("not root: a network of its own and ports 53, 80 and 443 need it")
    for program in ("unshare", "nsenter", "ip", "unbound", "nginx", "certutil", "chromium", "dig", "pebble"):
        need(program)
    made = PlainOrigin(tmp_path_factory.mktemp("padlock"))
    with made.running:
        made.start()
        state = AcmeState(made.directory / "client", made.pebble.url)
        wait_for(lambda: state.certificate(NAME), 40, "a certificate")
        yield made


def test_a_browser_shows_a_plain_origin_by_https(network: PlainOrigin) -> None:
    screenshot = SCREENSHOTS / "https.png"
    dom, log = network.browse(f"http://{NAME}/", screenshot, waits=())
    assert "<h1>A plain web server, by https</h1>" in dom
    assert "HTTP/1.1 308 Permanent Redirect" in log
    assert f'<b id="where">https://{NAME}/ true</b>' in dom
    assert f'<p id="fetched">https {NAME}</p>' in dom
    assert '<p id="echo">echo: over a WebSocket</p>' in dom
    assert '<p id="event">event: from the origin</p>' in dom
    assert screenshot.stat().st_size > 5_000
