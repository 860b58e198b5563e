"""`data.sources.NAME`: the arguments of every kind of source.

What reads a kind is `crem_jax.data.sources.registry.SOURCES`; a constructor there has the
arguments of its kind here.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, MutableMapping
from typing import Any

from crem_jax.configs.fields import REQUIRED, ConfigError, default_of, field

HALVES = ("retrieval", "turns")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What every kind of source takes."""

    kind: str = field("", "What reads it, one of the kinds below; default: its name.")
    index: str | None = field(
        None, "A file that `crem doctor` wrote: only its good records are read."
    )
    limit: int | None = field(None, "At most so many records, chosen by a shuffle.", low=1)
    limit_seed: int = field(0, "Of that shuffle.", low=0)
    only: str | None = field(None, "The half of every record that is trained on.", choices=HALVES)

    @classmethod
    def own(cls) -> list[str]:
        """Names of the arguments that are the kind's own."""
        return [each.name for each in dataclasses.fields(cls) if each.name not in SHARED]

    def arguments(self) -> dict[str, Any]:
        """The kind's own arguments."""
        return {name: getattr(self, name) for name in self.own()}

    def selection(self) -> dict[str, Any]:
        """The arguments that choose among the records of any kind."""
        return {name: getattr(self, name) for name in SHARED[1:]}


SHARED = tuple(each.name for each in dataclasses.fields(SourceConfig))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiConfig(SourceConfig):
    """Single emoji, which ship with the package."""

    split: str = field("train", "train, validation, heldout or all.")
    size: int = field(48, "Side of the square picture in pixels.", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesConfig(SourceConfig):
    """Scenes of emoji, drawn as they are read."""

    split: str = field("train", "train or heldout.")
    negatives: int = field(3, "Captions with one wrong attribute, as hard negatives.", low=0)
    size: int = field(96, "Side of the square picture in pixels.", low=1)
    turns: int = field(3, "Questions and answers of a record.", low=0)
    text: float = field(0.0, "Share of the scenes with a word or number on a sign.", low=0, high=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderConfig(SourceConfig):
    """Pictures of a folder, each with a text or a JSON object beside it."""

    path: str = field(doc="The folder.")
    name_as_text: bool = field(False, "A picture with nothing beside it is described by its name.")
    bare: bool = field(False, "A picture with nothing beside it is only searched for.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlConfig(SourceConfig):
    """Your own data, one JSON object a line."""

    path: str = field(doc="The file.")
    image_root: str | None = field(
        None, "Folder that picture paths are relative to; default: the file's."
    )
    bare: bool = field(False, "Records with nothing to learn are only searched for.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MmebConfig(SourceConfig):
    """MMEB-train and its hard-negative variants."""

    path: str = field(doc="Folder of the subsets.")
    subset: str | tuple[str, ...] | None = field(None, "A name, or several; default: all.")
    split: str = field("original", "original or diverse_instruction.")
    image_root: str | None = field(
        None, "Folder that picture paths are relative to; default: what fits of PATH, PATH/images."
    )
    cap: int | Mapping[str, int] | str | None = field(
        None, "Rows of a subset at most: a number, a number by subset, or vlm2vec-v2."
    )
    seed: int = field(0, "Of the shuffle that chooses them.", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareGptConfig(SourceConfig):
    """Conversations in the format of ShareGPT-4V and LLaVA."""

    path: str = field(doc="The .json or .jsonl file.")
    image_root: str | None = field(
        None, "Folder that picture paths are relative to; default: the file's."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsConfig(SourceConfig):
    """What `crem prepare` wrote, or any tensorflow-datasets data set stored as ArrayRecord."""

    path: str = field(doc="The directory with dataset_info.json, or one above it.")
    split: str = field("train", "Such as train, or a part of it: train[:1000].")
    features: Mapping[str, str] | str | None = field(
        None, "What of a record is in which feature, or the name of such a map (docs/data.md)."
    )


KINDS: MutableMapping[str, type[SourceConfig]] = {
    "emoji": EmojiConfig,
    "folder": FolderConfig,
    "jsonl": JsonlConfig,
    "mmeb": MmebConfig,
    "scenes": ScenesConfig,
    "sharegpt": ShareGptConfig,
    "tfds": TfdsConfig,
}

PACKAGED = tuple(KINDS)
"""Those that ship with the package; `registry.register` adds others."""


def kind_of(name: str, values: Mapping[str, Any], where: str) -> type[SourceConfig]:
    """The schema of a source by its `kind`, which is its name unless it says another.

    Raises:
      ConfigError: there is no such kind.
    """
    kind = values.get("kind") or name
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{where}.kind {kind!r} is not one of {', '.join(sorted(KINDS))}{hint}")
    return KINDS[kind]


def check_arguments(cls: type[SourceConfig], values: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for an argument that a kind does not take, or one that it lacks."""
    kind, own = values["kind"], cls.own()
    unknown = sorted(set(values) - {*own, *SHARED})
    if unknown:
        takes = [*own, *SHARED[1:]]
        near = difflib.get_close_matches(unknown[0], takes, 1, 0.7)
        hint = f"; did you mean {where}.{near[0]}?" if near else ""
        raise ConfigError(
            f"{where}: a source of kind {kind!r} takes no {unknown[0]!r}; it takes "
            f"{', '.join(takes)}{hint}"
        )
    for each in dataclasses.fields(cls):
        if default_of(each) is REQUIRED and values.get(each.name) is None:
            raise ConfigError(f"{where}: a source of kind {kind!r} needs {each.name!r}")
