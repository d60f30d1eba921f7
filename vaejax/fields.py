"""How a field of the configuration is declared, and how a section checks itself when it is made."""

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from typing import Any

from vaejax.errors import ConfigError


def declare(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """Declares a field: `low <= value <= high`, or strictly `above < value < below`, or one of `choices`."""
    limits = {"meaning": meaning, "low": low, "high": high, "above": above, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata=limits)


def _checked(field: dataclasses.Field, kind: Any, value: Any, name: str) -> Any:
    """The value in its field's type, or a ConfigError."""
    if dataclasses.is_dataclass(kind):
        return value  # a section, which has checked itself
    limits = allowed(field)
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        kinds = (int, float) if item is float else (item,)
        listed = isinstance(value, (tuple, list)) and all(type(entry) in kinds for entry in value)
        if not listed or (item is not str and not value):
            listing = {
                int: "whole numbers such as (28, 28)",
                float: "numbers such as (0.5, 1)",
                str: "a list of names, which may be empty",
            }
            raise ConfigError(f"{name}={value!r}: expected {listing[item]}{limits and ', each ' + limits}.")
        value = tuple(value)
    elif type(value) is not kind and not (kind is float and type(value) is int):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
        raise ConfigError(f"{name}={value!r}: expected {words}{limits and f' ({limits})'}, found {type(value).__name__}.")
    if not all(_within(field, item) for item in (value if isinstance(value, tuple) else (value,))):
        raise ConfigError(f"{name}={value!r}: expected {limits}.")
    if isinstance(value, tuple):
        return tuple(typing.get_args(kind)[0](entry) for entry in value)
    return float(value) if kind is float else value


def _within(field: dataclasses.Field, value: Any) -> bool:
    limits = field.metadata
    if limits["choices"]:
        return value in limits["choices"]
    if isinstance(value, (str, bool)):
        return True
    return (
        -math.inf < value < math.inf  # false for nan, and no overflow of a huge int
        and (limits["low"] is None or value >= limits["low"])
        and (limits["high"] is None or value <= limits["high"])
        and (limits["above"] is None or value > limits["above"])
        and (limits["below"] is None or value < limits["below"])
    )


def allowed(field: dataclasses.Field) -> str:
    """The allowed values in words: '0 < value <= 10', 'one of relu, tanh', or ''."""
    limits = field.metadata
    if limits["choices"]:
        return "one of " + ", ".join(limits["choices"])
    low, high, above, below = (_number(limits[name]) for name in ("low", "high", "above", "below"))
    left = f"{low} <= " if low else f"{above} < " if above else ""
    right = f" <= {high}" if high else f" < {below}" if below else ""
    return f"{left}value{right}" if left or right else ""


def _number(value: float | None) -> str:
    """A limit in all its digits; nothing for None."""
    return "" if value is None else str(int(value)) if value == int(value) else str(value)


class Section:
    """A section of the configuration checks its fields when it is made, and keeps them in their declared types."""

    prefix: typing.ClassVar[str]

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is not of its field's type or range."""
        kinds = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # every class below is a dataclass
            value = _checked(field, kinds[field.name], getattr(self, field.name), self.prefix + field.name)
            object.__setattr__(self, field.name, value)
