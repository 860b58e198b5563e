"""A name for a model's numbers, so that no library mixes two models."""

from __future__ import annotations

import hashlib
import json

import jax
import ml_dtypes
import numpy as np

from crem_jax import trees
from crem_jax.config import ModelConfig
from crem_jax.distributed import to_host
from crem_jax.model import crem

_SAMPLE = 4096
_NOT_MEANING = ("dtype", "remat", "unroll", "attention", "temperature")
_EMBEDDING = "backbone/embedding"


def fingerprint(config: ModelConfig, params: crem.Params) -> str:
    """32 hexadecimal digits of the config, of an even sample of every parameter, and of the chorus
    tokens' rows of the embedding, which the sample can miss.

    Parameters count as bfloat16, so that a model is the same one in either type; what only decides
    how it is computed (dtype, remat, kernels) does not count.
    """
    values = {k: v for k, v in config.to_dict().items() if k not in _NOT_MEANING}
    digest = hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16)
    for path, leaf in sorted(trees.flatten(params).items()):
        whole = to_host(leaf) if isinstance(leaf, jax.Array) else np.asarray(leaf)
        flat = whole.reshape(-1)
        digest.update(f"{path}{leaf.shape}".encode())
        digest.update(_bytes(flat[:: max(1, flat.size // _SAMPLE)]))
        if path == _EMBEDDING:
            digest.update(_bytes(whole[list(config.chorus_ids)]))
    return digest.hexdigest()


def _bytes(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values.astype(ml_dtypes.bfloat16)).tobytes()
