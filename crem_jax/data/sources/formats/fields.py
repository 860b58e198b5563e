"""The parts of a record as they stand in a data file: checked, with errors that name the key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from crem_jax.data.records import EmptySideError, Item, RecordError

ITEM_KEYS = ("text", "image", "images")
TURN_KEYS = ("question", "answer")


def text_of(value: Any, where: str) -> str:
    """A text as it is; None is the empty one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RecordError(f"{where} is {shown(value)}; expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RecordError(f"{where} is not valid Unicode: {error.reason}") from error
    return value


def paths_of(value: Any, root: str, where: str) -> tuple[str, ...]:
    """Picture paths joined to `root`: of one path, of a list, or of None; empty ones are none."""
    values = value if isinstance(value, list | tuple) else [value]
    paths = [text_of(path, where) for path in values]
    if any("\0" in path for path in paths):
        raise RecordError(f"{where} has a NUL character, which no path has")
    return tuple(os.path.normpath(os.path.join(root, path)) for path in paths if path.strip())


def item_of(value: Any, root: str, where: str) -> Item:
    """An item: a text, or {"text": …, "image": path, "images": [paths]}."""
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, Mapping):
        raise RecordError(
            f"{where} is {shown(value)}; expected a text or an object of {_listed(ITEM_KEYS)}"
        )
    check_keys(value, ITEM_KEYS, where)
    if "image" in value and "images" in value:
        raise RecordError(f"{where} has both 'image' and 'images'; expected one of them")
    text = text_of(value.get("text"), f"{where}.text")
    key = "images" if "images" in value else "image"
    images = paths_of(value.get(key), root, f"{where}.{key}")
    return make_item(text, images, where)


def make_item(text: str, images: tuple, where: str) -> Item:
    """An Item; EmptySideError if it is empty."""
    if not text.strip() and not images:
        raise EmptySideError(f"{where} is empty; expected text or a picture")
    return Item(text, images)


def items_of(value: Any, root: str, where: str) -> tuple[Item, ...]:
    """Items of one item, of a list of them, or of None."""
    if value is None:
        return ()
    if isinstance(value, list | tuple):
        return tuple(item_of(one, root, f"{where}[{i}]") for i, one in enumerate(value))
    return (item_of(value, root, where),)


def turns_of(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    """Questions and answers: a list of {"question": …, "answer": …} or of [question, answer]."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise RecordError(f"{where} is {shown(value)}; expected a list of questions and answers")
    turns = []
    for i, turn in enumerate(value):
        here = f"{where}[{i}]"
        if isinstance(turn, list | tuple) and len(turn) == 2:
            turn = dict(zip(TURN_KEYS, turn, strict=True))
        if not isinstance(turn, Mapping):
            raise RecordError(
                f"{here} is {shown(turn)}; expected an object of {_listed(TURN_KEYS)}, or "
                "[question, answer]"
            )
        check_keys(turn, TURN_KEYS, here)
        question, answer = (text_of(turn.get(key), f"{here}.{key}") for key in TURN_KEYS)
        if not answer.strip():
            raise EmptySideError(f"{here}.answer is empty")
        turns.append((question, answer))
    return tuple(turns)


def check_keys(value: Mapping, known: tuple[str, ...], where: str) -> None:
    """Raises RecordError for a key that is not among the known ones."""
    unknown = sorted(str(key) for key in value if key not in known)
    if unknown:
        raise RecordError(f"{where} has the unknown key {unknown[0]!r}; known: {_listed(known)}")


def shown(value: Any) -> str:
    """A value as errors show it: its type, and itself if it is short."""
    text = repr(value) if isinstance(value, str | int | float | bool | None) else ""
    kind = "null" if value is None else type(value).__name__
    return f"{text} ({kind})" if 0 < len(text) <= 40 and value is not None else f"a {kind}"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names)
