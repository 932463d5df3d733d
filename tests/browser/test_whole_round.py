"""A round from sign-in to promotion, by two people in two browsers."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.loop.platform import Installation

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("people")]
SignIn = Callable[..., Page]
MINUTE = 60_000  # milliseconds


def _rank_by_keyboard(page: Page) -> None:
    """The first text best, the second and third tied below it; then send."""
    expect(page.locator(".card-text")).to_have_count(3)
    page.keyboard.press("a")
    for key in "122":
        page.keyboard.press(key)
    expect(page.locator("#ladder .rung.tied")).to_have_count(1)
    task = page.url
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: url != task)


def test_from_sign_in_to_the_next_rounds_completions(bucle: Installation, project: str, sign_in: SignIn) -> None:
    alice, bob = sign_in("alice"), sign_in("bob")

    # bob writes a demonstration; a draft survives a reload.
    bob.goto(f"/p/{project}/write/")
    expect(bob.locator("#task-form")).to_be_visible()
    prompt = bob.locator(".prompt .reading").inner_text()
    with bob.expect_response(re.compile("/draft/")):
        bob.fill("textarea[name=response]", "Con gusto: cuesta tres monedas")
    bob.reload()
    expect(bob.locator("textarea[name=response]")).to_have_value("Con gusto: cuesta tres monedas")
    bob.fill("textarea[name=response]", "Con gusto: cuesta tres monedas. ¡Buen día!")
    task = bob.url
    bob.click("#send")
    bob.wait_for_url(lambda url: url != task)
    stored = bucle.query(
        "SELECT d.response FROM labeling_demonstration d JOIN labeling_prompt p ON p.id = d.prompt_id WHERE p.text = ?"
        " AND d.source = 'human'", prompt,
    )  # fmt: skip
    assert stored == [("Con gusto: cuesta tres monedas. ¡Buen día!",)]

    # alice opens a round; the serve worker fills it while she watches.
    alice.goto(f"/p/{project}/rounds/new/")
    for name, value in {"prompts": "4", "k": "3", "max_new_tokens": "12"}.items():
        alice.fill(f"[name={name}]", value)
    alice.click("details.more > summary")
    for name, value in {"min_accuracy": "0", "ppo_updates": "6", "reward_epochs": "1"}.items():
        alice.fill(f"[name={name}]", value)
    alice.click("main form button.btn-primary")
    expect(alice.locator("[aria-current=step]")).to_contain_text("Ranking", timeout=2 * MINUTE)
    number = int(re.search(r"/rounds/(\d+)/", alice.url).group(1))

    # bob ranks by keyboard alone, one task after the other.
    bob.goto(f"/p/{project}/rank/")
    for _ in range(4):
        assert "sft-1" not in bob.content(), "the model's name is hidden from the one who ranks"
        _rank_by_keyboard(bob)
    tiers = bucle.query("SELECT tiers, source FROM labeling_ranking WHERE source = 'human'")
    assert len(tiers) == 4

    # alice closes the round and watches PPO's curve grow without a reload.
    alice.reload()
    alice.get_by_role("button", name="Close the round").click()
    ppo = bucle.wait_for(
        lambda: bucle.query("SELECT id FROM registry_run WHERE stage = 'ppo' AND status = 'running'"), 120
    )
    watcher = alice.context.new_page()
    watcher.goto(f"/p/{project}/runs/{ppo[0][0]}/")
    watcher.evaluate("window.stillTheSamePage = true")
    expect(watcher.locator("main")).to_contain_text("Succeeded", timeout=2 * MINUTE)
    expect(watcher.locator(".uplot").first).to_be_visible()
    assert watcher.evaluate("window.stillTheSamePage") is True

    # The evaluation stands on the round; she promotes, and the next round is written by the new policy.
    expect(alice.get_by_role("button", name="Promote the new policy")).to_be_visible(timeout=2 * MINUTE)
    alice.get_by_role("button", name="Promote the new policy").click()
    expect(alice.locator("main")).to_contain_text("Promoted")
    opened = bucle.manage(
        "round", "open", "--project", project, "--prompts", "2", "--k", "2", "--max-new-tokens", "8", "--wait"
    )
    assert opened["round"] == number + 1
    writers = bucle.query(
        "SELECT DISTINCT m.kind, m.run_id FROM labeling_completion c JOIN labeling_task t ON t.id = c.task_id "
        "JOIN labeling_round r ON r.id = t.round_id JOIN registry_modelversion m ON m.id = c.model_id "
        "WHERE r.number = ?",
        number + 1,
    )  # fmt: skip
    assert writers == [("policy", ppo[0][0])]
    bucle.manage("round", "reject", "--project", project)


def test_the_playground_streams_two_models(bucle: Installation, project: str, sign_in: SignIn) -> None:
    alice = sign_in("alice", width=390)
    alice.goto(f"/p/{project}/playground/")
    alice.fill("[name=prompt]", "¿Cuánto cuesta el pan?")
    alice.fill("[name=max_new_tokens]", "8")
    alice.locator("main form button.btn-primary").click()
    bucle.wait_for(
        lambda: (
            bucle.query("SELECT COUNT(*) FROM labeling_completion WHERE task_id IS NULL AND status = 'done'")[0][0] >= 1
        )
    )
    text = bucle.query("SELECT text FROM labeling_completion WHERE task_id IS NULL AND status = 'done'")[0][0]
    expect(alice.locator("main")).to_contain_text(text.split("\ufffd")[0][:20].strip(), timeout=MINUTE)


def test_a_person_who_is_no_member_sees_404(bucle: Installation, project: str, sign_in: SignIn) -> None:
    bucle.shell("from accounts.services import create_project\ncreate_project(name='Puerto', slug='puerto')")
    bob = sign_in("bob")
    assert bob.goto("/p/puerto/").status == 404
    assert bob.goto(f"/p/{project}/runs/").status == 403
