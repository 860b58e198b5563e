"""The model's configuration: frozen dataclasses (HF's config.json: `convert.config_json`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from crem_jax.errors import CremError

STYLES = ("qwen2_vl", "qwen2_5_vl")
"""Backbones that are implemented, by Hugging Face's model type."""


DTYPES = ("float32", "bfloat16")
WEIGHTS = ("int8",)
"""Types that the decoder's weights can be served in beside the DTYPES."""
"""Types of parameters, weights and arithmetic."""


class ConfigError(CremError):
    """A configuration names something this library does not implement, or contradicts itself."""


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Qwen2 decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mrope_section: tuple[int, int, int]
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    tie_embeddings: bool = True
    max_positions: int = 32_768

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def __post_init__(self):
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads "
                f"{self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_heads} is no multiple of num_key_value_heads "
                f"{self.num_kv_heads}"
            )
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise ConfigError(
                f"mrope_section {list(self.mrope_section)} must sum to half the head dimension "
                f"{self.head_dim}"
            )


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Vision tower of a Qwen-VL model, and the picture sizes it is fed.

    Attributes:
      style: the tower's generation, which is also Hugging Face's model type. "qwen2_vl" has layer
        norms and a quick-GELU MLP, "qwen2_5_vl" RMS norms and a SwiGLU with biases.
      mlp_ratio: width of the MLP over embed_dim; whole in "qwen2_vl".
      window_size: side in pixels of the windows within which patches attend, in "qwen2_5_vl".
      full_attention_layers: those that attend to whole pictures all the same; numbers from
        `depth` on name no layer, as in transformers.
      tokens_per_second: of videos, which this library does not read; kept for export.
    """

    depth: int
    embed_dim: int
    num_heads: int
    mlp_ratio: float = 4
    style: str = "qwen2_vl"
    window_size: int = 0
    full_attention_layers: tuple[int, ...] = ()
    tokens_per_second: int = 4
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    in_channels: int = 3
    rope_theta: float = 10_000.0
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        return round(self.embed_dim * self.mlp_ratio)

    @property
    def window(self) -> int:
        """Side of a window in patches, whole merge groups."""
        return self.window_size // (self.patch_size * self.merge_size) * self.merge_size

    @property
    def patch_values(self) -> int:
        """Numbers in one patch of a still picture."""
        return self.in_channels * self.patch_size**2

    def __post_init__(self):
        if self.embed_dim % self.num_heads or self.head_dim % 4:
            raise ConfigError(
                f"vision embed_dim {self.embed_dim} over num_heads {self.num_heads} must give a "
                "head dimension that is a multiple of 4"
            )
        if self.style not in STYLES:
            raise ConfigError(f"vision style {self.style!r} is not one of {', '.join(STYLES)}")
        if self.style == "qwen2_vl" and self.mlp_ratio != int(self.mlp_ratio):
            raise ConfigError(f"vision mlp_ratio {self.mlp_ratio} must be a whole number")
        if self.style == "qwen2_vl" and self.window_size:
            raise ConfigError(f"vision window_size {self.window_size} needs style 'qwen2_5_vl'")
        if self.style == "qwen2_5_vl" and not self.window:
            raise ConfigError(
                f"vision window_size {self.window_size} must be at least a merge group of "
                f"{self.patch_size * self.merge_size} pixels"
            )


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (arXiv 2106.09685): see `model.lora`.

    Attributes:
      rank: of the adapters. alpha: their sum is scaled by alpha / rank.
      targets: patterns of whole parameter paths; every kernel that one matches is adapted.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self):
        if self.rank < 1:
            raise ConfigError(f"model.lora.rank {self.rank} must be at least 1")
        if not self.targets:
            raise ConfigError("model.lora.targets is empty; expected patterns of parameter paths")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A CREM model: Qwen2-VL or Qwen2.5-VL with `num_chorus` chorus tokens in vocabulary rows.

    `num_chorus` 0 is the plain backbone: it tells natively and cannot find.
    """

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    num_chorus: int = 0
    first_chorus_id: int = -1
    temperature: float = 0.02
    system_prompt: str = "You are a helpful assistant."
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    attention: str = "auto"
    lora: LoRAConfig | None = None

    def __post_init__(self):
        if self.num_chorus:
            last = self.first_chorus_id + self.num_chorus
            if self.first_chorus_id < 0 or last > self.text.vocab_size:
                raise ConfigError(
                    f"chorus rows {self.first_chorus_id}..{last - 1} do not fit in vocab_size "
                    f"{self.text.vocab_size}"
                )
        for field in dataclasses.fields(self):
            row = getattr(self, field.name)
            if field.name.endswith("_token_id") and not 0 <= row < self.text.vocab_size:
                raise ConfigError(
                    f"{field.name} {row} is no row of the {self.text.vocab_size}-row vocabulary"
                )
        if self.dtype not in DTYPES:
            raise ConfigError(f"model.dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.attention not in ("auto", "xla", "splash", "cudnn"):
            raise ConfigError(
                f"model.attention {self.attention!r} is not one of auto, xla, splash, cudnn"
            )
        if self.remat not in ("none", "full", "dots"):
            raise ConfigError(f"model.remat {self.remat!r} is not one of none, full, dots")

    @property
    def chorus_ids(self) -> tuple[int, ...]:
        return tuple(range(self.first_chorus_id, self.first_chorus_id + self.num_chorus))

    def replace(self, **changes) -> ModelConfig:
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`; unknown keys raise ConfigError."""
        values = dict(values)
        values["text"] = build(TextConfig, values["text"], "model.text")
        values["vision"] = build(VisionConfig, values["vision"], "model.vision")
        if values.get("lora"):
            values["lora"] = build(LoRAConfig, values["lora"], "model.lora")
        return build(ModelConfig, values, "model")


def build(cls, values: Mapping[str, Any], where: str):
    """A dataclass of its fields. Raises ConfigError for others, as keys of the section `where`."""
    names = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - names)
    if unknown:
        known = ", ".join(sorted(names))
        raise ConfigError(f"unknown key {where}.{unknown[0]}; known keys: {known}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return cls(**values)
