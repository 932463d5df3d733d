#!/usr/bin/env bash
# All tests: on SQLite side by side, then the database tests on PostgreSQL, then what starts real services and a browser.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
export OMP_NUM_THREADS=1 # two test processes on two cores

scripts/browser.sh
echo "== unit tests (SQLite)" >&2
$bin/python -m pytest -q -n 2 -m "not services and not browser and not slow"
echo "== database tests (PostgreSQL)" >&2
BUCLE_TEST_DATABASE=postgres $bin/python -m pytest -q -n 2 -m "not services and not browser and not slow" \
  tests/accounts tests/registry tests/labeling
echo "== real Valkey and real workers" >&2
$bin/python -m pytest -q -m "services and not browser and not slow"
echo "== a real browser" >&2 # in a process of its own: its event loop stays in the thread
$bin/python -m pytest -q -m "browser and not slow"
