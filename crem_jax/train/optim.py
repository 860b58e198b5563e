"""The optimiser: AdamW, Adafactor or Muon with warm-up, decay, clipping and a decay mask."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import optax
from optax.contrib import MuonDimensionNumbers

from crem_jax import trees
from crem_jax.configs.schema.optim import OptimConfig
from crem_jax.model.lora import is_adapter

_DECAYED = re.compile(r".*(kernel|embedding|head|lora_[ab])")
"""Weight decay on kernels, embeddings and adapters, not on norms, biases or the temperature."""

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


def schedule(config: OptimConfig, steps: int, peak: float | None = None) -> optax.Schedule:
    """Learning rate over `steps`: linear warm-up to `peak` (default `lr`), then down to
    `peak * final` as `decay` says (cosine, linear).
    """
    peak = config.lr if peak is None else peak
    warmup = min(config.warmup, max(steps - 1, 0))
    if config.decay == "cosine":
        down = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), config.final)
    else:
        down = optax.linear_schedule(peak, peak * config.final, max(steps - warmup, 1))
    if not warmup:
        return down
    up = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([up, down], [warmup])


def decay_mask(params: Any) -> Any:
    """True where weight decay applies."""
    return trees.unflatten({p: bool(_DECAYED.fullmatch(p)) for p in trees.flatten(params)})


def learning_rates(
    rules: Sequence[tuple[str, float]], params: Any, adapted: bool = False
) -> dict[str, float]:
    """Path -> multiplier of the learning rate; 0 freezes the parameter.

    Args:
      rules: `optim.rates`, (pattern of whole paths, multiplier), the first match wins.
      adapted: the model has adapters: what no rule matches is frozen, but for them, the chorus and
        the loss's own parameters.

    Raises:
      TreeError: a pattern matches nothing.
    """
    named = trees.flatten(trees.match(rules, params, where="optim.rates", default=None))

    def default(path: str) -> float:
        return float(not adapted or is_adapter(path) or path.startswith("loss/"))

    return {path: default(path) if v is None else float(v) for path, v in named.items()}


def make_optimizer(
    config: OptimConfig, steps: int, rates: Mapping[str, float] | None = None
) -> optax.GradientTransformation:
    """Of the parameters that train: the frozen ones are never shown to it, and cost it nothing.

    Args:
      rates: multipliers of the learning rate by path, if any differ from 1.
    """
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    rate = schedule(config, steps)
    mu_dtype = config.mu_dtype or None

    def adamw(rate: optax.Schedule, **more: Any) -> optax.GradientTransformation:
        return optax.adamw(
            rate,
            config.b1,
            config.b2,
            config.eps,
            mu_dtype=mu_dtype,
            weight_decay=config.weight_decay,
            mask=decay_mask,
            **more,
        )

    if config.name == "adamw":
        rule = adamw(rate)
    elif config.name == "adafactor":
        # optax's own weight decay there is not multiplied by the learning rate.
        factored = optax.adafactor(
            multiply_by_parameter_scale=False,
            momentum=config.b1 or None,
            dtype_momentum=mu_dtype or "float32",
        )
        rule = optax.chain(
            factored,
            optax.scale(-1.0),
            optax.add_decayed_weights(config.weight_decay, decay_mask),
            optax.scale_by_learning_rate(rate),
        )
    else:
        # muon's own AdamW has no decay mask, so it only gets the matrices.
        matrices = optax.contrib.muon(
            rate,
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        )
        others = adamw(schedule(config, steps, config.adam_lr), nesterov=True)
        rule = optax.partition({"muon": matrices, "adamw": others}, _labels)
    if rates and any(value not in (0.0, 1.0) for value in rates.values()):
        return optax.chain(clip, rule, _scaled_by(rates))
    return optax.chain(clip, rule)


def _scaled_by(rates: Mapping[str, float]) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any = None) -> Any:
        leaves = trees.flatten(updates)
        return trees.unflatten({path: leaf * rates[path] for path, leaf in leaves.items()})

    return optax.stateless(scale)


def _matrices(params: Any) -> Any:
    paths = trees.flatten(params)
    return trees.unflatten({path: _matrix(path) for path in paths})


def _labels(params: Any) -> Any:
    paths = trees.flatten(params)
    return trees.unflatten({path: "muon" if _matrix(path) else "adamw" for path in paths})


def _matrix(path: str) -> MuonDimensionNumbers | None:
    return next((axes for pattern, axes in _MATRICES if re.fullmatch(pattern, path)), None)
