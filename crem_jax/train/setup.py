"""From a config to the parts of a run: model, tokenizer, stream, optimiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict
from transformers import AutoTokenizer

from crem_jax.config import ConfigError, ModelConfig
from crem_jax.convert.chorus import chorus_tokens
from crem_jax.data.batch_spec import make_batch_spec
from crem_jax.data.pipeline import Stream
from crem_jax.data.prompt import Prompter
from crem_jax.data.registry import make_sources
from crem_jax.train.joint import LossConfig
from crem_jax.train.optim import learning_rates, make_optimizer, schedule
from crem_jax.train.step import init_params

TOKENIZER_DIR = Path(__file__).parents[1] / "assets" / "tokenizer"
_SPECIAL = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": "<|im_end|>",
    "pad_token_id": "<|endoftext|>",
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a training step is made of: all of it static, none of it data.

    Attributes:
      rates: path -> multiplier of the learning rate, of every parameter.
      frozen: the paths whose multiplier is 0.
    """

    model: ModelConfig
    loss: LossConfig
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    rates: Mapping[str, float]
    frozen: frozenset[str]

    def step_arguments(self) -> dict[str, Any]:
        """The static arguments of `train_step`, but for the seed."""
        names = ("model", "loss", "optimizer", "learning_rate", "frozen")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Parts(Objective):
    """What a run is made of."""

    tokenizer: Any
    stream: Stream


def make_parts(config: ConfigDict) -> Parts:
    """Raises ConfigError or ValueError naming the key for a config that makes no sense."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER_DIR)
    model = scratch_model(config.model, tokenizer)
    stream = Stream(
        make_sources(config.data.sources),
        make_batch_spec(config.data),
        Prompter(
            model,
            tokenizer,
            hard_max=True,
            fast_jpeg=config.data.get("fast_jpeg", False),
            fast_resize=config.data.get("fast_resize", False),
        ),
        config.seed,
        jax.process_index(),
        jax.process_count(),
    )
    objective = make_objective(config, model)
    return Parts(**vars(objective), tokenizer=tokenizer, stream=stream)


def make_objective(config: ConfigDict, model: ModelConfig | None = None) -> Objective:
    """The step of a config, for its own model from scratch unless another is given.

    Nothing is allocated and no data is opened.
    """
    if model is None:
        model = scratch_model(config.model, AutoTokenizer.from_pretrained(TOKENIZER_DIR))
    loss = _loss(config, model)
    abstract = jax.eval_shape(lambda: init_params(model, loss, jax.random.key(0)))
    rules = config.optim.get("rates", ())
    rates = learning_rates(rules, nn.meta.unbox(abstract), model.lora is not None)
    frozen = frozenset(path for path, rate in rates.items() if not rate)
    if len(frozen) == len(rates):
        raise ConfigError("optim.rates freezes every parameter; nothing is left to train")
    return Objective(
        model=model,
        loss=loss,
        optimizer=make_optimizer(config.optim, config.steps, rates),
        learning_rate=schedule(config.optim, config.steps),
        rates=rates,
        frozen=frozen,
    )


def scratch_model(section: ConfigDict, tokenizer: Any) -> ModelConfig:
    """The `model` section with the tokenizer's special token ids filled in."""
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in _SPECIAL.items()}
    values = {**section.to_dict(), **ids}
    if section.get("num_chorus", 0):
        values["first_chorus_id"] = tokenizer.convert_tokens_to_ids(chorus_tokens(1)[0])
    return ModelConfig.from_dict(values)


def _loss(config: ConfigDict, model: ModelConfig) -> LossConfig:
    known = {field.name for field in dataclasses.fields(LossConfig)}
    unknown = sorted(set(config.loss) - known)
    if unknown:
        raise ConfigError(f"unknown key loss.{unknown[0]}; known keys: {', '.join(sorted(known))}")
    values = {"temperature": model.temperature, **config.loss}
    chunks = dict(values.get("chunk_rows") or {})
    for name, rows in chunks.items():
        if name not in config.data.buckets:
            names = ", ".join(sorted(config.data.buckets))
            raise ConfigError(f"loss.chunk_rows.{name}: no such bucket; data.buckets has {names}")
        if rows < 1:
            raise ConfigError(f"loss.chunk_rows.{name} = {rows} must be at least 1")
    for dim in values.get("dims", ()):
        if not 1 <= dim <= model.text.hidden_size:
            raise ConfigError(f"loss.dims: {dim} is not in 1..{model.text.hidden_size}")
    return LossConfig(**values | {"chunk_rows": tuple(sorted(chunks.items()))})
