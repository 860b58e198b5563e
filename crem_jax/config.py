"""The model's configuration, as frozen dataclasses; `convert.config_json` maps Hugging Face's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from crem_jax.configs.fields import ConfigError as ConfigError
from crem_jax.configs.fields import check, field, refuse_unknown

STYLES = ("qwen2_vl", "qwen2_5_vl")
"""The implemented backbones, by their Hugging Face model type."""

DTYPES = ("float32", "bfloat16")
"""Types of parameters, weights and arithmetic."""

WEIGHTS = ("int8",)
"""Further types in which the decoder's weights can be held for serving."""

ATTENTIONS = ("auto", "xla", "splash", "cudnn")
REMAT = ("none", "full", "dots")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The Qwen2 decoder."""

    vocab_size: int = field(doc="Rows of the embedding matrix, chorus tokens included.")
    hidden_size: int = field(doc="D: width of the residual stream and of embeddings.")
    intermediate_size: int = field(doc="Hidden width of the MLP.")
    num_layers: int = field(doc="Number of decoder layers.")
    num_heads: int = field(doc="Number of query heads; divides hidden_size.")
    num_kv_heads: int = field(doc="Number of key-value heads; divides num_heads.")
    mrope_section: tuple[int, int, int] = field(
        doc="Rotary frequencies of time, height and width; they sum to half the head dimension."
    )
    rms_norm_eps: float = field(1e-6, "Epsilon of the RMS norms.")
    rope_theta: float = field(1_000_000.0, "Base of the rotary position embedding.")
    tie_embeddings: bool = field(True, "Share the output head's weights with the embedding.")
    max_positions: int = field(32_768, "Maximum sequence length.")

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
    """The vision tower of a Qwen-VL model, and the sizes that images are resized to.

    `style` is the tower's generation, which is also Hugging Face's model type: "qwen2_vl" has layer
    norms and a quick-GELU MLP, "qwen2_5_vl" RMS norms and a SwiGLU with biases.
    """

    depth: int = field(doc="Number of transformer blocks.")
    embed_dim: int = field(doc="Width of the residual stream.")
    num_heads: int = field(doc="Number of heads; embed_dim / num_heads is a multiple of 4.")
    mlp_ratio: float = field(4, 'MLP width divided by embed_dim; a whole number in "qwen2_vl".')
    style: str = field("qwen2_vl", "Generation of the vision tower.", choices=STYLES)
    window_size: int = field(
        0, 'Side in pixels of the attention windows of "qwen2_5_vl"; 0 in "qwen2_vl".'
    )
    full_attention_layers: tuple[int, ...] = field(
        (), "Indices of the layers with full attention; indices from `depth` on are ignored."
    )
    tokens_per_second: int = field(4, "Temporal resolution of videos; unused, kept for export.")
    patch_size: int = field(14, "Side of an image patch in pixels.")
    merge_size: int = field(2, "Side in patches of the square merged into one vision token.")
    temporal_patch_size: int = field(2, "Frames in a patch; an image is repeated.")
    in_channels: int = field(3, "Colour channels of an image.")
    rope_theta: float = field(10_000.0, "Base of the rotary position embedding.")
    min_pixels: int = field(56 * 56, "Minimum number of pixels; smaller images are enlarged.")
    max_pixels: int = field(28 * 28 * 1280, "Maximum number of pixels; larger images are shrunk.")
    image_mean: tuple[float, ...] = field(
        (0.48145466, 0.4578275, 0.40821073), "Mean of each channel, subtracted from values in 0..1."
    )
    image_std: tuple[float, ...] = field(
        (0.26862954, 0.26130258, 0.27577711),
        "Standard deviation of each channel, which then divides them.",
    )

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        return round(self.embed_dim * self.mlp_ratio)

    @property
    def window(self) -> int:
        """Side of a window in patches, a multiple of `merge_size`."""
        return self.window_size // (self.patch_size * self.merge_size) * self.merge_size

    @property
    def patch_values(self) -> int:
        """Values in one patch of a still image: channels * patch_size²."""
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
    """Low-rank adapters (arXiv 2106.09685), as `crem_jax.model.lora` has them."""

    rank: int = field(16, "Rank of the adapters.", low=1)
    alpha: float = field(64.0, "Scale of the adapters: their output is multiplied by alpha / rank.")
    targets: tuple[str, ...] = field(
        ("backbone/layers/(q|k|v|o|mlp/(gate|up|down))/kernel",),
        "Patterns of whole parameter paths; every kernel that matches one is adapted.",
    )

    def __post_init__(self):
        check(self, "model.lora")
        if not self.targets:
            raise ConfigError("model.lora.targets is empty; expected patterns of parameter paths")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A CREM model: Qwen2-VL or Qwen2.5-VL with `num_chorus` chorus tokens in vocabulary rows.

    With `num_chorus` 0 it is a plain backbone, which answers natively and makes no embeddings.
    """

    text: TextConfig = field(doc="The decoder's shape.")
    vision: VisionConfig = field(doc="The vision tower's shape, and the sizes of its pictures.")
    image_token_id: int = field(doc="Token that stands for one vision token of an image.")
    video_token_id: int = field(doc="Token of a video; unused, kept for export.")
    vision_start_token_id: int = field(doc="Token before an image.")
    vision_end_token_id: int = field(doc="Token after an image.")
    bos_token_id: int = field(doc="Token that begins a text.")
    eos_token_id: int = field(doc="Token that ends a turn.")
    pad_token_id: int = field(doc="Token that fills unused slots.")
    num_chorus: int = field(0, "K: number of chorus tokens; 0 is the plain backbone.", low=0)
    first_chorus_id: int = field(-1, "Token id of the first chorus token.")
    temperature: float = field(0.02, "Temperature of InfoNCE.", above=0)
    system_prompt: str = field(
        "You are a helpful assistant.", "System prompt before every context; '': none."
    )
    dtype: str = field("float32", "Data type of activations and arithmetic.", choices=DTYPES)
    remat: str = field(
        "none", "Rematerialisation: which activations the backward pass recomputes.", choices=REMAT
    )
    unroll: int = field(
        1, "Number of layers unrolled in each iteration of the loop over layers.", low=1
    )
    attention: str = field("auto", "Attention kernel, see docs/scale.md.", choices=ATTENTIONS)
    lora: LoRAConfig | None = field(
        None, "LoRA adapters; all parameters they do not adapt are then frozen."
    )

    def __post_init__(self):
        if self.num_chorus:
            last = self.first_chorus_id + self.num_chorus
            if self.first_chorus_id < 0 or last > self.text.vocab_size:
                raise ConfigError(
                    f"chorus rows {self.first_chorus_id}..{last - 1} do not fit in vocab_size "
                    f"{self.text.vocab_size}"
                )
        for each in dataclasses.fields(self):
            row = getattr(self, each.name)
            if each.name.endswith("_token_id") and not 0 <= row < self.text.vocab_size:
                raise ConfigError(
                    f"{each.name} {row} is no row of the {self.text.vocab_size}-row vocabulary"
                )
        check(self, "model")

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
    """Makes a dataclass from a mapping of its fields; lists become tuples.

    Args:
      where: the config section that the values come from, for errors.

    Raises:
      ConfigError: a key is not a field.
    """
    refuse_unknown(values, [each.name for each in dataclasses.fields(cls)], where)
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
