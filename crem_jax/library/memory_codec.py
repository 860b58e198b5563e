"""Serialises chorus memories: a checksum, then the tensors of one row in safetensors format.

float32 and bfloat16 are lossless for memories of that type. int8 is symmetric, with one scale for
each layer, head and chorus slot, and takes about half the bytes of bfloat16.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from crem_jax.library.entry import LibraryError
from crem_jax.types import CHORUS, KV, Memory

_MAGIC = b"CREM"
_HEAD = len(_MAGIC) + 4


def encode_memory(memory: Memory, encoding: str, k: int | None = None) -> list[bytes]:
    """Serialises each row of a memory.

    Args:
      memory: a compressed memory (`Memory.chorus_only`), keys and values [L, B, G, K, H].
      encoding: "float32", "bfloat16" or "int8". k: keep the first k slots; None is all.

    Raises:
      LibraryError: an unknown encoding.
    """
    memory = memory.chorus_only(k)
    next_position = np.asarray(memory.next_position, np.int32)
    parts = {"keys": np.asarray(memory.kv.keys), "values": np.asarray(memory.kv.values)}
    encoded: dict[str, np.ndarray] = {}
    for name, value in parts.items():
        encoded |= _to_stored(name, value, encoding)
    blobs = []
    for row in range(len(next_position)):
        # Copies: safetensors writes the whole buffer under a view.
        tensors = {name: np.ascontiguousarray(value[:, row]) for name, value in encoded.items()}
        body = save({**tensors, "next_position": next_position[row : row + 1]})
        blobs.append(_MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)
    return blobs


def decode_memory(blobs: Sequence[bytes], dtype: str = "float32", k: int | None = None) -> Memory:
    """Deserialises rows to one Memory of numpy arrays, without chorus states (`chorus` [B, K, 0]).

    Args:
      dtype: type of keys and values. k: the first k slots; None is all stored ones.

    Raises:
      LibraryError: a blob is damaged, shapes differ, or k exceeds the stored slots.
    """
    rows = [_tensors(blob) for blob in blobs]
    shapes = {row["keys"].shape for row in rows}
    if len(shapes) != 1:
        raise LibraryError(f"memories of shapes {sorted(shapes)} cannot be asked together")
    stored = rows[0]["keys"].shape[2]
    if k is not None and not 1 <= k <= stored:
        raise LibraryError(f"k = {k} is not in 1..{stored}: so many chorus tokens are stored")
    target = jnp.dtype(dtype)
    keys, values = (
        np.stack([_from_stored(name, row, target) for row in rows], axis=1)
        for name in ("keys", "values")
    )
    memory = Memory(
        kv=KV(keys, values),
        region=np.full((len(rows), stored), CHORUS, np.int32),
        next_position=np.concatenate([row["next_position"] for row in rows]),
        chorus=np.zeros((len(rows), stored, 0), np.float32),
    )
    return memory.chorus_only(k)


def _to_stored(name: str, value: np.ndarray, encoding: str) -> dict[str, np.ndarray]:
    if encoding == "float32":
        return {name: value.astype(np.float32)}
    if encoding == "bfloat16":  # as raw bits: not every safetensors version knows ml_dtypes' type
        return {name: value.astype(ml_dtypes.bfloat16).view(np.uint16)}
    if encoding != "int8":
        raise LibraryError(f"memories cannot be encoded as {encoding!r}")
    value = value.astype(np.float32)
    scale = np.maximum(np.abs(value).max(axis=-1, keepdims=True), 1e-30) / 127
    return {name: np.rint(value / scale).astype(np.int8), f"{name}_scale": scale}


def _from_stored(name: str, row: dict[str, np.ndarray], dtype) -> np.ndarray:
    value = row[name]
    if value.dtype == np.uint16:
        value = value.view(ml_dtypes.bfloat16)
    elif value.dtype == np.int8:
        value = value.astype(np.float32) * row[f"{name}_scale"]
    return value.astype(dtype)


def _tensors(blob: bytes) -> dict[str, np.ndarray]:
    body = blob[_HEAD:]
    known = blob[: len(_MAGIC)] == _MAGIC
    if not known or zlib.crc32(body).to_bytes(4, "little") != blob[len(_MAGIC) : _HEAD]:
        raise LibraryError("a stored memory is damaged: its checksum is wrong")
    try:
        return load(body)
    except SafetensorError as error:
        raise LibraryError(f"a stored memory is damaged: {error}") from error
