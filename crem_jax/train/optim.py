"""The optimiser: AdamW or Muon with warm-up, decay, clipping and a decay mask."""

from __future__ import annotations

from typing import Any

import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers

from crem_jax import trees

_DECAYED = ((r".*(kernel|embedding|head)", True),)
"""Weight decay on kernels and embeddings, not on norms, biases or the temperature."""

_MATRICES = (
    (r"backbone/layers/[qkv]/kernel", MuonDimensionNumbers(1, (2, 3))),
    (r"backbone/layers/o/kernel", MuonDimensionNumbers((1, 2), 3)),
    (r"backbone/layers/mlp/(gate|up|down)/kernel", MuonDimensionNumbers(1, 2)),
    (r"vision/blocks/qkv/kernel", MuonDimensionNumbers(1, (2, 3, 4))),
    (r"vision/blocks/proj/kernel", MuonDimensionNumbers((1, 2), 3)),
    (r"vision/blocks/(fc[12]|mlp/(gate|up|down))/kernel", MuonDimensionNumbers(1, 2)),
    (r"vision/merge_fc[12]/kernel", MuonDimensionNumbers(0, 1)),
)
"""Which axes of a parameter Muon sees as a matrix's rows and columns; the others are a stack."""


def schedule(config: ConfigDict, steps: int, peak: float | None = None) -> optax.Schedule:
    """Learning rate over `steps`: linear warm-up to `peak` (default `lr`), then down to
    `peak * final` as `decay` says (cosine, linear).
    """
    peak = config.lr if peak is None else peak
    warmup = min(config.warmup, max(steps - 1, 0))
    if config.decay == "cosine":
        down = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), config.final)
    elif config.decay == "linear":
        down = optax.linear_schedule(peak, peak * config.final, max(steps - warmup, 1))
    else:
        raise ValueError(f"optim.decay {config.decay!r} is not one of cosine, linear")
    if not warmup:
        return down
    up = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([up, down], [warmup])


def decay_mask(params: Any) -> Any:
    """True where weight decay applies."""
    return trees.match(_DECAYED, params, where="decay_mask", default=False)


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Config keys: name (adamw, muon), lr, warmup, decay, final, b1, b2, eps, weight_decay, clip.

    Muon orthogonalises the updates of the layers' matrices, which it scales to the size of AdamW's,
    and leaves embeddings, norms and biases to AdamW at the rate `adam_lr`.
    """
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    rate = schedule(config, steps)
    if config.name == "adamw":
        rule = optax.adamw(
            rate,
            config.b1,
            config.b2,
            config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        )
    elif config.name == "muon":
        # muon's own AdamW has no decay mask, so it only gets the matrices.
        matrices = optax.contrib.muon(
            rate,
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        )
        others = optax.adamw(
            schedule(config, steps, config.adam_lr),
            config.b1,
            config.b2,
            config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
            nesterov=True,
        )
        rule = optax.partition({"muon": matrices, "adamw": others}, _labels)
    else:
        raise ValueError(f"optim.name {config.name!r} is not one of adamw, muon")
    return optax.chain(clip, rule)


def _matrices(params: Any) -> Any:
    return trees.match(_MATRICES, params, where="muon", default=None)


def _labels(params: Any) -> Any:
    rules = [(pattern, "muon") for pattern, _ in _MATRICES]
    return trees.match(rules, params, where="muon", default="adamw")
