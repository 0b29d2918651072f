# make run      a demonstration on loopback, without root: an appliance, a web server and a client
# make test     every check and every test but the slow ones
# make prove    the slow tests too
# make docs     docs/reference/settings.md, from the settings' classes
# make bench-dns  the nameserver beside NSD, Knot, PowerDNS and BIND; bar NAME VALUE GOAL ok|MISS
# make bench-relay  the tunnel beside HAProxy, frp and rathole; ROWS="bulk new" for some of it, ROWS=soak
# make bench-tls  TLS ended at the client beside nginx behind the same tunnel; bar NAME VALUE GOAL ok|MISS
# make chaos MINUTES=75  the fleet under faults, in network namespaces (root): bar NAME VALUE GOAL ok|MISS
# make measure  start-up, memory and CPU, one line each: measured NAME VALUE UNIT
#
# Each does all its own set-up in .venv. Debian packages are installed only by root; without them the tests
# that need them say so and are skipped.

SHELL := /bin/bash
PYTHON ?= python3
DNS_PORT ?= 5354
TLS_PORT ?= 8443
HTTP_PORT ?= 8080
MINUTES ?= 75
ROUNDS ?= 3
ROWS ?=
PACKAGES := bind9-dnsutils knot-dnsutils unbound nginx chromium nsd knot bind9 iproute2 nftables curl dnsperf \
  nghttp2-client haproxy faketime libnss3-tools pebble lego certbot python3-certbot-dns-rfc2136 zonemaster-cli \
  dnsviz pdns-server pdns-backend-bind
PROGRAMS := dig kdig unbound nginx chromium nsd knotd named ip nft curl nghttp h2load haproxy faketime certutil \
  dnsperf pebble lego certbot zonemaster-cli dnsviz pdns_server
MYPY_PATHS := appliance tests twisted/plugins deploy docs benchmarks

.PHONY: run test prove bench-dns bench-relay bench-tls chaos measure check docs packages clean
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
# Where it is set, each of the some hundred programs that the tests start would compile the whole project again.
unexport PYTHONDONTWRITEBYTECODE

run: .venv/ready
	@exec .venv/bin/python deploy/demo.py --dns-port $(DNS_PORT) --tls-port $(TLS_PORT) --http-port $(HTTP_PORT)

# Most end-to-end tests wait for something, so two at a time take little more than one. In the order of their
# names the last files are short ones, so neither worker waits long for the other at the end.
test: check packages
	.venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

prove: check packages
	PROVE=1 .venv/bin/pytest -m "slow or not slow"

measure: .venv/test-ready packages
	@exec .venv/bin/python benchmarks/measure.py

bench-dns: .venv/test-ready packages
	@exec .venv/bin/python -m benchmarks.dns

# The peers that are not of Debian are built by benchmarks/getpeers.sh into .bench; without them it goes on.
bench-relay: .venv/test-ready packages
	@exec .venv/bin/python -m benchmarks.relay --rounds $(ROUNDS) --into docs/speed $(ROWS)

bench-tls: .venv/test-ready packages
	@exec .venv/bin/python -m benchmarks.tls

chaos: .venv/test-ready packages
	@exec .venv/bin/python -m tests.lab.chaos --minutes $(MINUTES)

check: .venv/test-ready
	.venv/bin/ruff check .
	.venv/bin/mypy $(MYPY_PATHS)

docs: .venv/test-ready
	.venv/bin/python docs/settings_reference.py > docs/reference/settings.md.new
	mv docs/reference/settings.md.new docs/reference/settings.md

packages:
	@missing=""
	for program in $(PROGRAMS); do
	  PATH="$$PATH:/usr/sbin:/sbin" command -v "$$program" >/dev/null || missing="$$missing $$program"
	done
	if [ -z "$$missing" ]; then exit 0; fi
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	  apt-get update -q >/dev/null
	  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -q --no-install-recommends $(PACKAGES) >/dev/null
	else
	  echo "skipped: not root, so the tests with$$missing do not run (apt-get install $(PACKAGES))"
	fi

.venv/bin/python:
	@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then
	  if [ "$$(id -u)" != 0 ]; then echo "python3-venv is missing: apt-get install python3-venv" >&2; exit 1; fi
	  apt-get update -q >/dev/null
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -q python3-venv >/dev/null
	fi
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q --upgrade pip

.venv/ready: pyproject.toml | .venv/bin/python
	@.venv/bin/pip install -q -e .
	touch $@

.venv/test-ready: pyproject.toml | .venv/bin/python
	@.venv/bin/pip install -q -e . --group test
	touch .venv/ready $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
