"""Methods from the same rankings, trained by real workers, measured by one press of a button."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.loop.platform import Installation

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("people")]
MINUTE = 60_000  # milliseconds
SHORT = ["batch_size=8", "max_new_tokens=12", "threads=1"]


def test_what_is_missing_is_measured_and_drawn(bucle: Installation, project: str, sign_in: Callable[..., Page]) -> None:
    bucle.manage("train", "reward", "--project", project, "--wait")
    bucle.manage("train", "dpo", "--project", project, "--wait", "--set", *SHORT)
    bucle.manage("train", "grpo", "--project", project, "--wait", "--set", *SHORT, "updates=2")
    alice = sign_in("alice")
    problems: list[str] = []
    alice.on("pageerror", lambda error: problems.append(str(error)))
    alice.goto(f"/p/{project}/compare/")
    expect(alice.locator(".compare-table")).to_contain_text("not measured yet")
    alice.click("text=Evaluate what is missing")
    # DPO, RLOO and best of 2, 4, 8 and 16: the page fills itself while the train worker measures one after the other.
    expect(alice.locator(".compare-win .interval")).to_have_count(6, timeout=3 * MINUTE)
    expect(alice.locator("text=Evaluate what is missing")).to_have_count(0)
    expect(alice.locator("[data-compare] canvas")).to_have_count(2)
    said = bucle.manage("compare", "--project", project)
    assert [row["missing"] for row in said["rows"]] == [False] * 7
    assert {row["method"] for row in said["rows"]} >= {"Reference", "DPO", "RLOO", "Best of 16"}
    alice.set_viewport_size({"width": 390, "height": 900})
    assert alice.evaluate("document.documentElement.scrollWidth - innerWidth") == 0
    assert problems == []
