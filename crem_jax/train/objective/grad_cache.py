"""The exact gradient of a batch larger than memory, by GradCache (arXiv 2101.06983).

The contrastive loss couples all rows, so chunks cannot be trained independently. But it depends on
a row only through its chorus states, which are small:

  pass 1   every chunk is compressed, without keeping activations      -> chorus [rows, K, D]
  between  the loss over the global batch and its gradient by the chorus
  pass 2   every chunk is compressed again, now with activations; the vector-Jacobian product with
           the cached gradient gives its share of the parameters' gradient. Answers are decoded
           from the same memory, so that the generation loss needs no further compression.

Both passes use the same z, k and d, and rows have their weight in the whole batch: the result is
that of `jax.grad(loss_fn)`, with the memory of one chunk.

On a mesh with only the axis `data`, each device accumulates the gradient of its own rows, and one
all-reduce follows the last chunk. With sharded parameters, so is the gradient of every chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from crem_jax import trees
from crem_jax.config import ModelConfig
from crem_jax.errors import CremError
from crem_jax.mesh import constrain
from crem_jax.model import crem
from crem_jax.train.objective import joint_loss
from crem_jax.train.objective.chunks import join_parts, part
from crem_jax.train.objective.info_nce import Metrics
from crem_jax.train.objective.joint_loss import AnswerStats, LossConfig
from crem_jax.types import Batch


def loss_and_gradient(
    trained: crem.Params,
    frozen: crem.Params,
    batch: Batch,
    key: jax.Array,
    model: ModelConfig,
    loss: LossConfig,
) -> tuple[Metrics, crem.Params]:
    """The metrics of `loss_fn`, and its gradient with respect to the trained parameters.

    Args:
      trained, frozen: `trees.merge` of them are the parameters.

    Raises:
      CremError: `loss.chunk_rows` does not divide the rows of a bucket, or is not a multiple of the
        devices that share the batch.
    """
    parts = {name: _parts(name, batch, loss) for name in sorted(batch.contexts)}
    randomness = joint_loss.draw(batch, key, model, loss)
    total: jax.Array = jnp.float32(0)
    metrics: Metrics = {}
    seeds: dict[str, jax.Array] = {}
    image_tokens, by_temperature = {}, None
    if loss.retrieval:
        params = trees.merge(trained, frozen)
        chorus = {}
        for name, count in parts.items():
            chorus[name], image_tokens[name] = _compress(params, name, count, batch, model, loss)

        def over_the_batch(log_temperature, chorus):
            value, metrics = joint_loss.retrieval(log_temperature, chorus, batch, randomness, loss)
            return loss.retrieval * value, metrics

        (total, metrics), (by_temperature, seeds) = jax.value_and_grad(
            over_the_batch, (0, 1), has_aux=True
        )(joint_loss.log_temperature(params), chorus)
    weights = joint_loss.generation_weights(batch, loss)
    rows: dict[str, dict[str, Any]] = {}
    for name in parts:
        has_answers = loss.generation and name in batch.targets
        if not has_answers and name not in seeds:
            continue
        rows[name] = {"context": batch.contexts[name], "seed": seeds.get(name)}
        if has_answers:
            rows[name] |= {"target": batch.targets[name], "weight": weights[name]}
            rows[name] |= {
                "z": randomness.z[name],
                "num_visible_chorus": randomness.num_visible_chorus.get(name),
            }
    backward = _on_own_rows(functools.partial(_backward, parts=parts, model=model, loss=loss))
    gradient, stats = backward(trained, frozen, rows, image_tokens)
    if by_temperature is not None and "loss" in trained:
        gradient["loss"] = {"log_temperature": by_temperature}
    if stats:
        value, parts_of_it = joint_loss.generation(stats, batch, randomness, loss)
        total += loss.generation * value
        metrics |= parts_of_it
    return metrics | {"loss": total}, gradient


def _compress(params, name: str, parts: int, batch: Batch, model, loss: LossConfig):
    """Pass 1 of a bucket: chorus [B, K, D], and the stacked vision tokens if they are cached."""
    context = batch.contexts[name]
    keep = loss.cache_vision and context.patches is not None

    def chunk(_, j):
        here = _rows(context, parts, j)
        vision = crem.encode_images(model, params, here.patches) if keep else None
        return None, (crem.compress(model, params, here, vision).chorus, vision)

    _, (chorus, vision) = jax.lax.scan(chunk, None, jnp.arange(parts))
    return constrain(join_parts(chorus), "batch", None, None), vision


def _on_own_rows(backward: Callable[..., Any]) -> Callable[..., Any]:
    """`_backward`, run by each device on its own rows if the mesh shards only the batch."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.shape["data"] != mesh.size:
        return backward

    def own(*arguments):
        gradient, stats = backward(*arguments)
        return jax.lax.psum(gradient, "data"), stats

    whole, rows, stacked = PartitionSpec(), PartitionSpec("data"), PartitionSpec(None, "data")
    return jax.shard_map(
        own, in_specs=(whole, whole, rows, stacked), out_specs=(whole, rows), check_vma=False
    )


def _backward(
    trained, frozen, rows: dict[str, Any], image_tokens, parts: dict[str, int], model, loss
):
    """Pass 2: the gradient of the trained parameters, and `AnswerStats` of rows with answers."""
    axes, stats = crem.axes(model), {}
    gradient = _split(jax.tree.map(jnp.zeros_like, trained), axes)
    for name, here in rows.items():
        step = functools.partial(
            _chunk, trained, frozen, here, image_tokens.get(name), parts[name], model, loss, axes
        )
        gradient, stacked = jax.lax.scan(step, gradient, jnp.arange(parts[name]))
        if stacked is not None:
            stats[name] = join_parts(stacked)
    return gradient, stats


def _chunk(trained, frozen, rows, image_tokens, parts, model, loss, axes, gradient, j):
    """Adds the gradient of chunk j of a bucket; returns the sum and `AnswerStats` of the rows."""
    here = _rows(rows, parts, j)
    vision = (
        None
        if image_tokens is None
        else jax.lax.dynamic_index_in_dim(image_tokens, j, keepdims=False)
    )

    def share(trained) -> tuple[jax.Array, AnswerStats | None]:
        params = trees.merge(trained, frozen)
        memory = crem.compress(model, params, here["context"], vision)
        value, stats = jnp.float32(0), None
        if here["seed"] is not None:
            value += jnp.vdot(here["seed"], memory.chorus)
        if "target" in here:
            stats = joint_loss.answer_loss(
                params, memory, here["target"], here["z"], here["num_visible_chorus"], model, loss
            )
            each = stats.loss + loss.z_loss * stats.square
            value += jnp.vdot(here["weight"], each)
        return value, stats

    (_, stats), more = jax.value_and_grad(share, has_aux=True)(trained)
    return _split(jax.tree.map(jnp.add, gradient, more), axes), stats


def _rows(tree: Any, parts: int, j: jax.Array) -> Any:
    here = part(tree, parts, j)
    return jax.tree.map(lambda x: constrain(x, "batch", *[None] * (x.ndim - 1)), here)


def _parts(name: str, batch: Batch, loss: LossConfig) -> int:
    rows = len(batch.contexts[name].tokens)
    size = min(dict(loss.chunk_rows).get(name, rows), rows)
    if rows % size:
        raise CremError(
            f"loss.chunk_rows.{name} = {size} does not divide data.buckets.{name}.rows = {rows}"
        )
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
    if size % devices:
        raise CremError(
            f"loss.chunk_rows.{name} = {size} cannot be split over the {devices} devices that "
            "share the batch; expected a multiple"
        )
    return rows // size


def _split(gradient: crem.Params, axes: dict[str, tuple[str, ...]]) -> crem.Params:
    """Shards a gradient like its parameters, which the compiler does not infer inside a loop."""
    leaves = trees.flatten(gradient)
    return trees.unflatten(
        {path: constrain(x, *axes[path]) if path in axes else x for path, x in leaves.items()}
    )
