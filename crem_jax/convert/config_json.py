"""Converts between Hugging Face's `config.json` and `ModelConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crem_jax.config import STYLES, ConfigError, ModelConfig, TextConfig, VisionConfig

_ARCHITECTURE = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
}


def from_hf(
    config: Mapping[str, Any],
    generation: Mapping[str, Any] | None = None,
    preprocessor: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """A ModelConfig from Hugging Face's (the flat layout of transformers 4 or the nested one of 5).

    Args:
      config: contents of config.json.
      generation: contents of generation_config.json, for the special token ids.
      preprocessor: contents of preprocessor_config.json, for picture sizes and statistics.

    Raises:
      ConfigError: a key is missing or has a value of the wrong type, or the architecture or an
        option is not implemented here.
    """
    try:
        return _from_hf(config, generation or {}, preprocessor or {})
    except ConfigError:
        raise
    except KeyError as error:
        raise ConfigError(f"config.json lacks the key {error}") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ConfigError(f"config.json has a value of the wrong type: {error}") from error


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The nested `config.json` that transformers 5 writes, plus a section `crem`."""
    text, vision = config.text, config.vision
    values = {
        "architectures": [_ARCHITECTURE[vision.style]],
        "model_type": vision.style,
        "dtype": config.dtype,
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        "tie_word_embeddings": text.tie_embeddings,
        "text_config": {
            "model_type": f"{vision.style}_text",
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
            "pad_token_id": config.pad_token_id,
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
            "model_type": f"{vision.style}_vision",
            "depth": vision.depth,
            "in_channels": vision.in_channels,
            "num_heads": vision.num_heads,
            "patch_size": vision.patch_size,
            "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
            "spatial_merge_size": vision.merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
            **_tower(text, vision),
        },
    }
    if config.num_chorus:
        values["crem"] = {
            "num_chorus": config.num_chorus,
            "first_chorus_id": config.first_chorus_id,
            "temperature": config.temperature,
            "system_prompt": config.system_prompt,
        }
    return values


def _tower(text: TextConfig, vision: VisionConfig) -> dict[str, Any]:
    """The keys of `vision_config` that differ between styles."""
    if vision.style == "qwen2_vl":
        return {
            "embed_dim": vision.embed_dim,
            "hidden_act": "quick_gelu",
            "hidden_size": text.hidden_size,
            "mlp_ratio": int(vision.mlp_ratio),
        }
    return {
        "fullatt_block_indexes": list(vision.full_attention_layers),
        "hidden_act": "silu",
        "hidden_size": vision.embed_dim,
        "intermediate_size": vision.mlp_dim,
        "out_hidden_size": text.hidden_size,
        "tokens_per_second": vision.tokens_per_second,
        "window_size": vision.window_size,
    }


def _tower_fields(style: str, vision: Mapping[str, Any], features: int) -> dict[str, Any]:
    """Inverse of `_tower`; `features` is the width of the decoder."""
    if style == "qwen2_vl":
        _expect(vision, "hidden_act", "quick_gelu")
        return {"embed_dim": vision["embed_dim"], "mlp_ratio": vision.get("mlp_ratio", 4)}
    _expect(vision, "hidden_act", "silu")
    _expect(vision, "out_hidden_size", features)
    return {
        "embed_dim": vision["hidden_size"],
        "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
        "window_size": vision.get("window_size", 112),
        "full_attention_layers": tuple(vision.get("fullatt_block_indexes", (7, 15, 23, 31))),
        "tokens_per_second": vision.get("tokens_per_second", 4),
    }


def _from_hf(
    config: Mapping[str, Any], generation: Mapping[str, Any], pre: Mapping[str, Any]
) -> ModelConfig:
    style = config.get("model_type")
    if style not in STYLES:
        raise ConfigError(f"model_type {style!r} is not one of {', '.join(STYLES)}")
    text = dict(config.get("text_config") or config)
    rope = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    if rope.get("rope_type", rope.get("type", "default")) not in ("default", "mrope"):
        raise ConfigError(f"rope type {rope!r} is not implemented; expected 'default'")
    _expect(text, "hidden_act", "silu")
    _expect(text, "use_sliding_window", False)
    vision = dict(config["vision_config"])
    size = pre.get("size") or {}
    crem = config.get("crem") or {}
    ids: dict[str, Any] = {}
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
            rope_theta=_get(1_000_000.0, (rope, "rope_theta"), (text, "rope_theta")),
            tie_embeddings=bool(tied or text.get("tie_word_embeddings", False)),
            max_positions=text.get("max_position_embeddings", 32_768),
        ),
        vision=VisionConfig(
            style=style,
            depth=vision["depth"],
            num_heads=vision["num_heads"],
            patch_size=_get(14, (vision, "patch_size"), (vision, "spatial_patch_size")),
            merge_size=vision.get("spatial_merge_size", 2),
            temporal_patch_size=vision.get("temporal_patch_size", 2),
            in_channels=_get(3, (vision, "in_channels"), (vision, "in_chans")),
            rope_theta=(vision.get("rope_parameters") or {}).get("rope_theta", 10_000.0),
            min_pixels=pre.get("min_pixels") or size.get("shortest_edge", defaults.min_pixels),
            max_pixels=pre.get("max_pixels") or size.get("longest_edge", defaults.max_pixels),
            image_mean=tuple(pre.get("image_mean", defaults.image_mean)),
            image_std=tuple(pre.get("image_std", defaults.image_std)),
            **_tower_fields(style, vision, text["hidden_size"]),
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


def _expect(values: Mapping[str, Any], key: str, expected: Any) -> None:
    if values.get(key, expected) != expected:
        raise ConfigError(f"{key}={values[key]!r} is not implemented; expected {expected!r}")


def _get(default: Any, *places: tuple[Mapping[str, Any], str]) -> Any:
    """The value of the first (mapping, key) that exists, else the default."""
    return next((values[key] for values, key in places if key in values), default)


def _first(value: Any, default: int) -> int:
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    return default if value is None else int(value)
