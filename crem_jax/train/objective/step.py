"""One training step: the gradient of the joint loss and the optimiser's update."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from crem_jax import trees
from crem_jax.config import ModelConfig
from crem_jax.model import crem
from crem_jax.train.objective.grad_cache import loss_and_gradient
from crem_jax.train.objective.info_nce import Metrics
from crem_jax.train.objective.joint_loss import LossConfig, bounded, loss_fn
from crem_jax.types import Batch


@flax.struct.dataclass
class TrainState:
    """step: int32 []; params and opt_state: float32 trees."""

    step: jax.Array
    params: crem.Params
    opt_state: optax.OptState


def init_params(model: ModelConfig, loss: LossConfig, key: jax.Array) -> crem.Params:
    """Parameters of the model, boxed with their logical axes, and of the loss."""
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
    frozen_dtype: str = "float32",
) -> TrainState:
    """A new state with random parameters, the frozen ones stored as `frozen_dtype`."""
    params = nn.meta.unbox(init_params(model, loss, key))
    trained, still = trees.split(params, frozen)
    still = jax.tree.map(lambda x: x.astype(frozen_dtype), still)
    return state_of(trees.merge(trained, still), optimizer, frozen)


def state_of(
    params: crem.Params, optimizer: optax.GradientTransformation, frozen: frozenset[str]
) -> TrainState:
    """The state before the first step; only trained parameters have optimiser moments."""
    trained, _ = trees.split(params, frozen)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained))


def train_step(
    state: TrainState,
    batch: Batch,
    seed: int | jax.Array,
    *,
    model: ModelConfig,
    loss: LossConfig,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    frozen: frozenset[str] = frozenset(),
) -> tuple[TrainState, Metrics]:
    """One optimisation step. It is pure: the caller applies jit, donation and shardings.

    A step whose loss or gradient is not finite leaves parameters and moments as they are; its
    number still advances, so that the next step draws another batch, z and k. The metric `finite`
    is 1 or 0; it is counted by the host, for which the step never waits.

    Args:
      seed: of the run; traced, so that runs of other seeds share compiled code.
      frozen: paths of parameters that do not train: they have no gradient and no moments.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    trained, still = trees.split(state.params, frozen)
    if loss.chunk_rows:
        metrics, grads = loss_and_gradient(trained, still, batch, key, model, loss)
    else:

        def whole(trained: crem.Params) -> tuple[jax.Array, Metrics]:
            return loss_fn(trees.merge(trained, still), batch, key, model, loss)

        (_, metrics), grads = jax.value_and_grad(whole, has_aux=True)(trained)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    metrics["grad_norm"] = optax.global_norm(grads)
    metrics["learning_rate"] = learning_rate(state.step)
    params = bounded(optax.apply_updates(trained, updates))
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    metrics["finite"] = finite.astype(jnp.float32)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (params, opt_state),
        (trained, state.opt_state),
    )
    return TrainState(state.step + 1, trees.merge(params, still), opt_state), metrics
