"""A stage's settings from plain values, checked one by one. Standard library only: the web process imports it."""

import dataclasses
import difflib
import math
import types
import typing
from typing import Any

from training.config import STAGES, ConfigError


def parse(stage: str, values: dict[str, Any]) -> Any:
    """The stage's config from plain values; raises ConfigError with one sentence."""
    if stage not in STAGES:
        raise ConfigError(f"There is no stage {stage!r}: choose one of {', '.join(STAGES)}.")
    fields = {f.name: f for f in dataclasses.fields(STAGES[stage])}
    hints = typing.get_type_hints(STAGES[stage])
    for name in values:
        if name not in fields:
            raise ConfigError(_unknown(stage, name, list(fields)))
    checked = {name: _checked(fields[name], hints[name], value) for name, value in values.items()}
    for name, f in fields.items():
        if f.metadata.get("required") and not checked.get(name, _default(f)):
            raise ConfigError(f"{name} is missing in the settings of stage {stage}: {f.metadata['help']}")
    return STAGES[stage](**checked)


def _unknown(stage: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"Stage {stage} has no setting {name!r} (it has {len(known)}): did you mean {near[0]!r}?"


def _default(f: "dataclasses.Field[Any]") -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _checked(f: "dataclasses.Field[Any]", hint: Any, value: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    if not any(_is(kind, value) for kind in kinds):
        raise ConfigError(f"{f.name} is {value!r}: it must be {_named(kinds)}.")
    if float in kinds:
        value = float(value)
    limits = f.metadata
    if "choices" in limits and value not in limits["choices"]:
        allowed = ", ".join(repr(c) for c in limits["choices"])
        raise ConfigError(f"{f.name} is {value!r}: choose one of {allowed}.")
    if "low" in limits and value < limits["low"]:
        raise ConfigError(f"{f.name} is {value}: it must be at least {limits['low']}.")
    if "high" in limits and value > limits["high"]:
        raise ConfigError(f"{f.name} is {value}: it must be at most {limits['high']}.")
    return value


def _is(kind: Any, value: Any) -> bool:
    if typing.get_origin(kind) is list:
        item = typing.get_origin(typing.get_args(kind)[0]) or typing.get_args(kind)[0]
        return isinstance(value, list) and all(isinstance(v, item) for v in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind is not type(None) and isinstance(value, kind)


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "empty"}


def _named(kinds: tuple[Any, ...]) -> str:
    return " or ".join(_NAMES.get(kind, "a list") for kind in kinds)


def field_type(stage: str, name: str) -> Any:
    """The type of a setting; raises ConfigError with the nearest known name."""
    fields = [f.name for f in dataclasses.fields(STAGES[stage])]
    if name not in fields:
        raise ConfigError(_unknown(stage, name, fields))
    return typing.get_type_hints(STAGES[stage])[name]
