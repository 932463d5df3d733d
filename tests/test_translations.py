"""Every sentence of the pages, the services and the run settings is there in Spanish."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog, Message
from babel.messages.pofile import read_po
from django.utils.translation.template import templatize

from training.config import STAGES

ROOT = Path(__file__).resolve().parents[1]
CATALOG = ROOT / "locale" / "es" / "LC_MESSAGES" / "django.po"
PACKAGES = ["platform", "labeling", "workers"]
KEYWORDS = {"_", "gettext", "gettext_lazy", "ngettext", "ngettext_lazy"}
CALL = re.compile(r"\b(_|gettext|ngettext)\(")
PLACE = re.compile(r"%\((\w+)\)(?:\.\d+)?[sdf]|\{(\w+)\}")
TAG = re.compile(r"</?\w+[^>]*>")

MsgId = str | tuple[str, ...]


def from_python(path: Path) -> Iterator[MsgId]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KEYWORDS:
            yield from _message(node)


def _message(call: ast.Call) -> Iterator[MsgId]:
    """The texts of one call; a call with a variable is not one that the extraction can know."""
    texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    if texts:
        yield tuple(texts[:2]) if len(texts) > 1 else texts[0]


def from_template(path: Path) -> Iterator[MsgId]:
    """Django turns a template into something with calls in it; the calls are read as Python."""
    source = templatize(path.read_text(encoding="utf-8"))
    for call in CALL.finditer(source):
        for end in (close.end() for close in re.finditer(r"\)", source[call.end() :])):
            try:
                parsed = ast.parse(source[call.start() : call.end() + end], mode="eval").body
            except SyntaxError:
                continue
            assert isinstance(parsed, ast.Call)
            yield from _message(parsed)
            break


@cache
def wanted() -> dict[str, MsgId]:
    """Every message by its singular, and the help line of every run setting."""
    found: dict[str, MsgId] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            found |= {_singular(message): message for message in from_python(path)}
    for path in sorted((ROOT / "templates").rglob("*.html")):
        found |= {_singular(message): message for message in from_template(path)}
    for config in STAGES.values():
        found |= {f.metadata["help"]: f.metadata["help"] for f in dataclasses.fields(config) if "help" in f.metadata}
    return {singular: message for singular, message in found.items() if singular}


def _singular(message: MsgId) -> str:
    return message if isinstance(message, str) else message[0]


@cache
def catalog() -> Catalog:
    with CATALOG.open("rb") as file:
        return read_po(file, locale="es", abort_invalid=True)


@cache
def translated() -> dict[str, Message]:
    return {_singular(message.id): message for message in catalog() if message.id}


def test_every_sentence_is_in_the_catalogue() -> None:
    missing = sorted(set(wanted()) - set(translated()))
    assert not missing, "add to locale/es/LC_MESSAGES/django.po:\n" + "\n".join(missing)


def test_the_catalogue_holds_nothing_that_nobody_says() -> None:
    assert sorted(set(translated()) - set(wanted())) == []


def test_plurals_are_plurals() -> None:
    wrong = [
        text for text, message in wanted().items() if isinstance(message, tuple) != translated()[text].pluralizable
    ]
    assert wrong == []


def test_nothing_is_empty_or_fuzzy() -> None:
    def forms(message: Message) -> list[str]:
        return [message.string] if isinstance(message.string, str) else list(message.string)

    assert [m.id for m in translated().values() if not all(forms(m)) or m.fuzzy] == []


def _marks(text: str) -> tuple[list[str], list[str]]:
    return sorted({a or b for a, b in PLACE.findall(text)}), sorted(TAG.findall(text))


@pytest.mark.parametrize("text", [pytest.param(text, id=text[:40]) for text in wanted() if _marks(text) != ([], [])])
def test_a_translation_keeps_names_and_markup(text: str) -> None:
    message = translated()[text]
    ids = [message.id] * 2 if isinstance(message.id, str) else list(message.id)
    strings = [message.string] * 2 if isinstance(message.string, str) else list(message.string)
    for original, string in zip(ids, strings, strict=True):
        assert _marks(string) == _marks(original)


def test_the_extraction_sees_tags_blocks_plurals_and_python(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '{% load i18n %}{% translate "It\'s one" %}{% blocktranslate count n=n trimmed %}\n {{ n }} task\n'
        "{% plural %}{{ n }} tasks{% endblocktranslate %}{{ x|default:_('none') }}"
    )
    assert list(from_template(page)) == ["It's one", ("%(n)s task", "%(n)s tasks"), "none"]
    code = tmp_path / "code.py"
    code.write_text('a = _("one") + ngettext("%(n)d row", "%(n)d rows", 2)\n')
    assert list(from_python(code)) == ["one", ("%(n)d row", "%(n)d rows")]
