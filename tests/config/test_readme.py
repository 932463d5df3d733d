"""What README.md tells people to type exists."""

import re
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
CALLS = re.findall(r"manage\.py ([a-z_]+)((?: [^#\n]*)?)", README)


def test_every_make_target_exists() -> None:
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert {"demo", "test"} <= named
    assert named <= TARGETS


@pytest.mark.parametrize(("name", "rest"), CALLS)
def test_every_command_takes_the_options_it_is_shown_with(name: str, rest: str) -> None:
    commands = get_commands()
    assert name in commands
    known = load_command_class(commands[name], name).create_parser("manage.py", name)._option_string_actions
    assert set(re.findall(r"--[a-z-]+", rest)) <= set(known)


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target
