"""The model's configuration: frozen dataclasses, read from and written to HF `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


class ConfigError(ValueError):
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
    """Qwen2-VL vision tower, and the picture sizes it is fed."""

    depth: int
    embed_dim: int
    num_heads: int
    mlp_ratio: int = 4
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
        return self.embed_dim * int(self.mlp_ratio)

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
        if self.mlp_ratio != int(self.mlp_ratio):
            raise ConfigError(f"vision mlp_ratio {self.mlp_ratio} must be a whole number")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A CREM model: Qwen2-VL with `num_chorus` chorus tokens in vocabulary rows.

    `num_chorus` 0 is plain Qwen2-VL: it tells natively and cannot find.
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
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"model.dtype {self.dtype!r} is not one of float32, bfloat16")
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
        values["text"] = _build(TextConfig, values["text"], "model.text")
        values["vision"] = _build(VisionConfig, values["vision"], "model.vision")
        return _build(ModelConfig, values, "model")

    @staticmethod
    def from_hf(
        config: Mapping[str, Any],
        generation: Mapping[str, Any] | None = None,
        preprocessor: Mapping[str, Any] | None = None,
    ) -> ModelConfig:
        """Reads `config.json` (flat transformers 4 or nested transformers 5 layout).

        Args:
          config: contents of config.json.
          generation: contents of generation_config.json, for the special token ids.
          preprocessor: contents of preprocessor_config.json, for picture sizes and statistics.

        Raises:
          ConfigError: for another architecture or an option this library does not implement.
        """
        try:
            return _from_hf(config, generation or {}, preprocessor or {})
        except KeyError as error:
            raise ConfigError(f"config.json lacks the key {error}") from error

    def to_hf(self) -> dict[str, Any]:
        """The nested `config.json` that transformers 5 writes, with a `crem` section beside it."""
        text, vision = self.text, self.vision
        config = {
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "model_type": "qwen2_vl",
            "dtype": self.dtype,
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "tie_word_embeddings": text.tie_embeddings,
            "text_config": {
                "model_type": "qwen2_vl_text",
                "bos_token_id": self.bos_token_id,
                "eos_token_id": self.eos_token_id,
                "pad_token_id": self.pad_token_id,
                "hidden_act": "silu",
                "hidden_size": text.hidden_size,
                "intermediate_size": text.intermediate_size,
                "max_position_embeddings": text.max_positions,
                "num_attention_heads": text.num_heads,
                "num_hidden_layers": text.num_layers,
                "num_key_value_heads": text.num_kv_heads,
                "rms_norm_eps": text.rms_norm_eps,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": text.rope_theta,
                    "mrope_section": list(text.mrope_section),
                },
                "tie_word_embeddings": text.tie_embeddings,
                "use_sliding_window": False,
                "vocab_size": text.vocab_size,
            },
            "vision_config": {
                "model_type": "qwen2_vl_vision",
                "depth": vision.depth,
                "embed_dim": vision.embed_dim,
                "hidden_act": "quick_gelu",
                "hidden_size": text.hidden_size,
                "in_channels": vision.in_channels,
                "mlp_ratio": int(vision.mlp_ratio),
                "num_heads": vision.num_heads,
                "patch_size": vision.patch_size,
                "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
                "spatial_merge_size": vision.merge_size,
                "temporal_patch_size": vision.temporal_patch_size,
            },
        }
        if self.num_chorus:
            config["crem"] = {
                "num_chorus": self.num_chorus,
                "first_chorus_id": self.first_chorus_id,
                "temperature": self.temperature,
                "system_prompt": self.system_prompt,
            }
        return config


def _from_hf(
    config: Mapping[str, Any], generation: Mapping[str, Any], pre: Mapping[str, Any]
) -> ModelConfig:
    if config.get("model_type") != "qwen2_vl":
        raise ConfigError(f"model_type {config.get('model_type')!r} is not 'qwen2_vl'")
    text = dict(config.get("text_config") or config)
    rope = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    if rope.get("rope_type", rope.get("type", "default")) not in ("default", "mrope"):
        raise ConfigError(f"rope type {rope!r} is not implemented; expected 'default'")
    _expect(text, "hidden_act", "silu")
    _expect(text, "use_sliding_window", False)
    vision = dict(config["vision_config"])
    _expect(vision, "hidden_act", "quick_gelu")
    size = pre.get("size") or {}
    crem = config.get("crem") or {}
    ids = {}
    for values in (text, config, generation):
        ids |= {key: value for key, value in values.items() if value is not None}
    bos = _first(ids.get("bos_token_id"), 151643)
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    if "mrope_section" not in rope and head_dim != 128:
        raise ConfigError("config.json has no mrope_section in its rope parameters")
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    defaults = VisionConfig(depth=1, embed_dim=4, num_heads=1)
    return ModelConfig(
        text=TextConfig(
            vocab_size=text["vocab_size"],
            hidden_size=text["hidden_size"],
            intermediate_size=text["intermediate_size"],
            num_layers=text["num_hidden_layers"],
            num_heads=text["num_attention_heads"],
            num_kv_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
            mrope_section=tuple(rope.get("mrope_section", (16, 24, 24))),
            rms_norm_eps=text.get("rms_norm_eps", 1e-5),
            rope_theta=rope.get("rope_theta", text.get("rope_theta", 1_000_000.0)),
            tie_embeddings=bool(tied or text.get("tie_word_embeddings", False)),
            max_positions=text.get("max_position_embeddings", 32_768),
        ),
        vision=VisionConfig(
            depth=vision["depth"],
            embed_dim=vision["embed_dim"],
            num_heads=vision["num_heads"],
            mlp_ratio=vision.get("mlp_ratio", 4),
            patch_size=vision.get("patch_size", vision.get("spatial_patch_size", 14)),
            merge_size=vision.get("spatial_merge_size", 2),
            temporal_patch_size=vision.get("temporal_patch_size", 2),
            in_channels=vision.get("in_channels", vision.get("in_chans", 3)),
            rope_theta=(vision.get("rope_parameters") or {}).get("rope_theta", 10_000.0),
            min_pixels=pre.get("min_pixels") or size.get("shortest_edge", defaults.min_pixels),
            max_pixels=pre.get("max_pixels") or size.get("longest_edge", defaults.max_pixels),
            image_mean=tuple(pre.get("image_mean", defaults.image_mean)),
            image_std=tuple(pre.get("image_std", defaults.image_std)),
        ),
        image_token_id=config["image_token_id"],
        video_token_id=config["video_token_id"],
        vision_start_token_id=ids["vision_start_token_id"],
        vision_end_token_id=ids["vision_end_token_id"],
        bos_token_id=bos,
        eos_token_id=_first(ids.get("eos_token_id"), 151645),
        pad_token_id=_first(ids.get("pad_token_id"), bos),
        num_chorus=crem.get("num_chorus", 0),
        first_chorus_id=crem.get("first_chorus_id", -1),
        temperature=crem.get("temperature", 0.02),
        system_prompt=crem.get("system_prompt", "You are a helpful assistant."),
    )


def _build(cls, values: Mapping[str, Any], where: str):
    names = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - names)
    if unknown:
        known = ", ".join(sorted(names))
        raise ConfigError(f"unknown key {where}.{unknown[0]}; known keys: {known}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return cls(**values)


def _expect(values: Mapping[str, Any], key: str, expected: Any) -> None:
    if values.get(key, expected) != expected:
        raise ConfigError(f"{key}={values[key]!r} is not implemented; expected {expected!r}")


def _first(value: Any, default: int) -> int:
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    return default if value is None else int(value)
