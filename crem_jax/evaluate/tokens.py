"""Teacher-forced token accuracy of given answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from crem_jax.config import ModelConfig
from crem_jax.data.inputs.padding import pad_targets
from crem_jax.data.records import Picture
from crem_jax.inference.batches import context_batches, step_up
from crem_jax.inference.model import Model
from crem_jax.model import crem
from crem_jax.train.objective import cross_entropy
from crem_jax.types import Context, Target


def token_accuracy(
    model: Model,
    pictures: Sequence[Picture],
    turns: Sequence[tuple[str, str]],
    compressed: bool = False,
    k: int | None = None,
    sinks: int = 0,
) -> float:
    """Share of answer tokens that the model ranks first, given the true tokens before them.

    Args:
      pictures: one per sample. turns: (question, answer) about each.
      compressed, k, sinks: as for `Model.generate`.
    """
    contexts = [model.runner.prepare(picture) for picture in pictures]
    rows = [model.runner.prompter.target([turn]) for turn in turns]
    right = total = 0
    for chosen, context in context_batches(contexts, model.config):
        members = [rows[i] for i in chosen]
        width = step_up(max(len(row.tokens) for row in members))
        padding = [None] * (len(context.tokens) - len(members))
        target = pad_targets([*members, *padding], model.config, width, width)
        num_visible_chorus = (k or model.config.num_chorus) if compressed else None
        hits = _hits(model.config, model.params, context, target, num_visible_chorus, sinks)
        right, total = right + int(hits), total + int(np.sum(target.answer >= 0))
    return right / max(total, 1)


@functools.partial(jax.jit, static_argnames=("config", "num_visible_chorus", "sinks"))
def _hits(
    config: ModelConfig,
    params: crem.Params,
    context: Context,
    target: Target,
    num_visible_chorus: int | None,
    sinks: int,
) -> jax.Array:
    memory = crem.compress(config, params, context)
    if num_visible_chorus is not None:
        memory = memory.chorus_only(num_visible_chorus, sinks)
    seen = jnp.zeros(target.tokens.shape[:1], bool)
    hidden, _ = crem.decode(config, params, memory, target, seen)
    hidden = jnp.take_along_axis(hidden, target.answer_slot[..., None], axis=1)
    return jnp.sum(cross_entropy.plain(crem.logits(config, params, hidden), target.answer).right)
