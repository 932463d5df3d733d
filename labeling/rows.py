"""One line of a file as a prompt, a demonstration, a preference or a ranking. Pure: reads no file and no database."""

import difflib
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from django.utils.translation import gettext as _

# The layouts of DESIGN: what a row of each kind must have. The second one of demonstrations is TRL's.
LAYOUTS: dict[str, list[tuple[str, ...]]] = {
    "prompts": [("prompt",)],
    "demonstrations": [("instruction", "response"), ("prompt", "completion")],
    "preferences": [("prompt", "chosen", "rejected")],
    "rankings": [("prompt", "responses", "ranking")],
}
# What else a row may say and training reads.
OPTIONS = {"prompts": {"split"}, "rankings": {"annotator", "none_good", "policies"}}
# Where a row comes from and how it was made: such notes stay in the stored file and are counted, nothing reads them.
NOTES = {
    "annotator", "annotators", "context", "id", "lang", "language", "pairwise", "points", "source", "style", "tree",
    "turns",
}  # fmt: skip
SPLITS = ("train", "holdout")
# A line may be long, but the comparisons of one ranking grow with the square of its texts.
MOST_RESPONSES = 100
MOST_NAME = 60


class BadRow(Exception):
    """Why a line cannot be read; the reader adds the file's name and the line's number."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a line says. `digest` is the same for lines that say exactly the same, notes included."""

    prompt: str
    digest: bytes
    responses: list[str] = field(default_factory=list)
    tiers: list[list[int]] = field(default_factory=list)
    none_good: bool = False
    annotator: str = ""
    policies: list[str] = field(default_factory=list)
    split: str = ""
    notes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def prompt_row(text: str) -> Row:
    """A line of a .txt file of prompts."""
    return Row(prompt=text, digest=_digest({"prompt": text}))


def parse_row(kind: str, line: str, *, ignore_unknown: bool = False) -> Row:
    """Read a line of a .jsonl file; raises BadRow."""
    try:
        return _parsed(kind, line, ignore_unknown)
    except RecursionError:
        raise BadRow(_("it is nested too deeply.")) from None


def _parsed(kind: str, line: str, ignore_unknown: bool) -> Row:
    values = _object(line)
    layout = _layout(kind, values)
    options = OPTIONS.get(kind, set())
    extra = [name for name in values if name not in layout and name not in options]
    unknown = [name for name in extra if name not in NOTES]
    if unknown and not ignore_unknown:
        raise BadRow(_unknown(unknown[0], sorted({*layout, *options, *NOTES})))
    row = _read(kind, values, layout)
    return Row(
        **row,
        digest=_digest(values),
        notes=[name for name in extra if name in NOTES],
        ignored=[shown(name) for name in unknown],
    )


def _object(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line, object_pairs_hook=_no_field_twice, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise BadRow(
            _("it is not JSON (%(reason)s at character %(place)d).") % {"reason": error.msg, "place": error.pos + 1}
        ) from None
    except ValueError as error:  # a whole number of thousands of digits
        raise BadRow(_("it is not JSON (%(reason)s).") % {"reason": error}) from None
    if not isinstance(values, dict):
        raise BadRow(_('a row is an object like {"prompt": "..."}, and this is not one.'))
    return values


def _no_field_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _value in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow(_("the field '%(field)s' stands in it twice.") % {"field": shown(twice)})
    return values


def _no_constant(name: str) -> None:
    raise BadRow(_("%(name)s is not JSON.") % {"name": name})


def _layout(kind: str, values: dict[str, Any]) -> tuple[str, ...]:
    """The layout the row follows: the first one it has completely."""
    for layout in LAYOUTS[kind]:
        if all(name in values for name in layout):
            return layout
    missing = next(name for name in LAYOUTS[kind][0] if name not in values)
    fields = ", ".join(shown(name) for name in list(values)[:12]) or _("none")
    reason = _("'%(field)s' is missing (fields: %(fields)s).") % {"field": missing, "fields": fields}
    for other, layouts in LAYOUTS.items():
        if len(layouts[0]) > 1 and any(all(name in values for name in layout) for layout in layouts):
            reason += " " + _("It looks like a file of kind %(kind)s.") % {"kind": other}
            break
    raise BadRow(reason)


def _unknown(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if nearest:
        reason = _("the field '%(field)s' is not known; the nearest known one is '%(nearest)s'.")
        return reason % {"field": shown(name), "nearest": nearest[0]}
    reason = _("the field '%(field)s' is not known; known ones are %(known)s.")
    return reason % {"field": shown(name), "known": ", ".join(known)}


def _read(kind: str, values: dict[str, Any], layout: tuple[str, ...]) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": _text(values, layout[0])}
    if kind == "prompts":
        row["split"] = _split(values.get("split", ""))
    elif kind == "demonstrations":
        row["responses"] = [_text(values, layout[1])]
    elif kind == "preferences":
        # A model may have answered nothing, and people rank that too: judged texts may be empty.
        row["responses"] = [_text(values, side, may_be_blank=True) for side in ("chosen", "rejected")]
        row["tiers"] = [[0], [1]]
    else:
        row["responses"] = _responses(values["responses"])
        row["tiers"] = read_tiers(values["ranking"], len(row["responses"]))
        row["none_good"] = _flag(values, "none_good")
        row["annotator"] = _name(values.get("annotator", ""), "annotator")
        row["policies"] = _policies(values.get("policies", []), len(row["responses"]))
    if row.get("tiers") and not any(text.strip() for text in row["responses"]):
        raise BadRow(_("all its answers are empty."))
    return row


def _text(values: dict[str, Any], name: str, may_be_blank: bool = False) -> str:
    return _checked(values[name], name, may_be_blank)


def _checked(value: Any, name: str, may_be_blank: bool) -> str:
    if not isinstance(value, str):
        raise BadRow(_("'%(field)s' is not a text.") % {"field": name})
    if not may_be_blank and not value.strip():
        raise BadRow(_("'%(field)s' is empty.") % {"field": name})
    # Both can be written in JSON as escapes, and no database takes them.
    if "\0" in value:
        raise BadRow(_("'%(field)s' holds a zero character.") % {"field": name})
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(_("'%(field)s' holds half a character (a lone surrogate).") % {"field": name}) from None
    return value


def _split(value: Any) -> str:
    if value not in ("", *SPLITS):
        raise BadRow(_("'split' is neither train nor holdout."))
    return str(value)


def _flag(values: dict[str, Any], name: str) -> bool:
    value = values.get(name, False)
    if not isinstance(value, bool):
        raise BadRow(_("'%(field)s' is neither true nor false.") % {"field": name})
    return value


def _name(value: Any, name: str) -> str:
    """Who judged or what wrote: "person-7" or 7."""
    named = isinstance(value, int) and not isinstance(value, bool)
    return _checked(str(value) if named else value, name, may_be_blank=True)[:MOST_NAME]


def _policies(value: Any, k: int) -> list[str]:
    if not isinstance(value, list) or (value and len(value) != k):
        raise BadRow(_("'policies' does not name one policy for each of the %(k)d responses.") % {"k": k})
    return [_name(policy, f"policies[{place}]") for place, policy in enumerate(value)]


def _responses(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise BadRow(_("'responses' is not a list of texts."))
    if len(value) < 2:
        raise BadRow(_("'responses' has %(k)d texts: a ranking needs at least 2.") % {"k": len(value)})
    if len(value) > MOST_RESPONSES:
        reason = _("'responses' has %(k)d texts: a ranking has at most %(most)d.")
        raise BadRow(reason % {"k": len(value), "most": MOST_RESPONSES})
    return [_checked(text, f"responses[{place}]", may_be_blank=True) for place, text in enumerate(value)]


def read_tiers(ranking: Any, k: int) -> list[list[int]]:
    """[2, [0, 1]] -> [[2], [0, 1]]: every response from 0 to k-1 exactly once, best first, a list is a tie."""
    if not isinstance(ranking, list):
        raise BadRow(_("'ranking' is not a list of places in 'responses'."))
    tiers = [entry if isinstance(entry, list) else [entry] for entry in ranking]
    places = [place for tier in tiers for place in tier]
    for place in places:
        if not isinstance(place, int) or isinstance(place, bool):
            raise BadRow(
                _("'ranking' holds %(entry)s, which is no whole number.") % {"entry": shown(json.dumps(place))}
            )
        if not 0 <= place < k:
            reason = _("'ranking' names response %(place)s, and there are %(k)d, numbered from 0.")
            raise BadRow(reason % {"place": shown(str(place)), "k": k})
        if places.count(place) > 1:
            raise BadRow(_("'ranking' names response %(place)d twice.") % {"place": place})
    for place in range(k):
        if place not in places:
            raise BadRow(_("'ranking' leaves out response %(place)d of %(k)d.") % {"place": place, "k": k})
    if not all(tiers):
        raise BadRow(_("'ranking' holds an empty list."))
    return tiers


def shown(text: str) -> str:
    """A piece of somebody's file that is safe to print: short, on one line, without half characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:60])


def _digest(values: dict[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).digest()
