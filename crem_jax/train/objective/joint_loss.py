"""The joint loss L = α_r L_r + α_g L_g over one compression of every context."""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp

from crem_jax.config import ModelConfig
from crem_jax.configs.schema.loss import TEMPERATURES, LossConfig
from crem_jax.model import crem
from crem_jax.model.pooling import pool_traced
from crem_jax.train.objective import cross_entropy
from crem_jax.train.objective.info_nce import Metrics, info_nce
from crem_jax.types import Array, Batch, Target


@flax.struct.dataclass
class StepRandomness:
    """The random draws of a step, made for the whole batch independently of its chunks.

    Attributes:
      k: int32 [], chorus length of the truncated embedding; None if it is not truncated or all
        lengths K, K/2, … 1 are used. dim: int32 [], its number of dimensions; None for all.
      z: bucket -> bool [B], samples answered from their chorus alone.
      num_visible_chorus: bucket -> int32 [B], number of chorus tokens visible to the answers; empty
        if the chorus is never truncated.
    """

    k: jax.Array | None
    dim: jax.Array | None
    z: dict[str, jax.Array]
    num_visible_chorus: dict[str, jax.Array]


@flax.struct.dataclass
class AnswerStats:
    """Statistics of the answers in each row.

    Attributes:
      loss: float32 [B], mean negative log-likelihood of the answer tokens.
      square: float32 [B], mean square of their log-partition, for the z-loss.
      right: int32 [B], number of answer tokens predicted correctly.
    """

    loss: jax.Array
    square: jax.Array
    right: jax.Array


def draw(batch: Batch, key: jax.Array, model: ModelConfig, loss: LossConfig) -> StepRandomness:
    """Draws z, k and d of one step from its key."""
    z_key, retrieval_key, k_key = jax.random.split(key, 3)
    z, num_visible_chorus = {}, {}
    for i, (name, target) in enumerate(sorted(batch.targets.items())):
        shape = target.tokens.shape[:1]
        z[name] = jax.random.bernoulli(jax.random.fold_in(z_key, i), loss.p_compressed, shape)
        if loss.elastic:
            random_key, chosen_key = jax.random.split(jax.random.fold_in(k_key, i))
            chosen = z[name] & jax.random.bernoulli(chosen_key, loss.elastic, shape)
            count = _random_k(random_key, shape, model.num_chorus, loss.elastic_k)
            num_visible_chorus[name] = jnp.where(chosen, count, model.num_chorus)
    k: jax.Array | None = None
    if loss.elastic and loss.elastic_k != "halves":
        k = _random_k(retrieval_key, (), model.num_chorus, loss.elastic_k)
    dim = None
    if loss.dims:
        dims = jnp.asarray((*loss.dims, model.text.hidden_size))
        dim = jax.random.choice(jax.random.fold_in(retrieval_key, 1), dims)
    return StepRandomness(k, dim, z, num_visible_chorus)


def answer_loss(
    params: crem.Params,
    memory: crem.Memory,
    target: Target,
    z: jax.Array,
    num_visible_chorus: jax.Array | None,
    model: ModelConfig,
    loss: LossConfig,
) -> AnswerStats:
    """Decodes the answers of B rows and computes their loss.

    Args:
      z: bool [B], whether a row is answered from its chorus alone.
      num_visible_chorus: int32 [B], length of its visible chorus; None for all K tokens.
    """
    if num_visible_chorus is not None:
        memory = memory.truncate(num_visible_chorus)
    hidden, _ = crem.decode(model, params, memory, target, z)
    hidden = jnp.take_along_axis(hidden, target.answer_slot[..., None], axis=1)
    if loss.vocab_chunk:
        head = crem.head(model, params)
        tokens = cross_entropy.chunked(hidden, head, target.answer, loss.vocab_chunk)
    else:
        tokens = cross_entropy.plain(crem.logits(model, params, hidden), target.answer)
    count = jnp.maximum(jnp.sum(target.answer >= 0, axis=1), 1)
    return AnswerStats(
        # 1/T Σ_t of the paper: every sample weighs the same, however long its answers.
        loss=jnp.sum(tokens.loss, axis=1) / count,
        square=jnp.sum(jnp.square(tokens.log_z), axis=1) / count,
        right=jnp.sum(tokens.right, axis=1),
    )


def retrieval(
    log_temperature: jax.Array | None,
    chorus: dict[str, Array],
    batch: Batch,
    randomness: StepRandomness,
    loss: LossConfig,
) -> tuple[jax.Array, Metrics]:
    """The retrieval loss L_r of the global batch, and its metrics.

    Args:
      log_temperature: float32 [], or None if it is not learnt.
      chorus: bucket -> float32 [B, K, D], all buckets.
    """
    temperature = loss.temperature if log_temperature is None else jnp.exp(log_temperature)
    query_valid, candidate_valid = batch.query_row >= 0, batch.candidate_row >= 0

    def at(k, dim=None) -> tuple[jax.Array, Metrics]:
        embeddings = jnp.concatenate([pool_traced(chorus[name], k, dim) for name in sorted(chorus)])
        return info_nce(
            embeddings[jnp.maximum(batch.query_row, 0)],
            embeddings[jnp.maximum(batch.candidate_row, 0)],
            batch.positive_hash,
            batch.candidate_hash,
            query_valid,
            candidate_valid,
            temperature,
            loss.symmetric,
        )

    value, metrics = at(None)
    if loss.elastic:
        lengths = _halves(chorus) if randomness.k is None else randomness.k[None]
        # Sequential and rematerialised: only one similarity matrix is in memory at a time.
        truncated = jax.lax.map(jax.checkpoint(lambda k: at(k, randomness.dim)[0]), lengths)
        value = (1 - loss.elastic) * value + loss.elastic * jnp.mean(truncated)
    metrics = {"retrieval": value, "retrieval_queries": jnp.sum(query_valid), **metrics}
    if log_temperature is not None:
        metrics["temperature"] = jnp.asarray(temperature)
    return value, metrics


def generation(
    stats: dict[str, AnswerStats], batch: Batch, randomness: StepRandomness, loss: LossConfig
) -> tuple[jax.Array, Metrics]:
    """The generation loss L_g with its z-loss, and its metrics; metrics without samples are NaN."""
    names = sorted(stats)
    counts = {name: jnp.sum(batch.targets[name].answer >= 0, axis=1) for name in names}
    count = jnp.concatenate([counts[name] for name in names])
    z = jnp.concatenate([randomness.z[name] for name in names])
    row = jax.tree.map(lambda *x: jnp.concatenate(x), *[stats[name] for name in names])
    has_answers = count > 0
    value = _mean(row.loss, has_answers)
    metrics = {f"generation_{name}": _mean(stats[name].loss, counts[name] > 0) for name in names}
    metrics |= {
        "generation": value,
        "generation_native": _mean(row.loss, has_answers & ~z, jnp.nan),
        "generation_compressed": _mean(row.loss, has_answers & z, jnp.nan),
        "token_accuracy_native": _share(row.right, count, ~z),
        "token_accuracy_compressed": _share(row.right, count, z),
    }
    if loss.z_loss:
        metrics["z_loss"] = _mean(row.square, has_answers)
        value += loss.z_loss * metrics["z_loss"]
    return value, metrics


def generation_weights(batch: Batch, loss: LossConfig) -> dict[str, jax.Array]:
    """bucket -> float32 [B]: weight of each row's answer loss in that of the global batch."""
    has_answers = {name: jnp.any(t.answer >= 0, axis=1) for name, t in batch.targets.items()}
    total = jnp.maximum(sum(jnp.sum(x) for x in has_answers.values()), 1)
    return {name: loss.generation * x / total for name, x in has_answers.items()}


def loss_fn(
    params: crem.Params, batch: Batch, key: jax.Array, model: ModelConfig, loss: LossConfig
) -> tuple[jax.Array, Metrics]:
    """The joint loss of one batch, and its metrics; metrics without samples are NaN.

    Args:
      key: PRNG key of the step, for z, k and d.
    """
    randomness = draw(batch, key, model, loss)
    memories = {
        name: crem.compress(model, params, context)
        for name, context in sorted(batch.contexts.items())
    }
    total: jax.Array = jnp.float32(0)
    metrics: Metrics = {}
    if loss.retrieval:
        chorus = {name: memory.chorus for name, memory in memories.items()}
        value, metrics = retrieval(log_temperature(params), chorus, batch, randomness, loss)
        total += loss.retrieval * value
    if loss.generation and batch.targets:
        stats = {
            name: answer_loss(
                params,
                memories[name],
                target,
                randomness.z[name],
                randomness.num_visible_chorus.get(name),
                model,
                loss,
            )
            for name, target in sorted(batch.targets.items())
        }
        value, parts = generation(stats, batch, randomness, loss)
        total += loss.generation * value
        metrics |= parts
    return total, metrics | {"loss": total}


def log_temperature(params: crem.Params) -> jax.Array | None:
    """The log of the temperature, float32 [], or None if it is not learnt."""
    return params["loss"]["log_temperature"] if "loss" in params else None


def bounded(params: crem.Params) -> crem.Params:
    """The parameters, with the temperature clipped to TEMPERATURES if it is learnt."""
    if "loss" not in params:
        return params
    low, high = map(math.log, TEMPERATURES)
    clipped = jnp.clip(params["loss"]["log_temperature"], low, high)
    return params | {"loss": {"log_temperature": clipped}}


def _mean(values: jax.Array, chosen: jax.Array, of_nothing: float = 0.0) -> jax.Array:
    count = jnp.sum(chosen)
    mean = jnp.sum(jnp.where(chosen, values, 0.0)) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, of_nothing)


def _share(right: jax.Array, count: jax.Array, chosen: jax.Array) -> jax.Array:
    total = jnp.sum(jnp.where(chosen, count, 0))
    share = jnp.sum(jnp.where(chosen, right, 0)) / jnp.maximum(total, 1)
    return jnp.where(total > 0, share, jnp.nan)


def _halves(chorus: dict[str, Array]) -> jax.Array:
    """int32 [n]: K, K/2, K/4, … 1."""
    largest = next(iter(chorus.values())).shape[1]
    return largest >> jnp.arange(largest.bit_length())


def _random_k(key: jax.Array, shape: tuple[int, ...], largest: int, how: str) -> jax.Array:
    """int32 k in 1..K, see ELASTIC_K."""
    if how == "uniform":
        return jax.random.randint(key, shape, 1, largest + 1)
    if how == "halves":
        return largest >> jax.random.randint(key, shape, 0, largest.bit_length())
    weights = -jnp.log(jnp.arange(1, largest + 1, dtype=jnp.float32))
    return 1 + jax.random.categorical(key, weights, shape=shape).astype(jnp.int32)
