"""`model`: the model of a run from scratch, or how the one in `init_from` is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from crem_jax.config import LoRAConfig, ModelConfig, TextConfig, VisionConfig
from crem_jax.configs.fields import field, partial, unset

_OF_THE_RUN = ("dtype", "remat", "unroll", "attention", "temperature", "system_prompt")


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """What a recipe says of its model; what it leaves unset is as `init_from` has it.

    Attributes:
      text, vision: the keys of TextConfig and VisionConfig that are set.
    """

    text: Mapping[str, Any] = partial(TextConfig, "The decoder's shape.")
    vision: Mapping[str, Any] = partial(VisionConfig, "The vision tower's shape, and pictures.")
    num_chorus: int | None = unset(ModelConfig, "num_chorus")
    chorus_token: str = field(
        "", "A token of the tokenizer that is read in place of a chorus, such as <|im_end|>."
    )
    temperature: float | None = unset(ModelConfig, "temperature")
    system_prompt: str | None = unset(ModelConfig, "system_prompt")
    dtype: str | None = unset(ModelConfig, "dtype")
    remat: str | None = unset(ModelConfig, "remat")
    unroll: int | None = unset(ModelConfig, "unroll")
    attention: str | None = unset(ModelConfig, "attention")
    lora: LoRAConfig | None = field(
        None, "Adapters; what they do not adapt is then frozen, but for the chorus."
    )

    def running(self) -> dict[str, Any]:
        """The keys that are set of those that say how a model is run, not what it is."""
        values = {key: getattr(self, key) for key in _OF_THE_RUN}
        return {key: value for key, value in values.items() if value is not None}
