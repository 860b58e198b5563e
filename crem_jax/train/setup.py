"""From a config to the parts of a run: model, tokenizer, stream, optimiser."""

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
    """What a training step is made of: all of it static, none of it data.

    Attributes:
      rates: path -> multiplier of the learning rate, of every parameter.
      frozen: the paths whose multiplier is 0. frozen_dtype: the type they are stored in.
    """

    model: ModelConfig
    loss: LossConfig
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    rates: Mapping[str, float]
    frozen: frozenset[str]
    frozen_dtype: str

    def step_arguments(self) -> dict[str, Any]:
        """The static arguments of `train_step`, but for the seed."""
        names = ("model", "loss", "optimizer", "learning_rate", "frozen")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Parts(Objective):
    """What a run is made of. weights: see `start.Start`."""

    tokenizer: Any
    stream: Stream
    weights: Callable[[], crem.Params] | None


def make_parts(config: TrainConfig | ConfigDict, run: Path | None = None) -> Parts:
    """The parts of a config.

    Args:
      run: directory of a run that may have begun; its model is then the one there.

    Raises:
      ConfigError: the config makes no sense; the message names the key.
      OSError: files it names are not there.
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
    """The step of a config, for its own model from scratch unless another is given.

    Nothing is allocated and no data is opened.
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
    seen = [path for path in rates if path.startswith("vision/") and path not in frozen]
    if loss.cache_vision and seen:
        raise ConfigError(f"loss.cache_vision needs a frozen vision tower, but {seen[0]} trains")
    return Objective(
        model=model,
        loss=loss,
        optimizer=make_optimizer(config.optim, config.steps, rates),
        learning_rate=schedule(config.optim, config.steps),
        rates=rates,
        frozen=frozen,
        frozen_dtype=config.optim.frozen_dtype,
    )
