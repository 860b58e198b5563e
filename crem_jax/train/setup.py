"""Builds the parts of a run from its config: model, tokenizer, stream and optimiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict
from transformers import AutoTokenizer

from crem_jax.config import ConfigError, ModelConfig
from crem_jax.configs.schema import TrainConfig
from crem_jax.configs.schema.loss import LossConfig
from crem_jax.data.batches.stream import Stream
from crem_jax.data.inputs.prompt import Prompter
from crem_jax.data.sources.registry import make_sources
from crem_jax.model import crem
from crem_jax.train.objective.step import init_params
from crem_jax.train.optim import learning_rates, make_optimizer, schedule
from crem_jax.train.start import TOKENIZER_DIR, scratch_model, starting_point


@dataclasses.dataclass(frozen=True)
class Objective:
    """The static parts of a training step.

    Attributes:
      rates: path of every parameter -> multiplier of its learning rate.
      frozen: paths of parameters whose multiplier is 0. frozen_dtype: data type they are stored in.
    """

    model: ModelConfig
    loss: LossConfig
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    rates: Mapping[str, float]
    frozen: frozenset[str]
    frozen_dtype: str

    def step_arguments(self) -> dict[str, Any]:
        """The keyword arguments of `train_step`, all static."""
        names = ("model", "loss", "optimizer", "learning_rate", "frozen")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Parts(Objective):
    """All parts of a run. weights: see `start.Start`."""

    tokenizer: Any
    stream: Stream
    weights: Callable[[], crem.Params] | None


def make_parts(config: TrainConfig | ConfigDict, run: Path | None = None) -> Parts:
    """The parts of a config.

    Args:
      run: directory of a run that may have started; its model then takes precedence.

    Raises:
      ConfigError: the config is invalid; the message names the key.
      OSError: a file it names is missing.
    """
    config = TrainConfig.of(config)
    start = starting_point(config, run)
    model, tokenizer = start.model, start.tokenizer
    stream = Stream(
        make_sources(config.data.sources),
        config.data.spec,
        Prompter(
            model,
            tokenizer,
            hard_max=True,
            fast_jpeg=config.data.fast_jpeg,
            fast_resize=config.data.fast_resize,
        ),
        config.seed,
        jax.process_index(),
        jax.process_count(),
    )
    objective = make_objective(config, model)
    return Parts(**vars(objective), tokenizer=tokenizer, stream=stream, weights=start.weights)


def make_objective(config: TrainConfig | ConfigDict, model: ModelConfig | None = None) -> Objective:
    """The objective of a config, for `model` or else the config's own model from scratch.

    Allocates no arrays and opens no data.
    """
    config = TrainConfig.of(config)
    if model is None:
        model = scratch_model(config.model, AutoTokenizer.from_pretrained(TOKENIZER_DIR))
    loss = config.loss.of_step(model, config.data.buckets)
    abstract = jax.eval_shape(lambda: init_params(model, loss, jax.random.key(0)))
    rates = learning_rates(config.optim.rates, nn.meta.unbox(abstract), model.lora is not None)
    frozen = frozenset(path for path, rate in rates.items() if not rate)
    if len(frozen) == len(rates):
        raise ConfigError("optim.rates freezes every parameter; nothing is left to train")
    trained = [path for path in rates if path.startswith("vision/") and path not in frozen]
    if loss.cache_vision and trained:
        raise ConfigError(f"loss.cache_vision needs a frozen vision tower, but {trained[0]} trains")
    return Objective(
        model=model,
        loss=loss,
        optimizer=make_optimizer(config.optim, config.steps, rates),
        learning_rate=schedule(config.optim, config.steps),
        rates=rates,
        frozen=frozen,
        frozen_dtype=config.optim.frozen_dtype,
    )
