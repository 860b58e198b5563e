"""Names of the data sources a config or a command line may ask for."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from crem_jax.configs.fields import REQUIRED, field
from crem_jax.configs.schema.sources import KINDS, SourceConfig
from crem_jax.configs.schema.tree import source_config
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

SOURCES: dict[str, Callable[..., Source]] = {
    "emoji": EmojiPictures,
    "folder": FolderPictures,
    "jsonl": JsonlRecords,
    "mmeb": Mmeb,
    "scenes": Scenes,
    "sharegpt": ShareGpt,
    "tfds": TfdsRecords,
}
"""What reads a kind; its arguments: `crem_jax.configs.schema.sources.KINDS`."""


def register(kind: str, constructor: Callable[..., Source]) -> None:
    """Adds a kind of source: configs and command lines may ask for it from now on.

    Its arguments are those of the constructor, with their types and defaults.
    """
    empty = inspect.Parameter.empty
    arguments = [
        (
            name,
            Any if about.annotation is empty else about.annotation,
            field(REQUIRED if about.default is empty else about.default),
        )
        for name, about in inspect.signature(constructor, eval_str=True).parameters.items()
    ]
    SOURCES[kind] = constructor
    KINDS[kind] = dataclasses.make_dataclass(
        f"{constructor.__name__}Config", arguments, bases=(SourceConfig,), frozen=True, kw_only=True
    )


def make_sources(config: Mapping[str, SourceConfig]) -> dict[str, Source]:
    """Sources by name, as `data.sources` of a config has them.

    Raises:
      CremError: files that cannot be used.
      OSError: a file that is not there.
    """
    return {name: open_source(source, f"data.sources.{name}") for name, source in config.items()}


def make_source(kind: str, arguments: Mapping[str, Any], where: str = "source") -> Source:
    """The source of a kind.

    Args:
      arguments: see `crem_jax.configs.schema.sources`.
      where: names the source in errors.

    Raises:
      CremError: an unknown kind, an unknown or missing argument, or files that cannot be used.
      OSError: a file that is not there.
    """
    return open_source(source_config(kind, arguments, where), where)


def open_source(config: SourceConfig, where: str) -> Source:
    """The source that a checked config describes; `where` names it in errors."""
    try:
        source = select(SOURCES[config.kind](**config.arguments()), **config.selection())
    except CremError as error:
        raise CremError(f"{where}: {error}") from error
    if not len(source):
        raise CremError(f"{where}: there are no records in it")
    return source
