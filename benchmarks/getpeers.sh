#!/bin/bash
# Builds the peers of `make bench-relay` that Debian has not, into .bench/bin: getpeers.sh [FRP_SOURCE]
# rathole comes from its registry by cargo; frp by go, from a folder with its source (a git clone of it will do,
# bare or not) or, without one, from the module proxy. HAProxy and nginx are Debian's (make packages).
set -euo pipefail
RATHOLE=0.5.0
FRP=v0.70.1
here=$(cd "$(dirname "$0")/.." && pwd)
bin=$here/.bench/bin
mkdir -p "$bin"
export PATH="$bin:$PATH:$HOME/.cargo/bin:/usr/local/go/bin"

if command -v rathole >/dev/null; then
  echo "rathole: $(command -v rathole)"
elif command -v cargo >/dev/null; then
  cargo install --quiet rathole --version "$RATHOLE" --root "$here/.bench"
else
  echo "skipped: rathole, no cargo"
fi

if command -v frps >/dev/null && [ -x "$bin/frpmany" ]; then
  echo "frp: $(command -v frps)"
elif command -v go >/dev/null; then
  source=$here/.bench/frp
  rm -rf "$source"
  mkdir -p "$source"
  given=${1:-}
  if [ -n "$given" ] && git -C "$given" rev-parse "$FRP" >/dev/null 2>&1; then
    git -C "$given" archive "$FRP" | tar x -C "$source"
  elif [ -n "$given" ]; then
    cp -r "$given/." "$source"
  else
    fetched=$(cd /tmp && go mod download -json "github.com/fatedier/frp@$FRP" | sed -n 's/^\t"Dir": "\(.*\)",\?$/\1/p')
    cp -r "$fetched/." "$source"
    chmod -R u+w "$source"
  fi
  # Many clients in one process, for the row `idleclients`; without the web pages of its dashboard.
  mkdir -p "$source/cmd/frpmany"
  cp "$here/benchmarks/frpmany.go" "$source/cmd/frpmany/main.go"
  (cd "$source" && go build -tags noweb -o "$bin/" ./cmd/frps ./cmd/frpc ./cmd/frpmany)
else
  echo "skipped: frp, no go"
fi
