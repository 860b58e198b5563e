"""Sources as a person writes them on a command line.

    PATH                          what is there decides the kind
    KIND                          of those that need no path: emoji, scenes
    KIND:PATH,KEY=VALUE,…         the kind's arguments; PATH is short for path=PATH

A key given twice is a list, one with a dot a mapping (`cap.VOC2007=100`). Numbers, true, false and
null are read as such, and a value in double quotes is a text, commas and all.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from crem_jax.data.sources.formats.file_rows import parse_json
from crem_jax.data.sources.formats.tfds_source import INFO_FILE
from crem_jax.data.sources.registry import SOURCES
from crem_jax.errors import CremError

_COMMA = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')
_MMEB_FILES = ("*/original*.parquet", "*/original*.jsonl", "*/diverse_instruction*", "*.parquet")


def parse_source(text: str) -> tuple[str, dict[str, Any]]:
    """(kind, arguments) of a source.

    Raises:
      CremError, OSError: the text is none, or nothing is at its path.
    """
    kind, colon, rest = text.partition(":")
    if kind not in SOURCES or (not colon and os.path.exists(kind)):
        if colon and not os.path.exists(text) and re.fullmatch(r"\w+", kind):
            raise CremError(
                f"{text!r}: {kind!r} is no kind of source and no such file exists; kinds: "
                f"{', '.join(sorted(SOURCES))}"
            )
        return detect(text)
    arguments: dict[str, Any] = {}
    for number, part in enumerate(_COMMA.split(rest) if rest else []):
        key, equals, value = part.partition("=")
        if not equals:
            if number:
                raise CremError(f"{text!r}: {part!r} is no KEY=VALUE")
            arguments["path"] = part
            continue
        _put(arguments, key.strip(), _value(value), text)
    return kind, arguments


def detect(path: str) -> tuple[str, dict[str, Any]]:
    """(kind, arguments) of what is at a path.

    Raises:
      CremError, OSError: nothing is there, or nothing known.
    """
    place = Path(path)
    if place.is_dir():
        if any(any(place.glob(f"{depth}{INFO_FILE}")) for depth in ("", "*/", "*/*/")):
            return "tfds", {"path": path}
        if any(any(place.glob(pattern)) for pattern in _MMEB_FILES):
            return "mmeb", {"path": path}
        if any("qry" in _first_keys(file) for file in place.glob("*.jsonl")):
            return "mmeb", {"path": path}
        return "folder", {"path": path}
    if not place.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if place.suffix == ".json":
        return "sharegpt", {"path": path}
    if place.suffix == ".parquet":
        return "mmeb", {"path": os.fspath(place.parent), "subset": place.stem}
    if place.suffix == ".jsonl":
        keys = _first_keys(place)
        if "qry" in keys:
            return "mmeb", {"path": os.fspath(place.parent), "subset": place.stem}
        return "sharegpt" if "conversations" in keys else "jsonl", {"path": path}
    raise CremError(
        f"{path} is no source; expected a folder, or a .jsonl, .json or .parquet file, or KIND:PATH"
    )


def describe(kind: str, arguments: dict[str, Any]) -> str:
    """The source as one text, for reports; not meant to be parsed."""
    if set(arguments) == {"path"}:
        return f"{kind}:{arguments['path']}"
    return f"{kind}:" + ",".join(f"{key}={value}" for key, value in arguments.items())


def stamp(arguments: dict[str, Any]) -> list[list[int]]:
    """Size and time of what is at the source's path and of its index: others when they are."""
    paths = [arguments[key] for key in ("path", "index") if arguments.get(key)]
    return [[about.st_size, about.st_mtime_ns] for about in map(os.stat, paths)]


def _first_keys(file: Path) -> set[str]:
    """The keys of the first JSON object of a file, if it begins with one."""
    with open(file, "rb") as lines:
        for line in lines:
            if line.strip():
                try:
                    value = parse_json(line.decode("utf-8-sig"))
                except (CremError, UnicodeDecodeError):
                    return set()
                return set(value) if isinstance(value, dict) else set()
    return set()


def _put(arguments: dict[str, Any], key: str, value: Any, text: str) -> None:
    *parents, name = key.split(".")
    if not all([*parents, name]):
        raise CremError(f"{text!r}: {key!r} is no key")
    for parent in parents:
        arguments = arguments.setdefault(parent, {})
        if not isinstance(arguments, dict):
            raise CremError(f"{text!r}: {parent!r} is a value and a mapping at once")
    if name not in arguments:
        arguments[name] = value
    elif isinstance(arguments[name], list):
        arguments[name].append(value)
    else:
        arguments[name] = [arguments[name], value]


def _value(text: str) -> Any:
    """A number, true, false, null, or a text, perhaps in double quotes."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, dict | list) else value
