"""`loss`: the objective of a step (paper section 3.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from crem_jax.config import ModelConfig
from crem_jax.configs.fields import ConfigError, Key, check, check_value, field

ELASTIC_K = ("uniform", "halves", "short")
"""Distributions of the truncated chorus' length over 1..K: all alike; K, K/2, K/4, … 1 alike; and
k with a probability proportional to 1/k. Of halves, the retrieval loss has all in every step: their
mean costs no more than a few products of the embeddings."""

TEMPERATURES = (0.005, 1.0)
"""Bounds of a learnt temperature: a step that would lead beyond one ends there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loss:
    """Keys that the compiled step takes as they stand in a config.

    `elastic`: so that any k works at inference, the truncated embedding has that weight in the
    retrieval loss, and that share of the compressed samples is truncated.
    `dims`: prefixes of the embedding that shall work on their own (Matryoshka, arXiv 2205.13147).
    The truncated embedding of a step has the first k chorus tokens and the first d numbers, d drawn
    from these and D; `elastic` is its weight.
    """

    retrieval: float = field(1.0, "α_r; 0 leaves the loss out of the compiled step.", low=0.0)
    generation: float = field(1.0, "α_g, likewise.", low=0.0)
    p_compressed: float = field(
        0.5, "Probability of z = 1 for each sample: answers from the chorus.", low=0, high=1
    )
    elastic: float = field(
        0.5, "Weight and share of samples whose chorus is cut to a random k.", low=0, high=1
    )
    elastic_k: str = field("halves", "How that k is drawn from 1..K.", choices=ELASTIC_K)
    dims: tuple[int, ...] = field(
        (), "Prefixes of the embedding that shall work on their own; they need elastic.", low=1
    )
    learn_temperature: bool = field(False, "Train model.temperature from where it starts.")
    symmetric: bool = field(True, "InfoNCE in both directions.")
    z_loss: float = field(
        0.0, "Weight of the squared log of the softmax's denominator in generation.", low=0.0
    )
    vocab_chunk: int = field(
        0, "At most so many rows of the vocabulary have logits at a time; 0: all.", low=0
    )
    cache_vision: bool = field(
        False, "With chunks and a frozen vision tower: keep its outputs, run it once."
    )

    def __post_init__(self):
        check(self, "loss")
        if not self.retrieval and not self.generation:
            raise ConfigError("loss.retrieval and loss.generation are both 0; nothing to train")
        if self.dims and not self.elastic:
            raise ConfigError("loss.dims needs loss.elastic above 0: the weight of the short ones")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(_Loss):
    """How the step trains: static in the compiled program.

    Attributes:
      temperature: of InfoNCE.
      chunk_rows: (bucket, rows) pairs: so many rows of the global batch are in memory at a time,
        see `grad_cache`; a bucket that is not named is one chunk. Empty trains the whole batch at
        once.

    Raises:
      ConfigError: a value is out of its range, or contradicts another.
    """

    temperature: float = 0.02
    chunk_rows: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):
        check_value(self.temperature, Key(above=0), "model.temperature")
        low, high = TEMPERATURES
        if self.learn_temperature and not low <= self.temperature <= high:
            raise ConfigError(
                f"model.temperature = {self.temperature} is not in {low}..{high}, the bounds of "
                "one that is learnt (loss.learn_temperature)"
            )
        super().__post_init__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSection(_Loss):
    """The objective: retrieval and generation over one compression of every context."""

    temperature: float | None = field(
        None, "Of InfoNCE where it is not model.temperature.", above=0
    )
    chunk_rows: int | Mapping[str, int] = field(
        {},
        "Rows of a bucket in memory at a time (GradCache), one number or by bucket; 0: all.",
        low=0,
    )

    def check_buckets(self, buckets: Collection[str]) -> None:
        """Raises ConfigError if chunk_rows names a bucket that there is not."""
        for name in self.chunk_rows if isinstance(self.chunk_rows, Mapping) else ():
            if name not in buckets:
                names = ", ".join(sorted(buckets))
                raise ConfigError(
                    f"loss.chunk_rows.{name}: no such bucket; data.buckets has {names}"
                )

    def of_step(self, model: ModelConfig, buckets: Collection[str]) -> LossConfig:
        """What the step of a model takes.

        Raises:
          ConfigError: it contradicts the model.
        """
        self.check_buckets(buckets)
        chunks = self.chunk_rows
        chunks = dict.fromkeys(buckets, chunks) if isinstance(chunks, int) else chunks
        for dim in self.dims:
            if dim > model.text.hidden_size:
                raise ConfigError(f"loss.dims: {dim} is not in 1..{model.text.hidden_size}")
        if not model.num_chorus and (self.retrieval or self.p_compressed):
            raise ConfigError(
                f"loss.retrieval = {self.retrieval} and loss.p_compressed = {self.p_compressed} "
                "must be 0 for a model without chorus tokens (model.num_chorus = 0)"
            )
        shared: dict[str, Any] = {
            each.name: getattr(self, each.name) for each in dataclasses.fields(_Loss)
        }
        return LossConfig(
            **shared,
            temperature=model.temperature if self.temperature is None else self.temperature,
            chunk_rows=tuple(sorted((name, rows) for name, rows in chunks.items() if rows)),
        )
