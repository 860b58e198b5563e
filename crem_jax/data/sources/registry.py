"""Names of the data sources a config or a command line may ask for."""

from __future__ import annotations

import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from crem_jax.data.emoji.emoji import EmojiPictures
from crem_jax.data.emoji.scenes import Scenes
from crem_jax.data.sources.base import Source
from crem_jax.data.sources.formats.folder import FolderPictures
from crem_jax.data.sources.formats.jsonl import JsonlRecords
from crem_jax.data.sources.formats.mmeb import Mmeb
from crem_jax.data.sources.formats.sharegpt import ShareGpt
from crem_jax.data.sources.formats.tfds_source import TfdsRecords
from crem_jax.data.sources.selected import select
from crem_jax.errors import CremError

SOURCES: Mapping[str, Callable[..., Source]] = {
    "emoji": EmojiPictures,
    "folder": FolderPictures,
    "jsonl": JsonlRecords,
    "mmeb": Mmeb,
    "scenes": Scenes,
    "sharegpt": ShareGpt,
    "tfds": TfdsRecords,
}
_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    os.PathLike: "a path",
    Sequence: "a list",
    Mapping: "a mapping",
}
_SELECTION = ("index", "limit", "limit_seed", "only")


def make_sources(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Source]:
    """Sources by name from `data.sources`: {name: {"kind": …, **arguments}}.

    Raises:
      ValueError: an unknown kind or argument.
      OSError: a file that is not there.
    """
    sources = {}
    for name, arguments in config.items():
        # Mappings in it, such as `cap`, are ConfigDicts too, which are no Mappings.
        arguments = arguments.to_dict() if isinstance(arguments, ConfigDict) else dict(arguments)
        kind = arguments.pop("kind", name)
        sources[name] = make_source(kind, arguments, where=f"data.sources.{name}")
    return sources


def make_source(kind: str, arguments: Mapping[str, Any], where: str = "source") -> Source:
    """The source of a kind.

    Args:
      arguments: the kind's own, and for any kind `index` (a file that `crem doctor` wrote: only
        its good records), `limit` (so many records, chosen by a shuffle), `limit_seed`, and `only`
        ("retrieval" or "turns": that half of every record).
      where: names the source in errors.

    Raises:
      ValueError: an unknown kind, an unknown or missing argument, or files that cannot be used.
      OSError: a file that is not there.
    """
    if kind not in SOURCES:
        raise CremError(f"{where}.kind {kind!r} is not one of {', '.join(sorted(SOURCES))}")
    own = {key: value for key, value in arguments.items() if key not in _SELECTION}
    known = inspect.signature(SOURCES[kind]).parameters
    unknown = sorted(set(own) - set(known))
    if unknown:
        takes = ", ".join([*known, *_SELECTION])
        raise CremError(
            f"{where}: a source of kind {kind!r} takes no {unknown[0]!r}; it takes {takes}"
        )
    needed = [name for name, about in known.items() if about.default is about.empty]
    missing = [name for name in needed if name not in own]
    if missing:
        raise CremError(f"{where}: a source of kind {kind!r} needs {missing[0]!r}")
    _check_types(SOURCES[kind], own, where)
    try:
        source = SOURCES[kind](**own)
        source = select(source, **{k: arguments[k] for k in _SELECTION if k in arguments})
    except CremError as error:
        raise CremError(f"{where}: {error}") from error
    if not len(source):
        raise CremError(f"{where}: there are no records in it")
    return source


def _check_types(kind: Callable[..., Source], arguments: Mapping[str, Any], where: str) -> None:
    """Raises CremError for an argument that is not of the type the kind's signature says."""
    hints = typing.get_type_hints(kind.__init__)
    for name, value in arguments.items():
        hint = hints[name]
        parts = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
        wanted = tuple(typing.get_origin(part) or part for part in parts)
        if float in wanted:
            wanted += (int,)
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            expected = " or ".join(_NAMES.get(one, one.__name__) for one in wanted)
            raise CremError(f"{where}: {name} is {value!r}; expected {expected}")
