"""Where a run starts: weights there are, or none; the tokenizer and the model come with them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from transformers import AutoTokenizer

from crem_jax.checkpoints import model_directory
from crem_jax.checkpoints.open import open_parts
from crem_jax.config import ConfigError, LoRAConfig, ModelConfig, build
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
_OF_THE_RUN = ("dtype", "remat", "unroll", "attention", "temperature", "system_prompt")
_OF_THE_DATA = ("min_pixels", "max_pixels")
_KEYS = (*_OF_THE_RUN, "text", "vision", "num_chorus", "chorus_token", "lora")
"""Of the `model` section beside an `init_from`."""


@dataclasses.dataclass(frozen=True)
class Start:
    """weights: opens the parameters to start from, as LazyArrays; None starts from random ones."""

    model: ModelConfig
    tokenizer: Any
    weights: Callable[[], crem.Params] | None = None


def starting_point(config: ConfigDict, run: Path | None = None) -> Start:
    """The model of a config: new by its `model` section, or the one in the directory `init_from`.

    What `init_from` holds decides the shape; the section then only says how it is run (dtype,
    remat, unroll, attention, temperature, system prompt, the pixels of a picture, adapters) and how
    many chorus tokens a plain Qwen2-VL is given. A run that has begun is its own starting point:
    its model and tokenizer are read from `run`, and `init_from` is opened only if it has no
    checkpoint yet.

    `model.chorus_token` names a token that the tokenizer has already, such as <|im_end|>: it is
    read in place of a chorus (the EOS baseline of the paper's Table 4).

    Raises:
      FileNotFoundError, ValueError: there is no model.
      ConfigError: it is not what the section says, or the section has other keys.
    """
    source = config.get("init_from")
    if not source:
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER_DIR)
        return Start(scratch_model(config.model, tokenizer), tokenizer)
    for key in config.model:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(_KEYS)}"
            raise ConfigError(f"config.model.{key} says nothing beside config.init_from; {hint}")

    def opened() -> tuple[ModelConfig, crem.Params, Any]:
        if not Path(source).is_dir():
            raise FileNotFoundError(
                f"config.init_from {source!r} is no directory; expected one that `crem import` "
                "made or a Hugging Face one, or '' for random weights"
            )
        parts, count = open_parts(source), config.model.get("num_chorus", 0) or 16
        if token := config.model.get("chorus_token", ""):
            first = _chorus_id(token, count, parts[2])
            return parts[0].replace(num_chorus=1, first_chorus_id=first), *parts[1:]
        return add_chorus(*parts, count)

    if run is not None and (run / model_directory.CONFIG_FILE).exists():
        model, tokenizer = model_directory.load_config(run), read_tokenizer(run / "tokenizer")
    else:
        model, _, tokenizer = opened()
    return Start(_adapted(model, config.model, source), tokenizer, lambda: opened()[1])


def scratch_model(section: ConfigDict, tokenizer: Any) -> ModelConfig:
    """The `model` section with the tokenizer's special token ids filled in."""
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in _SPECIAL.items()}
    values = {**section.to_dict(), **ids}
    token = values.pop("chorus_token", "")
    if section.get("num_chorus", 0):
        values["first_chorus_id"] = (
            _chorus_id(token, section.num_chorus, tokenizer)
            if token
            else tokenizer.convert_tokens_to_ids(chorus_tokens(1)[0])
        )
    return ModelConfig.from_dict(values)


def _chorus_id(token: str, num_chorus: int, tokenizer: Any) -> int:
    """Row of a token that exists already and shall do the chorus' work, alone."""
    row = tokenizer.get_vocab().get(token)
    if row is None:
        raise ConfigError(f"model.chorus_token {token!r} is no token of the tokenizer")
    if num_chorus != 1:
        raise ConfigError(f"model.chorus_token needs model.num_chorus = 1, not {num_chorus}")
    return row


def _adapted(model: ModelConfig, section: ConfigDict, source: str) -> ModelConfig:
    """The model that was found, run as the section says."""
    values = section.to_dict()
    wrong = []
    for part, stated in (("text", values.get("text", {})), ("vision", values.get("vision", {}))):
        found = dataclasses.asdict(getattr(model, part))
        for key, value in stated.items():
            value = tuple(value) if isinstance(value, list) else value
            if key not in _OF_THE_DATA and found.get(key) != value:
                wrong.append(f"{part}.{key} is {found.get(key)}, config.model says {value}")
    if values.get("num_chorus") not in (None, model.num_chorus):
        wrong.append(f"num_chorus is {model.num_chorus}, config.model says {values['num_chorus']}")
    if wrong:
        raise ConfigError(f"config.init_from {source!r}: {'; '.join(wrong)}")
    pixels = {key: values["vision"][key] for key in _OF_THE_DATA if key in values.get("vision", {})}
    changes = {key: values[key] for key in _OF_THE_RUN if key in values}
    changes["vision"] = dataclasses.replace(model.vision, **pixels)
    if values.get("lora"):
        changes["lora"] = build(LoRAConfig, values["lora"], "model.lora")
    return model.replace(**changes)
