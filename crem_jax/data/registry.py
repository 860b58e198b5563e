"""Names of the data sources a config may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from crem_jax.data.batcher import BatchSpec, BucketSpec
from crem_jax.data.pipeline import Source
from crem_jax.data.sources.emoji import EmojiPictures
from crem_jax.data.sources.scenes import Scenes

SOURCES: Mapping[str, Callable[..., Source]] = {"emoji": EmojiPictures, "scenes": Scenes}


def make_sources(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Source]:
    """Sources by name from `data.sources`: {name: {"kind": …, **arguments}}.

    Raises:
      ValueError: an unknown kind or argument.
    """
    sources = {}
    for name, arguments in config.items():
        arguments = dict(arguments)
        kind = arguments.pop("kind", name)
        if kind not in SOURCES:
            raise ValueError(
                f"data.sources.{name}.kind {kind!r} is not one of {', '.join(sorted(SOURCES))}"
            )
        try:
            sources[name] = SOURCES[kind](**arguments)
        except TypeError as error:
            raise ValueError(f"data.sources.{name}: {error}") from error
    return sources


def make_batch_spec(config: Mapping[str, Any]) -> BatchSpec:
    """The `data` section of a config: buckets, records, candidates."""
    return BatchSpec(
        buckets={name: BucketSpec(**bucket) for name, bucket in config["buckets"].items()},
        records=dict(config["records"]),
        candidates=config["candidates"],
        positives=config.get("positives", BatchSpec.positives),
    )
