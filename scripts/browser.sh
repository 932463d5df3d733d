#!/usr/bin/env bash
# A browser for the browser tests: one on the PATH, else Debian's when root, else Playwright's own, else one loud line.
set -uo pipefail
cd "$(dirname "$0")/.."

for name in chromium chromium-browser google-chrome google-chrome-stable; do
  command -v "$name" >/dev/null && exit 0
done
compgen -G "${PLAYWRIGHT_BROWSERS_PATH:-$HOME/.cache/ms-playwright}/chromium-*" >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "== installing chromium for the browser tests" >&2
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null 2>&1 && exit 0
fi
echo "== installing Playwright's chromium for the browser tests" >&2
.venv/bin/python -m playwright install chromium >/dev/null 2>&1 && exit 0
echo "!! NO BROWSER: the browser tests will be SKIPPED. Install chromium to run them." >&2
