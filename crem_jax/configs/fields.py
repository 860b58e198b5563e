"""Config keys declared in one place: type, default, bounds and a line of documentation.

A section is a frozen dataclass whose fields are made by `field`; `crem_jax.configs.schema` reads,
fills, checks and documents sections.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from crem_jax.errors import CremError


class ConfigError(CremError):
    """A config has an unknown key, an invalid value, or values that contradict each other."""


PARTIAL = "partial"
"""Key of a field's metadata that holds the section, for fields made by `partial`."""

REQUIRED: Any = object()
"""Sentinel for the default of a required key."""


@dataclasses.dataclass(frozen=True)
class Key:
    """Documentation and constraints of a key.

    Attributes:
      doc: one line of documentation. low, high: inclusive bounds. above: exclusive lower bound.
      choices: the allowed values; empty allows any.
      scratch: the default when training from scratch, for keys that may be unset (see `unset`).
    """

    doc: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[Any, ...] = ()
    scratch: Any = REQUIRED


def field(default: Any = REQUIRED, doc: str = "", **bounds: Any) -> Any:
    """A dataclass field with documentation and bounds (see `Key`); required without a default."""
    metadata = {"key": Key(doc, **bounds)}
    if isinstance(default, Mapping):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def unset(cls: type, name: str) -> Any:
    """A field like `name` of dataclass `cls`, but optional: None, its default, leaves it unset."""
    (found,) = (f for f in dataclasses.fields(cls) if f.name == name)
    key = dataclasses.replace(key_of(found), scratch=default_of(found))
    return dataclasses.field(default=None, metadata={"key": key})


def partial(section: type, doc: str) -> Any:
    """A field for a mapping of another section's keys, each of which may be left unset."""
    metadata = {"key": Key(doc), PARTIAL: section}
    return dataclasses.field(default_factory=dict, metadata=metadata)


def default_of(found: dataclasses.Field) -> Any:
    """The default of a dataclass field, or REQUIRED."""
    if found.default_factory is not dataclasses.MISSING:
        return found.default_factory()
    return REQUIRED if found.default is dataclasses.MISSING else found.default


def key_of(found: dataclasses.Field) -> Key:
    return found.metadata.get("key", Key())


def check(section: Any, where: str) -> None:
    """Raises ConfigError for the first field of a dataclass that is out of its bounds.

    Args:
      where: the section's path in a config, for errors.
    """
    for each in dataclasses.fields(section):
        check_value(getattr(section, each.name), key_of(each), f"{where}.{each.name}")


def check_value(value: Any, key: Key, where: str) -> None:
    """Raises ConfigError if a value or an element of it is out of the key's bounds; None passes."""
    if value is None:
        return
    if isinstance(value, Mapping):
        for name, each in value.items():
            check_value(each, key, f"{where}.{name}")
        return
    if isinstance(value, tuple | list):
        for each in value:
            check_value(each, key, where)
        return
    if key.choices and value not in key.choices:
        known = ", ".join(str(choice) or "''" for choice in key.choices)
        raise ConfigError(f"{where} {value!r} is not one of {known}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    low = -math.inf if key.low is None else key.low
    high = math.inf if key.high is None else key.high
    above = -math.inf if key.above is None else key.above
    if not math.isfinite(value) or not (low <= value <= high and value > above):
        raise ConfigError(f"{where} = {value} {_expectation(key)}")


def _expectation(key: Key) -> str:
    if key.low is not None and key.high is not None:
        return f"is not in {key.low}..{key.high}"
    if key.above is not None:
        most = "" if key.high is None else f" and at most {key.high:g}"
        return f"must be a number above {key.above:g}{most}"
    if key.low is not None:
        return f"must be {'a number of ' * isinstance(key.low, float)}at least {key.low:g}"
    return "must be a finite number"


def refuse_unknown(given: Iterable[str], known: Sequence[str], where: str) -> None:
    """Raises ConfigError for the first key unknown to the section at `where`; "" is the root."""
    unknown = sorted(set(given) - set(known))
    if not unknown:
        return
    prefix = where and f"{where}."
    near = difflib.get_close_matches(unknown[0], known, 3, 0.7)
    hint = f"did you mean {' or '.join(f'{prefix}{name}' for name in near)}? " if near else ""
    raise ConfigError(
        f"unknown key {prefix}{unknown[0]}; {hint}known keys: {', '.join(sorted(known))}"
    )
