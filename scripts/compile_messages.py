"""Compile the translations with Babel, which needs no gettext on the machine."""

import sys
from pathlib import Path

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

for po in sorted(Path(__file__).resolve().parents[1].glob("locale/*/LC_MESSAGES/*.po")):
    mo = po.with_suffix(".mo")
    if mo.exists() and mo.stat().st_mtime >= po.stat().st_mtime:
        continue
    with po.open("rb") as source:
        catalog = read_po(source, locale=po.parts[-3])
    with mo.open("wb") as target:
        write_mo(target, catalog)
    print(f"compiled {po.relative_to(Path.cwd()) if po.is_relative_to(Path.cwd()) else po}", file=sys.stderr)
