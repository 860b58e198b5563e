"""`data.sources.NAME`: the arguments of every kind of source.

`crem_jax.data.sources.registry.SOURCES` has the constructor of every kind; it takes the arguments
declared here.
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
    """The keys of every source, whatever its kind."""

    kind: str = field("", "Kind of the source, one of those below; default: its name.")
    index: str | None = field(
        None, "Index file written by `crem doctor`: only records it lists as good are read."
    )
    limit: int | None = field(
        None, "Maximum number of records, chosen at random; None: all.", low=1
    )
    limit_seed: int = field(0, "Seed of the choice made by `limit`.", low=0)
    only: str | None = field(None, "Train on one half of every record; None: both.", choices=HALVES)

    @classmethod
    def own(cls) -> list[str]:
        """Names of the arguments specific to the kind."""
        return [each.name for each in dataclasses.fields(cls) if each.name not in SHARED]

    def arguments(self) -> dict[str, Any]:
        """The arguments specific to the kind, by name."""
        return {name: getattr(self, name) for name in self.own()}

    def selection(self) -> dict[str, Any]:
        """The arguments that choose among the records of any kind."""
        return {name: getattr(self, name) for name in SHARED[1:]}


SHARED = tuple(each.name for each in dataclasses.fields(SourceConfig))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiConfig(SourceConfig):
    """Single emoji, shipped with the package."""

    split: str = field("train", "Split: train, validation, heldout or all.")
    size: int = field(48, "Side of the square picture in pixels.", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesConfig(SourceConfig):
    """Scenes of several emoji, drawn on the fly."""

    split: str = field("train", "Split: train or heldout.")
    negatives: int = field(
        3, "Hard negatives of a record: captions with one wrong attribute.", low=0
    )
    size: int = field(96, "Side of the square picture in pixels.", low=1)
    turns: int = field(3, "Question-answer turns of a record.", low=0)
    text: float = field(
        0.0, "Share of scenes that show a sign with a word or number.", low=0, high=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderConfig(SourceConfig):
    """Images of a folder, each with a text file or a JSON file of the same name."""

    path: str = field(doc="Path of the folder; subfolders are included.")
    name_as_text: bool = field(False, "Use the file name as the text of an image that has none.")
    bare: bool = field(False, "Allow images without text; they can be searched, not trained on.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlConfig(SourceConfig):
    """Your own data, one JSON object per line."""

    path: str = field(doc="Path of the JSONL file.")
    image_root: str | None = field(
        None, "Root of relative image paths; default: the folder of the file."
    )
    bare: bool = field(
        False, "Allow records with nothing to learn; they can be searched, not trained on."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MmebConfig(SourceConfig):
    """MMEB-train and its hard-negative variants."""

    path: str = field(doc="Folder that holds the subsets.")
    subset: str | tuple[str, ...] | None = field(
        None, "One subset or several, by name; default: all."
    )
    split: str = field("original", "Split: original or diverse_instruction.")
    image_root: str | None = field(
        None, "Root of relative image paths; default: PATH or PATH/images, whichever fits."
    )
    cap: int | Mapping[str, int] | str | None = field(
        None, "Maximum rows of a subset: one number, a number by subset, or vlm2vec-v2."
    )
    seed: int = field(0, "Seed of the choice made by `cap`.", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareGptConfig(SourceConfig):
    """Conversations in the format of ShareGPT-4V and LLaVA."""

    path: str = field(doc="Path of the .json or .jsonl file.")
    image_root: str | None = field(
        None, "Root of relative image paths; default: the folder of the file."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsConfig(SourceConfig):
    """The output of `crem prepare`, or any TFDS data set stored as ArrayRecord."""

    path: str = field(doc="Directory with dataset_info.json, or a parent of it.")
    split: str = field("train", "Split, such as train, or a slice of one, such as train[:1000].")
    features: Mapping[str, str] | str | None = field(
        None, "Map from parts of a record to features, or the name of one (docs/data.md)."
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
"""The kinds that ship with the package; `registry.register` adds others."""


def kind_of(name: str, values: Mapping[str, Any], where: str) -> type[SourceConfig]:
    """The schema of a source by its `kind`, which defaults to its name.

    Raises:
      ConfigError: the kind is unknown.
    """
    kind = values.get("kind") or name
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{where}.kind {kind!r} is not one of {', '.join(sorted(KINDS))}{hint}")
    return KINDS[kind]


def check_arguments(cls: type[SourceConfig], values: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for an argument unknown to the kind, or a required one that is missing."""
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
