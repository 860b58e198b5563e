"""Autoregressive decoding of answers from a memory.

Whether an answer is native or compressed depends on the memory alone: `memory` gives native
answers, `memory.chorus_only(k)` answers from k chorus tokens.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct

from crem_jax.config import ModelConfig
from crem_jax.inference.sampling import Sampling, next_token
from crem_jax.model import crem
from crem_jax.model.decoder import empty_cache
from crem_jax.types import Cache, Memory, Target


@struct.dataclass
class State:
    """The state of decoding between two tokens.

    Attributes:
      token: int32 [B], the newest tokens. done: bool [B], rows whose answer has ended.
      index: int32 [], tokens generated so far. cache: keys and values of question and answer.
    """

    token: jax.Array
    done: jax.Array
    index: jax.Array
    cache: Cache


@functools.partial(jax.jit, static_argnames=("config", "max_new"))
def start(
    config: ModelConfig,
    params: crem.Params,
    memory: Memory,
    tokens: jax.Array,
    valid: jax.Array,
    sampling: Sampling,
    max_new: int,
) -> State:
    """Prefills the questions and generates the first token.

    Args:
      tokens: int32 [B, T], questions up to where the answer begins, padded on the right.
      valid: bool [B, T], False on padding.
      max_new: largest number of answer tokens, for which the cache is allocated.
    """
    cache = empty_cache(memory, tokens.shape[1] + max_new)
    hidden, cache = _decode(config, params, memory, tokens, valid, cache)
    last = jnp.sum(valid, axis=1) - 1
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    zero = jnp.zeros((), jnp.int32)
    token = _choose(config, params, hidden, sampling, zero)
    return State(token, _ends(config, token), zero + 1, cache)


@functools.partial(jax.jit, static_argnames=("config",))
def step(
    config: ModelConfig, params: crem.Params, memory: Memory, state: State, sampling: Sampling
) -> State:
    """Generates the next token; rows that are done repeat the pad token."""
    hidden, cache = _decode(
        config, params, memory, state.token[:, None], ~state.done[:, None], state.cache
    )
    token = _choose(config, params, hidden[:, 0], sampling, state.index)
    token = jnp.where(state.done, config.pad_token_id, token)
    return State(token, state.done | _ends(config, token), state.index + 1, cache)


@functools.partial(jax.jit, static_argnames=("config", "max_new"))
def generate(
    config: ModelConfig,
    params: crem.Params,
    memory: Memory,
    tokens: jax.Array,
    valid: jax.Array,
    sampling: Sampling,
    max_new: int,
) -> jax.Array:
    """Whole answers, int32 [B, max_new], padded after their end token; arguments as of `start`."""
    state = start(config, params, memory, tokens, valid, sampling, max_new)
    answer = jnp.full((tokens.shape[0], max_new), config.pad_token_id, jnp.int32)

    def unfinished(carry: tuple[State, jax.Array]) -> jax.Array:
        state, _ = carry
        return (state.index < max_new) & ~jnp.all(state.done)

    def advance(carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state, answer = carry
        state = step(config, params, memory, state, sampling)
        return state, answer.at[:, state.index - 1].set(state.token)

    first = (state, answer.at[:, 0].set(state.token))
    return jax.lax.while_loop(unfinished, advance, first)[1]


def _decode(config, params, memory: Memory, tokens, valid, cache: Cache):
    none = jnp.zeros((tokens.shape[0], 1), jnp.int32)
    target = Target(tokens=tokens, valid=valid, answer_slot=none, answer=none)
    return crem.decode(config, params, memory, target, jnp.zeros(tokens.shape[:1], bool), cache)


def _choose(config: ModelConfig, params, hidden, sampling: Sampling, index) -> jax.Array:
    logits = crem.logits(config, params, hidden)
    never = [token for token in config.chorus_ids if token != config.eos_token_id]
    if never:
        logits = logits.at[:, jnp.asarray(never)].set(-jnp.inf)
    assert sampling.seed is not None, "Sampling.for_batch gives every batch a seed"
    key = jax.random.fold_in(jax.random.key(sampling.seed), index)
    return next_token(logits, key, jnp.asarray(sampling.temperature), jnp.asarray(sampling.top_p))


def _ends(config: ModelConfig, token: jax.Array) -> jax.Array:
    return (token == config.eos_token_id) | (token == config.pad_token_id)
