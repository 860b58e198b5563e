"""`model`: the shape of a model trained from scratch, or changes to the one in `init_from`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from crem_jax.config import LoRAConfig, ModelConfig, TextConfig, VisionConfig
from crem_jax.configs.fields import field, partial, unset

_OF_THE_RUN = ("dtype", "remat", "unroll", "attention", "temperature", "system_prompt")


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """The model of a recipe; keys left unset are taken from `init_from`.

    Attributes:
      text, vision: the keys of TextConfig and VisionConfig that are set.
    """

    text: Mapping[str, Any] = partial(TextConfig, "The decoder's shape.")
    vision: Mapping[str, Any] = partial(
        VisionConfig, "The vision tower's shape, and the sizes of its images."
    )
    num_chorus: int | None = unset(ModelConfig, "num_chorus")
    chorus_token: str = field(
        "", "An existing token to use as the only chorus token, such as <|im_end|>."
    )
    temperature: float | None = unset(ModelConfig, "temperature")
    system_prompt: str | None = unset(ModelConfig, "system_prompt")
    dtype: str | None = unset(ModelConfig, "dtype")
    remat: str | None = unset(ModelConfig, "remat")
    unroll: int | None = unset(ModelConfig, "unroll")
    attention: str | None = unset(ModelConfig, "attention")
    lora: LoRAConfig | None = field(
        None, "LoRA adapters; all other parameters except the chorus are then frozen."
    )

    def running(self) -> dict[str, Any]:
        """The keys set here that say how a model is run, not what its parameters are."""
        values = {key: getattr(self, key) for key in _OF_THE_RUN}
        return {key: value for key, value in values.items() if value is not None}
