"""The bench: contenders take turns, what is missing has its reason, and a section of the results is replaced."""

import sys
from pathlib import Path

from bench.harness import compare, section

CONTENDER = """
import sys
sys.path.insert(0, {root!r})
from bench.harness import NotRun, serve
def setup():
    {setup}
    print("a library's rubbish")
    rates = iter([3.0, 1.0, 2.0])
    memory = bytearray(64 << 20)
    def work():
        with open({log!r}, "a") as log:
            log.write({name!r})
        return {{"rate": next(rates), "unit": "things/s"}}
    return work
serve(setup)
"""
ROOT = str(Path(__file__).resolve().parents[1])


def contender(log: Path, name: str, setup: str = "pass") -> list[str]:
    return [sys.executable, "-c", CONTENDER.format(root=ROOT, log=str(log), name=name, setup=setup)]


def test_contenders_take_turns_and_give_medians_spread_and_memory(tmp_path: Path) -> None:
    log = tmp_path / "log"
    found = compare({name: contender(log, name) for name in "ab"}, rounds=3)
    assert log.read_text() == "ababab"
    assert (found["a"].median, found["a"].low, found["a"].high) == (2.0, 1.0, 3.0)
    assert found["a"].extra == {"unit": "things/s"}
    if sys.platform == "linux":
        assert 64 < found["b"].peak_mib < 1024


def test_what_is_missing_or_breaks_is_a_row_with_its_reason(tmp_path: Path) -> None:
    log = tmp_path / "log"
    setups = {
        "absent": "import no_such_library",
        "refused": "raise NotRun('set NANOGPT')",
        "broken": "raise SystemExit(3)",
        "fine": "pass",
    }
    found = compare({name: contender(log, name, setup) for name, setup in setups.items()}, rounds=1)
    assert str(found["absent"]) == "not run: no_such_library is not installed (make bench installs it)"
    assert found["refused"].reason == "set NANOGPT"
    assert found["broken"].reason == "it ended with code 3"
    assert str(found["fine"]) == "3 (3-3)"


def test_a_section_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("# Results\n\nBy hand.\n")
    section("x", "first", page)
    section("y", "other", page)
    section("x", "second", page)
    assert page.read_text() == (
        "# Results\n\nBy hand.\n\n<!-- bench:x begin -->\nsecond\n<!-- bench:x end -->\n\n"
        "<!-- bench:y begin -->\nother\n<!-- bench:y end -->\n"
    )
