"""Gives a plain backbone its chorus: special tokens in spare vocabulary rows."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
from transformers import PreTrainedTokenizerFast

from crem_jax import lazy_array
from crem_jax.config import ConfigError, ModelConfig
from crem_jax.lazy_array import Index, LazyArray
from crem_jax.model.crem import Params

GROWTH = 128
"""A vocabulary that is too small grows to a multiple of this, which suits every accelerator."""

_ROWS = 4096


def chorus_tokens(num_chorus: int) -> list[str]:
    """Their names: "<|chorus_0|>", …"""
    return [f"<|chorus_{i}|>" for i in range(num_chorus)]


def add_chorus(
    config: ModelConfig,
    params: Params,
    tokenizer: PreTrainedTokenizerFast,
    num_chorus: int = 16,
    seed: int = 0,
) -> tuple[ModelConfig, Params, PreTrainedTokenizerFast]:
    """A model with chorus tokens; one that already has them comes back as it is.

    The tokens take the rows that follow the tokenizer's last one (or the rows it already knows them
    by), so a table with spare rows keeps its shape. Their embeddings start at the mean of the rows
    in use plus normal noise of half those rows' own standard deviation (per column): typical of
    what the layers read, yet all different. An untied head gets the mean row alone: the chorus is
    never predicted.

    Returns:
      New objects; the arguments stay as they were. What was lazy stays lazy.

    Raises:
      ConfigError: the tokenizer knows the tokens by rows that are not consecutive, or is larger
        than the table.
    """
    if config.num_chorus:
        return config, params, tokenizer
    if num_chorus < 1:
        raise ConfigError(f"num_chorus {num_chorus} must be at least 1")
    first, size = len(tokenizer), config.text.vocab_size
    if first > size:
        raise ConfigError(f"the tokenizer has {first} tokens, the embedding table only {size} rows")
    tokenizer = copy.deepcopy(tokenizer)
    names = chorus_tokens(num_chorus)
    tokenizer.add_tokens(names, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(names)
    first = ids[0]
    if ids != list(range(first, first + num_chorus)):
        raise ConfigError(
            f"the tokenizer has {names[0]} … in rows {ids}, which are not consecutive"
        )
    if first + num_chorus > size:
        size = -(-(first + num_chorus) // GROWTH) * GROWTH

    backbone = dict(params["backbone"])
    rng = np.random.default_rng(seed)
    for table in ("embedding", "head"):
        if table not in backbone:
            continue
        old = lazy_array.of(backbone[table])
        mean, deviation = _statistics(old, first)
        rows = np.tile(mean, (num_chorus, 1))
        if table == "embedding":
            rows += 0.5 * deviation * rng.standard_normal(rows.shape)
        new = _with_rows(old, first, rows, size, mean)
        backbone[table] = new if isinstance(backbone[table], LazyArray) else np.asarray(new)
    config = config.replace(
        text=dataclasses.replace(config.text, vocab_size=size),
        num_chorus=num_chorus,
        first_chorus_id=first,
    )
    return config, {**params, "backbone": backbone}, tokenizer


def _statistics(table: LazyArray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column over the first `count` rows, float64 [D]."""
    total = squares = np.zeros(())
    for start in range(0, count, _ROWS):
        block = table[start : min(start + _ROWS, count)].astype(np.float64)
        total, squares = total + block.sum(axis=0), squares + np.square(block).sum(axis=0)
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - np.square(mean), 0))


def _with_rows(
    old: LazyArray, start: int, rows: np.ndarray, size: int, filler: np.ndarray
) -> LazyArray:
    """`old` with `rows` from `start` on, made `size` rows long with `filler`."""

    def read(index: Index) -> np.ndarray:
        span, columns = index
        out = np.empty((span.stop - span.start, columns.stop - columns.start), old.dtype)
        kept = max(min(span.stop, old.shape[0]) - span.start, 0)
        if kept:
            out[:kept] = old.read((slice(span.start, span.start + kept), columns))
        out[kept:] = filler[columns]
        first, last = max(span.start, start), min(span.stop, start + len(rows))
        if first < last:
            out[first - span.start : last - span.start] = rows[
                first - start : last - start, columns
            ]
        return out

    return LazyArray((size, old.shape[1]), old.dtype, read)
