"""What is stood in for in the tests' internet: systemd, apt, the copying of ssh, and certbot with its CA.

`Services` reads the real unit files and does what the project's need: the command line with its variables and
directories, a user without rights but the unit's capabilities, credentials, and another start after a death.
`wheels` makes packages of what is installed here, so that `pip install` works without a package index.
"""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import zipfile
from collections.abc import Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from trustme import CA

from tests.end_to_end.internet import STOP_SECONDS, Machine
from tests.end_to_end.programs import Process, wait_for

DYNAMIC_USER = 61184
"""The first of the numbers that systemd gives to a DynamicUser."""
STATUS_OF = {"SIGTERM": "143"}
"""Of what a signal has ended, as the shell says it."""

# The service manager's part for one unit: until told to stop, the program is started again when it ends.
SUPERVISION = """
echo $$ >/run/{name}.manager
export STATE_DIRECTORY=/var/lib/{state} CONFIGURATION_DIRECTORY=/etc/{state}
export CREDENTIALS_DIRECTORY=/run/credentials/{name}.service
install --directory --mode 700 --owner {user} --group {user} $STATE_DIRECTORY
install --directory $CREDENTIALS_DIRECTORY
{credentials}
cd $STATE_DIRECTORY
umask {umask}
trap 'stopped=yes; kill -TERM $program' TERM
while [ -z "$stopped" ]; do
  setpriv --reuid {user} --regid {user} --clear-groups --no-new-privs \
    --inh-caps=-all{capabilities} --ambient-caps=-all{capabilities} --bounding-set=-all{bounds} {command} &
  program=$!
  echo $program >/run/{name}.pid
  while kill -0 $program 2>/dev/null; do wait $program; status=$?; done
  case $status in {given_up}) exit $status;; esac
  [ -n "$stopped" ] || sleep {pause}
done
"""
CREDENTIAL = "install --mode 400 --owner {user} {source} $CREDENTIALS_DIRECTORY/{name}"

WEB_SITE = """
server {{
    listen 80;
    server_name {name};
    return 301 https://$host$request_uri;
}}
server {{
    listen 443 ssl http2;
    server_name {name};
    root /var/www/html;
    ssl_certificate /etc/letsencrypt/live/{name}/fullchain.pem;
    ssl_certificate_key /etc/letsencrypt/live/{name}/privkey.pem;
}}
"""
WEB_ROOT = "/var/www/html"


class Services:
    """systemctl and journalctl of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._running: dict[str, Process] = {}

    def systemctl(self, words: list[str]) -> str:
        """`daemon-reload`, `enable --now NAME`, `restart NAME`, `stop NAME`."""
        match words:
            case ["daemon-reload"]:
                pass
            case ["enable", "--now", name]:
                self._start(name)
            case ["restart", name]:
                self._stop(name)
                self._start(name)
            case ["stop", name]:
                self._stop(name)
            case _:
                raise AssertionError(f"systemctl {words}")
        return ""

    def journalctl(self, words: list[str]) -> str:
        """`--unit NAME --output cat`: what the program said since its last start by hand."""
        match words:
            case ["--unit", name, "--output", "cat"]:
                return self._running[name].output
            case _:
                raise AssertionError(f"journalctl {words}")

    def kill(self, name: str) -> None:
        """`kill -9` of the program; the service manager is left to it."""
        self._machine.run(f"kill -KILL $(cat /run/{name}.pid)")

    def process_id(self, name: str) -> int:
        """The program's, as the machine numbers it."""
        return int(self._machine.path(f"/run/{name}.pid").read_text())

    def _start(self, name: str) -> None:
        unit = configparser.RawConfigParser(strict=False, comment_prefixes=("#",))
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(self._machine.path(f"/etc/systemd/system/{name}.service").read_text())
        service = unit["Service"]
        assert service["DynamicUser"] == "yes"
        credentials = []
        if "LoadCredential" in service:
            called, _, source = service["LoadCredential"].partition(":")
            credentials = [CREDENTIAL.format(user=DYNAMIC_USER, source=source, name=called)]
        script = SUPERVISION.format(
            name=name,
            state=service["StateDirectory"],
            credentials="\n".join(credentials),
            user=DYNAMIC_USER,
            umask=service["UMask"],
            capabilities=_capabilities(service.get("AmbientCapabilities", "")),
            bounds=_capabilities(service["CapabilityBoundingSet"]),
            command=re.sub(r"\\\n", " ", service["ExecStart"]),
            given_up="|".join(
                STATUS_OF.get(word, word) for word in service["RestartPreventExitStatus"].split()
            ),
            pause=service["RestartSec"],
        )
        self._running[name] = self._machine.start(name, script)

    def _stop(self, name: str) -> None:
        process = self._running.pop(name)
        self._machine.run(f"kill -TERM $(cat /run/{name}.manager)")
        wait_for(lambda: process.status is not None, STOP_SECONDS, f"the end of {name}")


def apt_get(home: Machine, words: list[str]) -> str:
    """`install --yes PACKAGE…`: all are here already; Debian starts a web server that it installs."""
    assert words[:2] == ["install", "--yes"]
    if "nginx" in words:
        home.run("nginx")
    return ""


def scp(machines: dict[str, Machine], here: Machine, words: list[str]) -> str:
    """`root@ADDRESS:/FILE .`, where `machines` is by address."""
    source, target = words
    assert target == "."
    address, _, name = source.removeprefix("root@").partition(":")
    copied = here.path(f"{here.working_directory}/{Path(name).name}")
    shutil.copyfile(machines[address].path(name), copied)
    return ""


def certbot(home: Machine, ca: CA, ca_asks_from: Machine, words: list[str]) -> str:
    """`--nginx --domain NAME`: the CA asks for a token by plain HTTP (RFC 8555 8.3); nginx is set up."""
    option, domain_option, name = words
    assert (option, domain_option) == ("--nginx", "--domain")
    challenge, token = "/.well-known/acme-challenge/token", "token.of-the-account"
    home.write(WEB_ROOT + challenge, token)
    assert ca_asks_from.run(f"curl --fail http://{name}{challenge}") == token
    issued = ca.issue_cert(name)
    live = f"/etc/letsencrypt/live/{name}"
    home.write(f"{live}/fullchain.pem", "".join(pem.bytes().decode() for pem in issued.cert_chain_pems))
    home.write(f"{live}/privkey.pem", issued.private_key_pem.bytes().decode())
    home.write(f"/etc/nginx/sites-enabled/{name}", WEB_SITE.format(name=name))
    home.run("nginx -t && nginx -s reload")
    return ""


def wheels(directory: Path, *names: str) -> None:
    """Write wheels of these installed distributions and all that they need."""
    directory.mkdir()
    for name, package in _installed(names).items():
        tags = re.findall(r"^Tag: (\S+)$", package.read_text("WHEEL") or "", re.MULTILINE)
        parts = zip(*(tag.split("-") for tag in tags), strict=True)
        tag = "-".join(".".join(dict.fromkeys(part)) for part in parts)
        file = directory / f"{name.replace('-', '_')}-{package.version}-{tag}.whl"
        with zipfile.ZipFile(file, "w") as wheel:
            for path in package.files or ():
                if ".." not in path.parts and path.suffix != ".pyc":
                    wheel.write(str(path.locate()), str(path))


def _installed(names: Sequence[str]) -> dict[str, Distribution]:
    """The distributions that these requirements lead to, by name."""
    found: dict[str, Distribution] = {}
    wanted = [Requirement(name) for name in names]
    while wanted:
        requirement = wanted.pop()
        name = str(canonicalize_name(requirement.name))
        if name in found and not requirement.extras:
            continue
        package = found.setdefault(name, distribution(name))
        extras = requirement.extras or {""}
        for needed in map(Requirement, package.requires or ()):
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                wanted.append(needed)
    return found


def _capabilities(names: str) -> str:
    """As setpriv adds them: `,+net_bind_service` of `CAP_NET_BIND_SERVICE`."""
    return "".join(f",+{name.removeprefix('CAP_').lower()}" for name in shlex.split(names))
