"""docs/engine.md names places in the code that exist, and every one of the 42 details."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from training.config import STAGES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")
PLACES = sorted(set(re.findall(r"`training/(\w+)\.py:([\w.]+)`", PAGE)))


@cache
def _names(module: str) -> set[str]:
    """What a module defines itself: functions, classes, their methods, constants."""
    tree = ast.parse((ROOT / "training" / f"{module}.py").read_text(encoding="utf-8"))
    found = set[str]()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{method.name}" for method in node.body if isinstance(method, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            found |= {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


@pytest.mark.parametrize(("module", "name"), PLACES)
def test_every_place_that_the_page_names_exists(module, name):
    assert name in _names(module)


def test_the_page_has_all_details_and_stays_a_page():
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)] == list(range(1, 43))
    assert len(PAGE.splitlines()) <= 150
    assert len(PLACES) > 40


def test_the_numbers_that_the_page_names_are_the_settings():
    ppo, sayings = STAGES["ppo"], dict(re.findall(r"^\| (\d+) \| [^|]+\| ([^|]+) \|", PAGE, re.MULTILINE))
    assert f"`kl_coef` {ppo.kl_coef:g}" in sayings["26"]
    assert (ppo.gamma, ppo.lam) == (1.0, 0.95)  # the detail's own, "yes"
    assert f"clipped at {ppo.cliprange_value:g}, weight {ppo.vf_coef:g}" in sayings["32"]
    assert ppo.cliprange == 0.2
    assert f"{ppo.epochs} passes of {ppo.minibatches} minibatches" in sayings["34"]
    assert f"+-{ppo.score_clip:g} after scaling" in sayings["37"]
    assert (ppo.kl_target, ppo.whiten_rewards, ppo.ptx_coef) == (0.0, False, 0.0)
