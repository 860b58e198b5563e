"""Adds chorus tokens to a plain backbone, as special tokens in spare vocabulary rows."""

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
"""A vocabulary that is too small is enlarged to a multiple of this, which tiles well."""

_ROWS = 4096


def chorus_tokens(num_chorus: int) -> list[str]:
    """The names of the chorus tokens: "<|chorus_0|>", …"""
    return [f"<|chorus_{i}|>" for i in range(num_chorus)]


def add_chorus(
    config: ModelConfig,
    params: Params,
    tokenizer: PreTrainedTokenizerFast,
    num_chorus: int = 16,
    seed: int = 0,
) -> tuple[ModelConfig, Params, PreTrainedTokenizerFast]:
    """Adds chorus tokens to a model; one that already has them is returned unchanged.

    The tokens get the ids that follow the tokenizer's last one (or those they already have), so an
    embedding table with spare rows keeps its shape. Their embeddings are initialised to the mean of
    the rows in use plus normal noise of half those rows' standard deviation (per column): typical
    inputs of the layers, yet all different. An untied head gets the mean row alone, as the chorus
    is never predicted.

    Returns:
      (config, params, tokenizer), new objects; LazyArrays stay lazy.

    Raises:
      ConfigError: num_chorus is below 1, the tokenizer has the tokens under ids that are not
        consecutive, or it is larger than the table.
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
    """`old` with `rows` written from row `start` on, extended to `size` rows with `filler`."""

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
