"""docs/tutorial.md, replayed word for word in an internet of the test's own; and what it promises.

Every block is replayed, in order. Only the address of the public machine is another: the tutorial's is one
for documentation, and so not globally routable. `stand_ins` says which programs are not the real ones.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
import trustme

from tests.end_to_end import stand_ins
from tests.end_to_end.console import Repeated, Typed, agrees, sections
from tests.end_to_end.internet import HOME, HOME_ROUTER, PUBLIC, Internet, Machine, internet
from tests.end_to_end.programs import wait_for
from tests.end_to_end.stand_ins import Services

ROOT = Path(__file__).resolve().parent.parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
SHOWN_ADDRESS = "203.0.113.5"
CHECKOUT = ("appliance", "deploy", "twisted", "zones", "README.md", "pyproject.toml")
MADE_HERE = shutil.ignore_patterns("__pycache__", "dropin.cache")
NAME = "www.example.org"
PAGE = "<h1>Hello from home</h1>\n"

LOOKING = ("curl", "dig", "journalctl")
"""Commands that change nothing: repeated, as by a person, until they say what the tutorial shows."""
LOOK_SECONDS = 30.0
COME_BACK_SECONDS = 30.0


class Tutorial:
    """Somebody who follows it. `said` is what the last command said."""

    def __init__(self, net: Internet, wheels: Path) -> None:
        self.net = net
        self.public_services, self.home_services = Services(net.public), Services(net.home)
        self.said = ""
        self._sections = sections(TUTORIAL)
        for machine in (net.public, net.home):
            _check_out(machine)
            machine.environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_NO_COMPILE": "1"}

    def follow(self) -> None:
        """From the first to the last block."""
        printed: tuple[str, ...] = ()
        for heading, steps in self._sections.items():
            if heading.startswith("2. "):
                self.net.delegate(printed)
            if heading.startswith("4. "):  # "with the commands of step 1", whose result is the same
                opt = "/opt/tunnel-appliance"
                shutil.copytree(self.net.public.path(opt), self.net.home.path(opt), symlinks=True)
            for step in steps:
                if isinstance(step, Repeated):
                    said = [line.rstrip() for line in self.said.splitlines()]
                    printed = tuple(line.replace(SHOWN_ADDRESS, PUBLIC) for line in step.lines)
                    assert "\n".join(printed) in "\n".join(said), (printed, said)
                else:
                    self._type(step)

    def look(self, machine: str, command: str, shows: str, seconds: float = LOOK_SECONDS) -> None:
        """Repeat a command that changes nothing until it says what is expected."""
        self._type(Typed(machine, command, shows), seconds)

    def _type(self, step: Typed, seconds: float = LOOK_SECONDS) -> None:
        machine = self.net.machines[step.machine]
        command = step.command.replace(SHOWN_ADDRESS, PUBLIC)
        shown = step.says.replace(SHOWN_ADDRESS, PUBLIC)
        words = shlex.split(command, comments=True)
        status = 0

        def agreed() -> bool:
            nonlocal status
            status = self._do(machine, command, words)
            return status == 0 and (not shown or agrees(shown, self.said))

        try:
            wait_for(agreed, seconds if words[0] in LOOKING else 0, "what the tutorial shows")
        except pytest.fail.Exception:
            what = f"{step.machine}: {command}\nstatus {status}\n{self.said}-- the tutorial shows:\n{shown}"
            pytest.fail(what, pytrace=False)

    def _do(self, machine: Machine, command: str, words: list[str]) -> int:
        services = self.home_services if machine is self.net.home else self.public_services
        by_hand: dict[str, Callable[[list[str]], str]] = {
            "apt-get": lambda words: stand_ins.apt_get(machine, words),
            "certbot": lambda words: stand_ins.certbot(machine, self.net.ca, self.net.elsewhere, words),
            "journalctl": services.journalctl,
            "scp": lambda words: stand_ins.scp({PUBLIC: self.net.public}, machine, words),
            "systemctl": services.systemctl,
        }
        if words[0] in by_hand:
            self.said = by_hand[words[0]](words[1:])
            return 0
        done = machine.attempt(command)
        self.said = done.stdout
        return done.returncode


def _needed() -> list[str]:
    """What the project depends on, as its own metadata says."""
    return distribution("tunnel-appliance").requires or []


def _check_out(machine: Machine) -> None:
    target = machine.path(f"{HOME}/tunnel-appliance")
    target.mkdir()
    for name in CHECKOUT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=MADE_HERE)
        else:
            shutil.copyfile(source, target / name)


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tutorial]:
    """The tutorial, followed to its end."""
    directory = tmp_path_factory.mktemp("internet")
    wheels = directory / "wheels"
    stand_ins.wheels(wheels, "hatchling", *_needed())
    with internet(directory) as net:
        if net.public.attempt(f"setpriv --reuid {stand_ins.DYNAMIC_USER} python3 -c ''").returncode:
            pytest.skip(f"{sys.base_prefix} is no Python that every user may run")
        followed = Tutorial(net, wheels)
        followed.follow()
        yield followed


def test_the_tutorial(tutorial: Tutorial) -> None:
    """Every block was replayed by the fixture; the last one shows what is running."""
    said = tutorial.said
    assert NAME in said
    assert PUBLIC in said


def test_nothing_leaves(tutorial: Tutorial) -> None:
    """The machines have links to the switch and to each other, and no other."""
    net = tutorial.net
    links = {name: machine.links() - {"lo"} for name, machine in net.machines.items()}
    assert links.pop("switch") == {"switch", "root", "org", "public", "elsewhere", "router"}
    assert links.pop("router") == {"eth0", "eth1"}
    assert all(others == {"eth0"} for others in links.values())


def test_nothing_gets_into_the_home(tutorial: Tutorial) -> None:
    for port in (22, 80, 443):
        tutorial.net.elsewhere.run(f"curl --max-time 0.3 http://{HOME_ROUTER}:{port}/", fails=True)


def test_the_visitor_s_page(tutorial: Tutorial) -> None:
    """HTTPS with verification, by both versions of HTTP; and port 80 leads there."""
    elsewhere = tutorial.net.elsewhere
    elsewhere.write("/srv/other-ca", trustme.CA().cert_pem.bytes().decode())
    for version in ("--http1.1", "--http2"):
        assert elsewhere.run(f"curl {version} https://{NAME}/") == PAGE
    assert elsewhere.run(f"curl --location http://{NAME}/") == PAGE
    untrusted = elsewhere.run(f"curl --cacert /srv/other-ca https://{NAME}/", fails=True)
    assert "certificate" in untrusted, untrusted


def test_the_client_is_restarted(tutorial: Tutorial) -> None:
    """A visitor who comes meanwhile waits; the records stay."""
    net = tutorial.net
    tutorial.home_services.systemctl(["stop", "tunnel-client"])
    tutorial.home_services.systemctl(["enable", "--now", "tunnel-client"])
    assert net.elsewhere.run(f"curl --max-time 20 https://{NAME}/") == PAGE
    assert net.elsewhere.run(f"dig {NAME} A +short") == f"{PUBLIC}\n"


def test_the_appliance_dies(tutorial: Tutorial) -> None:
    """`kill -9`: systemd starts it again, the client comes back by itself, and serials have risen."""
    net, services = tutorial.net, tutorial.public_services
    before, serial = services.process_id("tunnel-appliance"), _serial(net)
    services.kill("tunnel-appliance")
    tutorial.look("elsewhere", f"curl https://{NAME}/", PAGE, COME_BACK_SECONDS)
    assert services.process_id("tunnel-appliance") != before
    tutorial.look("elsewhere", f"dig @{PUBLIC} {NAME} A +short +tries=1", f"{PUBLIC}\n")
    assert _serial(net) > serial
    seen = "…\n… left server …\n…\n… joined server …\n…\n"
    tutorial.look("home", "journalctl --unit tunnel-client --output cat", seen)


def test_port_80_redirects_without_an_http_origin(tutorial: Tutorial) -> None:
    """As the tutorial's client, but for one line: then the server says where the page is."""
    home = tutorial.net.home
    home.run("sed -i /http_origin/d /etc/tunnel-client/client.toml")
    tutorial.home_services.systemctl(["restart", "tunnel-client"])
    tutorial.look(
        "elsewhere",
        f"curl --output /dev/null --write-out '%{{http_code}} %{{redirect_url}}\\n' http://{NAME}/a?b",
        f"308 https://{NAME}/a?b\n",
    )
    assert tutorial.net.elsewhere.run(f"curl --location http://{NAME}/") == PAGE


def _serial(net: Internet) -> int:
    return int(net.elsewhere.run(f"dig @{PUBLIC} example.org SOA +short").split()[2])
