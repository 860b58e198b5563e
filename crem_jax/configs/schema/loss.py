"""`loss`: the objective of a step (paper section 3.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from crem_jax.config import ModelConfig
from crem_jax.configs.fields import ConfigError, Key, check, check_value, field

ELASTIC_K = ("uniform", "halves", "short")
"""Distributions of the truncated chorus length k: uniform over 1..K; uniform over K, K/2, K/4, … 1;
and proportional to 1/k over 1..K. With "halves" the retrieval loss averages over all these lengths
in every step, which costs no more than a few products of the embeddings."""

TEMPERATURES = (0.005, 1.0)
"""Bounds of a learnt temperature, which is clipped to them after every step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loss:
    """Keys that the compiled step takes from a config unchanged.

    `elastic` makes every k work at inference: it is the weight of the truncated embedding in the
    retrieval loss, and the share of the compressed samples whose chorus is truncated.
    `dims` are prefixes of the embedding trained to work on their own (Matryoshka, arXiv
    2205.13147). The truncated embedding of a step pools the first k chorus tokens and keeps the
    first d dimensions, d drawn from `dims` and D; `elastic` is its weight.
    """

    retrieval: float = field(
        1.0, "Weight α_r of the retrieval loss; 0 leaves it out of the compiled step.", low=0.0
    )
    generation: float = field(
        1.0, "Weight α_g of the generation loss; 0 leaves it out of the compiled step.", low=0.0
    )
    p_compressed: float = field(
        0.5, "Probability that a sample is answered from its chorus alone (z = 1).", low=0, high=1
    )
    elastic: float = field(
        0.5,
        "Weight of the truncated embedding, and share of samples truncated to k tokens.",
        low=0,
        high=1,
    )
    elastic_k: str = field(
        "halves", "Distribution of the truncated chorus length k over 1..K.", choices=ELASTIC_K
    )
    dims: tuple[int, ...] = field(
        (), "Embedding prefixes that work on their own (Matryoshka); needs elastic > 0.", low=1
    )
    learn_temperature: bool = field(
        False, "Learn the InfoNCE temperature, with model.temperature as its initial value."
    )
    symmetric: bool = field(
        True, "InfoNCE in both directions, query to target and target to query."
    )
    z_loss: float = field(
        0.0,
        "Weight of the z-loss, the squared log of the softmax denominator, in generation.",
        low=0.0,
    )
    vocab_chunk: int = field(
        0, "Maximum number of vocabulary rows whose logits are in memory at a time; 0: all.", low=0
    )
    cache_vision: bool = field(
        False, "Run a frozen vision tower once per step and keep its outputs (with chunk_rows)."
    )

    def __post_init__(self):
        check(self, "loss")
        if not self.retrieval and not self.generation:
            raise ConfigError("loss.retrieval and loss.generation are both 0; nothing to train")
        if self.dims and not self.elastic:
            raise ConfigError(
                "loss.dims needs loss.elastic above 0: the weight of the truncated embeddings"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(_Loss):
    """The objective of a training step, static in the compiled program.

    Attributes:
      temperature: of InfoNCE.
      chunk_rows: (bucket, rows) pairs, the number of rows of the global batch in memory at a time
        (see `grad_cache`); a bucket that is not named is one chunk. If empty, the whole batch is
        trained at once.

    Raises:
      ConfigError: a value is out of its bounds, or contradicts another.
    """

    temperature: float = 0.02
    chunk_rows: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):
        check_value(self.temperature, Key(above=0), "model.temperature")
        low, high = TEMPERATURES
        if self.learn_temperature and not low <= self.temperature <= high:
            raise ConfigError(
                f"model.temperature = {self.temperature} is not in {low}..{high}, the bounds of "
                "a learnt temperature (loss.learn_temperature)"
            )
        super().__post_init__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSection(_Loss):
    """The objective: retrieval and generation over one compression of every context."""

    temperature: float | None = field(
        None, "Temperature of InfoNCE; None: that of model.temperature.", above=0
    )
    chunk_rows: int | Mapping[str, int] = field(
        {},
        "Rows in memory at a time (GradCache), for all buckets or by bucket; 0: all rows.",
        low=0,
    )

    def check_buckets(self, buckets: Collection[str]) -> None:
        """Raises ConfigError if chunk_rows names an unknown bucket."""
        for name in self.chunk_rows if isinstance(self.chunk_rows, Mapping) else ():
            if name not in buckets:
                names = ", ".join(sorted(buckets))
                raise ConfigError(
                    f"loss.chunk_rows.{name}: no such bucket; data.buckets has {names}"
                )

    def of_step(self, model: ModelConfig, buckets: Collection[str]) -> LossConfig:
        """The objective of a training step of this model.

        Raises:
          ConfigError: the section contradicts the model.
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
