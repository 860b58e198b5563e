"""The optimiser: AdamW with warm-up and cosine or linear decay, clipping and a decay mask."""

from __future__ import annotations

from typing import Any

import jax
import optax
from ml_collections import ConfigDict


def schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate over `steps`: linear warm-up to `lr`, then `decay` to `lr * final`."""
    warmup = min(config.warmup, max(steps - 1, 0))
    if config.decay == "cosine":
        down = optax.cosine_decay_schedule(config.lr, max(steps - warmup, 1), config.final)
    elif config.decay == "linear":
        down = optax.linear_schedule(config.lr, config.lr * config.final, max(steps - warmup, 1))
    else:
        raise ValueError(f"optim.decay {config.decay!r} is not one of cosine, linear")
    if not warmup:
        return down
    up = optax.linear_schedule(0.0, config.lr, warmup)
    return optax.join_schedules([up, down], [warmup])


def decay_mask(params: Any) -> Any:
    """Weight decay on kernels and embeddings, not on norms, biases or the temperature."""
    decayed = ("kernel", "embedding", "head", "patch_kernel")
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in decayed, params)


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Config keys: lr, warmup, decay, final, b1, b2, eps, weight_decay, clip."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(schedule(config, steps)),
    )
