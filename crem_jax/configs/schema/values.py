"""Values of config keys: type checks, and parsing from a flag's text."""

from __future__ import annotations

import ast
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from crem_jax.configs.fields import ConfigError

_TRUE, _FALSE = ("true", "t", "1", "yes"), ("false", "f", "0", "no")
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class _WrongType(TypeError):
    pass


def typed(value: Any, hint: Any, where: str) -> Any:
    """A value checked against the type of its key; lists become tuples, path objects strings.

    An integer given for a float stays an int.

    Raises:
      ConfigError: the value is of another type.
    """
    try:
        return _typed(value, hint)
    except _WrongType:
        raise ConfigError(f"{where} = {value!r}: expected {describe(hint)}") from None


def parsed(text: str, hint: Any, where: str) -> Any:
    """Parses a flag's text as a value of the key's type.

    Raises:
      ConfigError: the text is no such value.
    """
    try:
        return _parsed(text, hint)
    except _WrongType:
        raise ConfigError(f"{where}={text}: expected {describe(hint)}") from None


def describe(hint: Any) -> str:
    """A type in words, for messages and docs/config.md."""
    if hint in _NAMES:
        return _NAMES[hint]
    arguments = typing.get_args(hint)
    if is_union(hint):
        named = [describe(each) for each in arguments if each is not types.NoneType]
        return " or ".join([*named, *(["None"] if is_optional(hint) else [])])
    if typing.get_origin(hint) is tuple:
        if arguments[-1] is ...:
            return f"({describe(arguments[0])}, …)"
        return f"({', '.join(map(describe, arguments))})"
    if is_mapping(hint):
        return f"{{name: {describe(arguments[1])}}}"
    return "a section" if isinstance(hint, type) else "a value"


def is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def is_optional(hint: Any) -> bool:
    return is_union(hint) and types.NoneType in typing.get_args(hint)


def is_mapping(hint: Any) -> bool:
    return typing.get_origin(hint) is Mapping


def mapping_in(hint: Any) -> Any:
    """The mapping among the types of a key, or None."""
    kinds = typing.get_args(hint) if is_union(hint) else (hint,)
    return next((kind for kind in kinds if is_mapping(kind)), None)


def _typed(value: Any, hint: Any) -> Any:
    if hint is Any:
        return value
    if is_union(hint):
        return _first(typing.get_args(hint), lambda kind: _typed(value, kind))
    if hint is types.NoneType and value is None:
        return None
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if hint in (int, float) and number and isinstance(value, numbers.Integral):
        return int(value)
    if hint is float and number:
        return float(value)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and isinstance(value, tuple | list):
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            return tuple(_typed(each, kind) for each, kind in zip(value, kinds, strict=True))
    if is_mapping(hint) and isinstance(value, Mapping):
        return {str(name): _typed(each, arguments[1]) for name, each in value.items()}
    raise _WrongType


def _parsed(text: str, hint: Any, alone: bool = True) -> Any:
    """alone: a single value without brackets is read as a tuple of one."""
    if is_union(hint):
        if is_optional(hint) and text.lower() in ("none", "null"):
            return None
        # str is tried last: every text can be read as one.
        kinds = sorted(typing.get_args(hint), key=lambda kind: kind is str)
        return _first(kinds, lambda kind: _parsed(text, kind, alone=str not in kinds))
    if hint in (str, Any):
        return text
    if hint is bool and text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise _WrongType from None
    if typing.get_origin(hint) is tuple or is_mapping(hint):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if typing.get_origin(hint) is tuple and alone and not isinstance(value, tuple | list):
            value = (value,)
        return _typed(value, hint)
    raise _WrongType


def _first(kinds: Iterable[Any], attempt: Callable[[Any], Any]) -> Any:
    for kind in kinds:
        try:
            return attempt(kind)
        except _WrongType:
            continue
    raise _WrongType
