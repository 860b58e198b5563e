"""A name for a model's numbers, so that no library mixes two models."""

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
"""Fields that only decide how a model is computed or trained."""

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
"""Fields that count whatever they hold: those of the version that made the first libraries.

Add none. A later field counts where it is not at its default, so that the models from before it
keep their fingerprint, and the libraries made with them can be opened.
"""

_EMBEDDING = "backbone/embedding"


def fingerprint(config: ModelConfig, params: crem.Params) -> str:
    """32 hexadecimal digits of the config, of an even sample of every parameter, and of the chorus
    tokens' rows of the embedding, which the sample can miss.

    Parameters count as bfloat16, so that a model is the same one in either type; what only decides
    how it is computed (dtype, remat, kernels) does not count, nor does a field of the config that
    was added later while it is at its default.
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
    """The fields of a config that count, nested ones as dicts."""
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
    """`dataclasses.MISSING`, which equals no value, if the field has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _bytes(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values.astype(ml_dtypes.bfloat16)).tobytes()
