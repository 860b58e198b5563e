"""A fingerprint of a model's config and parameters, so that no library mixes two models."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from crem_jax import trees
from crem_jax.config import LoRAConfig, ModelConfig, TextConfig, VisionConfig
from crem_jax.distributed import to_host
from crem_jax.model import crem

_SAMPLE = 4096
_NOT_MEANING = ("dtype", "remat", "unroll", "attention", "temperature")
"""Fields that only affect how a model is computed or trained."""

_ALWAYS: Mapping[type, Collection[str]] = {
    ModelConfig: (
        *("text", "vision", "image_token_id", "video_token_id", "vision_start_token_id"),
        *("vision_end_token_id", "bos_token_id", "eos_token_id", "pad_token_id"),
        *("num_chorus", "first_chorus_id", "system_prompt", "lora"),
    ),
    TextConfig: (
        *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads"),
        *("num_kv_heads", "mrope_section", "rms_norm_eps", "rope_theta", "tie_embeddings"),
        "max_positions",
    ),
    VisionConfig: (
        *("depth", "embed_dim", "num_heads", "mlp_ratio", "style", "window_size"),
        *("full_attention_layers", "tokens_per_second", "patch_size", "merge_size"),
        *("temporal_patch_size", "in_channels", "rope_theta", "min_pixels", "max_pixels"),
        *("image_mean", "image_std"),
    ),
    LoRAConfig: ("rank", "alpha", "targets"),
}
"""Fields that are always hashed: those of the version that made the first libraries.

Add none. A field added later is hashed only where it differs from its default, so that earlier
models keep their fingerprint and the libraries made with them can be opened.
"""

_EMBEDDING = "backbone/embedding"


def fingerprint(config: ModelConfig, params: crem.Params) -> str:
    """A hash of 32 hexadecimal digits over the config, an even sample of every parameter, and the
    embedding rows of the chorus tokens, which the sample can miss.

    Parameters are hashed as bfloat16, so that both types of a model have the same fingerprint.
    Fields that only affect the computation (dtype, remat, kernels) are left out, and so are fields
    of the config that were added later while they are at their default.
    """
    values = json.dumps(_counted(config), sort_keys=True)
    digest = hashlib.blake2b(values.encode(), digest_size=16)
    for path, leaf in sorted(trees.flatten(params).items()):
        whole = to_host(leaf) if isinstance(leaf, jax.Array) else np.asarray(leaf)
        flat = whole.reshape(-1)
        digest.update(f"{path}{leaf.shape}".encode())
        digest.update(_bytes(flat[:: max(1, flat.size // _SAMPLE)]))
        if path == _EMBEDDING:
            digest.update(_bytes(whole[list(config.chorus_ids)]))
    return digest.hexdigest()


def _counted(config: Any) -> dict[str, Any]:
    """The fields of a config that are hashed, nested ones as dicts."""
    always = next((names for kind, names in _ALWAYS.items() if isinstance(config, kind)), ())
    counted = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in _NOT_MEANING:
            continue
        if field.name in always or value != _default(field):
            counted[field.name] = _counted(value) if dataclasses.is_dataclass(value) else value
    return counted


def _default(field: dataclasses.Field) -> Any:
    """A field's default; `dataclasses.MISSING`, which equals no value, if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _bytes(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values.astype(ml_dtypes.bfloat16)).tobytes()
