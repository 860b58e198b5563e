"""The starting point of a run: random or existing weights, with their model and tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from crem_jax.checkpoints import model_directory
from crem_jax.checkpoints.open import open_parts
from crem_jax.config import ConfigError, ModelConfig, TextConfig, VisionConfig
from crem_jax.configs.fields import REQUIRED, default_of, key_of
from crem_jax.configs.schema import TrainConfig
from crem_jax.configs.schema.model import ModelSection
from crem_jax.convert.chorus import add_chorus, chorus_tokens
from crem_jax.convert.huggingface import read_tokenizer
from crem_jax.model import crem

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
_OF_THE_DATA = ("min_pixels", "max_pixels")


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run starts. weights: opens the initial parameters as LazyArrays; None: random."""

    model: ModelConfig
    tokenizer: Any
    weights: Callable[[], crem.Params] | None = None


def starting_point(config: TrainConfig, run: Path | None = None) -> Start:
    """The model of a config: a new one of its `model` section, or the one in directory `init_from`.

    With `init_from`, that model fixes the shape; the section then only says how it is run (dtype,
    remat, unroll, attention, temperature, system prompt, the pixels of a picture, adapters) and how
    many chorus tokens to add to a plain Qwen2-VL. A run that has started is its own starting point:
    its model and tokenizer are read from `run`, and `init_from` is opened only if it has no
    checkpoint yet.

    `model.chorus_token` names an existing token of the tokenizer, such as <|im_end|>, which takes
    the place of the chorus (the EOS baseline of the paper's Table 4).

    Raises:
      FileNotFoundError, ValueError: there is no model at `init_from`.
      ConfigError: the model contradicts the section.
    """
    source = config.init_from
    if not source:
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER_DIR)
        return Start(scratch_model(config.model, tokenizer), tokenizer)

    def opened() -> tuple[ModelConfig, crem.Params, Any]:
        if not Path(source).is_dir():
            raise FileNotFoundError(
                f"config.init_from {source!r} is no directory; expected one that `crem import` "
                "made or a Hugging Face one, or '' for random weights"
            )
        parts, count = open_parts(source), config.model.num_chorus or 16
        if token := config.model.chorus_token:
            first = _chorus_id(token, count, parts[2])
            return parts[0].replace(num_chorus=1, first_chorus_id=first), *parts[1:]
        return add_chorus(*parts, count)

    if run is not None and (run / model_directory.CONFIG_FILE).exists():
        model, tokenizer = model_directory.load_config(run), read_tokenizer(run / "tokenizer")
    else:
        model, _, tokenizer = opened()
    return Start(_adapted(model, config.model, source), tokenizer, lambda: opened()[1])


def scratch_model(section: ModelSection, tokenizer: Any) -> ModelConfig:
    """The `model` section with the tokenizer's special token ids filled in.

    Raises:
      ConfigError: it makes no model, or leaves out what a new one needs.
    """
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in _SPECIAL.items()}
    values = {**section.running(), **ids, "lora": section.lora}
    if section.num_chorus:
        token = section.chorus_token
        values["num_chorus"] = section.num_chorus
        values["first_chorus_id"] = (
            _chorus_id(token, section.num_chorus, tokenizer)
            if token
            else tokenizer.convert_tokens_to_ids(chorus_tokens(1)[0])
        )
    return ModelConfig(
        text=_whole(TextConfig, section.text, "config.model.text"),
        vision=_whole(VisionConfig, section.vision, "config.model.vision"),
        **values,
    )


def _whole(cls: Any, stated: Mapping[str, Any], where: str) -> Any:
    """The section as the dataclass it is of; what has no default must be stated."""
    for each in dataclasses.fields(cls):
        if default_of(each) is REQUIRED and each.name not in stated:
            raise ConfigError(
                f"{where}.{each.name} is not set; a model from scratch (config.init_from = '') "
                f"needs it: {key_of(each).doc}"
            )
    return cls(**stated)


def _chorus_id(token: str, num_chorus: int, tokenizer: Any) -> int:
    """Row of a token that exists already and shall do the chorus' work, alone."""
    row = tokenizer.get_vocab().get(token)
    if row is None:
        raise ConfigError(f"model.chorus_token {token!r} is no token of the tokenizer")
    if num_chorus != 1:
        raise ConfigError(f"model.chorus_token needs model.num_chorus = 1, not {num_chorus}")
    return row


def _adapted(model: ModelConfig, section: ModelSection, source: str) -> ModelConfig:
    """The model that was found, run as the section says."""
    wrong = []
    for part, stated in (("text", section.text), ("vision", section.vision)):
        for key, value in stated.items():
            found = getattr(getattr(model, part), key)
            if key not in _OF_THE_DATA and found != value:
                wrong.append(f"{part}.{key} is {found}, config.model says {value}")
    if section.num_chorus not in (None, model.num_chorus):
        wrong.append(f"num_chorus is {model.num_chorus}, config.model says {section.num_chorus}")
    if wrong:
        raise ConfigError(f"config.init_from {source!r}: {'; '.join(wrong)}")
    pixels = {key: section.vision[key] for key in _OF_THE_DATA if key in section.vision}
    changes = {**section.running(), "vision": dataclasses.replace(model.vision, **pixels)}
    if section.lora is not None:
        changes["lora"] = section.lora
    return model.replace(**changes)
