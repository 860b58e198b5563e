"""One training step: L = α_r L_r + α_g L_g over one compression of every context."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from crem_jax import trees
from crem_jax.config import ModelConfig
from crem_jax.model import crem
from crem_jax.train.losses import Metrics, info_nce, language_modelling, positives
from crem_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the step trains (paper section 3.3).

    Attributes:
      retrieval, generation: α_r and α_g; 0 leaves a loss out of the compiled step.
      p_compressed: probability of z = 1 for each sample.
      elastic: share of samples whose chorus is truncated to a random k ≤ K, so that any k works
        at inference: that weight in the retrieval loss, that share of the compressed samples.
      temperature: of InfoNCE. learn_temperature: train it from that start.
      symmetric: InfoNCE in both directions.
    """

    retrieval: float = 1.0
    generation: float = 1.0
    p_compressed: float = 0.5
    elastic: float = 0.5
    temperature: float = 0.02
    learn_temperature: bool = False
    symmetric: bool = True


@flax.struct.dataclass
class TrainState:
    """step: int32 []; params and opt_state: float32 trees."""

    step: jax.Array
    params: crem.Params
    opt_state: optax.OptState


def init_params(model: ModelConfig, loss: LossConfig, key: jax.Array) -> crem.Params:
    """The model's parameters (still boxed with their axes) and those of the loss."""
    params = dict(crem.boxed_init(model, key))
    if loss.learn_temperature:
        params["loss"] = {"log_temperature": jnp.log(jnp.float32(loss.temperature))}
    return params


def init_state(
    model: ModelConfig,
    loss: LossConfig,
    optimizer: optax.GradientTransformation,
    frozen: frozenset[str],
    key: jax.Array,
) -> TrainState:
    """A fresh state; moments of the trained parameters alone."""
    params = nn.meta.unbox(init_params(model, loss, key))
    trained, _ = trees.split(params, frozen)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained))


def loss_fn(
    params: crem.Params, batch: Batch, key: jax.Array, model: ModelConfig, loss: LossConfig
) -> tuple[jax.Array, Metrics]:
    """The loss of one batch and its parts; a part that no sample had is NaN.

    Args:
      key: decides z and k.
    """
    z_key, retrieval_key, k_key = jax.random.split(key, 3)
    memories = {
        name: crem.compress(model, params, context)
        for name, context in sorted(batch.contexts.items())
    }
    total, metrics = jnp.float32(0), {}
    if loss.retrieval:
        total, metrics = _retrieval(params, memories, batch, retrieval_key, model, loss)
        total *= loss.retrieval
    if loss.generation and batch.targets:
        generation, parts = _generation(params, memories, batch, (z_key, k_key), model, loss)
        total += loss.generation * generation
        metrics |= parts
    return total, metrics | {"loss": total}


def _retrieval(params, memories, batch: Batch, key, model: ModelConfig, loss: LossConfig):
    temperature = loss.temperature
    if loss.learn_temperature:
        temperature = jnp.clip(jnp.exp(params["loss"]["log_temperature"]), 0.005, 1.0)
    positive = positives(batch.positive_hash, batch.candidate_hash)
    query_valid, candidate_valid = batch.query_row >= 0, batch.candidate_row >= 0

    def at(k) -> tuple[jax.Array, Metrics]:
        embeddings = jnp.concatenate([memory.embedding(k) for memory in memories.values()])
        return info_nce(
            embeddings[jnp.maximum(batch.query_row, 0)],
            embeddings[jnp.maximum(batch.candidate_row, 0)],
            positive,
            query_valid,
            candidate_valid,
            temperature,
            loss.symmetric,
        )

    value, metrics = at(model.num_chorus)
    if loss.elastic:
        truncated, _ = at(_random_k(key, (), model.num_chorus))
        value = (1 - loss.elastic) * value + loss.elastic * truncated
    metrics = {"retrieval": value, "retrieval_queries": jnp.sum(query_valid), **metrics}
    if loss.learn_temperature:
        metrics["temperature"] = temperature
    return value, metrics


def _generation(params, memories, batch: Batch, keys, model: ModelConfig, loss: LossConfig):
    samples, compressed, talking, rights, zs, reals = [], [], [], [], [], []
    metrics = {}
    for i, (name, target) in enumerate(sorted(batch.targets.items())):
        rows = target.tokens.shape[0]
        z = jax.random.bernoulli(jax.random.fold_in(keys[0], i), loss.p_compressed, (rows,))
        memory = memories[name]
        if loss.elastic:
            k_key, chosen_key = jax.random.split(jax.random.fold_in(keys[1], i))
            k = _random_k(k_key, (rows,), model.num_chorus)
            chosen = z & jax.random.bernoulli(chosen_key, loss.elastic, (rows,))
            memory = memory.truncate(jnp.where(chosen, k, model.num_chorus))
        hidden, _ = crem.decode(model, params, memory, target, z)
        hidden = jnp.take_along_axis(hidden, target.answer_slot[..., None], axis=1)
        each, right = language_modelling(crem.logits(model, params, hidden), target.answer)
        real = target.answer >= 0
        # 1/T Σ_t of the paper: every sample weighs the same, however long its answers.
        samples.append(jnp.sum(each, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1))
        compressed.append(z)
        talking.append(jnp.any(real, axis=1))
        metrics[f"generation_{name}"] = _mean(samples[-1], talking[-1])
        rights.append(right.reshape(-1))
        reals.append(real.reshape(-1))
        zs.append(jnp.broadcast_to(z[:, None], real.shape).reshape(-1))
    sample, z, talks = (jnp.concatenate(x) for x in (samples, compressed, talking))
    right, real, token_z = (jnp.concatenate(x) for x in (rights, reals, zs))
    value = _mean(sample, talks)
    return value, metrics | {
        "generation": value,
        "generation_native": _mean(sample, talks & ~z, jnp.nan),
        "generation_compressed": _mean(sample, talks & z, jnp.nan),
        "token_accuracy_native": _mean(right, real & ~token_z, jnp.nan),
        "token_accuracy_compressed": _mean(right, real & token_z, jnp.nan),
    }


def _mean(values: jax.Array, chosen: jax.Array, of_nothing: float = 0.0) -> jax.Array:
    count = jnp.sum(chosen)
    mean = jnp.sum(jnp.where(chosen, values, 0.0)) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, of_nothing)


def _random_k(key: jax.Array, shape: tuple[int, ...], largest: int) -> jax.Array:
    """int32 k, uniform over 1..K."""
    return jax.random.randint(key, shape, 1, largest + 1)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    seed: int,
    model: ModelConfig,
    loss: LossConfig,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    frozen: frozenset[str] = frozenset(),
) -> tuple[TrainState, Metrics]:
    """Pure; jit, donation and shardings are applied where it is called.

    A step whose loss or gradient is not finite leaves parameters and moments as they are; its
    number still advances, so that the next step draws another batch, z and k. The metric `finite`
    is 1 or 0: whoever fetches it counts, the step itself never waits for the host.

    Args:
      frozen: paths of parameters that do not train: they have no gradient and no moments.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    trained, still = trees.split(state.params, frozen)

    def objective(trained: crem.Params) -> tuple[jax.Array, Metrics]:
        return loss_fn(trees.merge(trained, still), batch, key, model, loss)

    (_, metrics), grads = jax.value_and_grad(objective, has_aux=True)(trained)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    metrics["grad_norm"] = optax.global_norm(grads)
    metrics["learning_rate"] = learning_rate(state.step)
    params = optax.apply_updates(trained, updates)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    metrics["finite"] = finite.astype(jnp.float32)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (params, opt_state),
        (trained, state.opt_state),
    )
    return TrainState(state.step + 1, trees.merge(params, still), opt_state), metrics
