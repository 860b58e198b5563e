"""Reads safetensors directories by memory mapping, and writes them piece by piece."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from crem_jax.convert.table import WeightsError
from crem_jax.files import write_text
from crem_jax.lazy_array import Index, LazyArray
from crem_jax.processes import read_ahead

_SYNC_BYTES = 256 << 20
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
"""Types in which weights can be written."""

_CODES = {
    "F64": np.dtype(np.float64),
    "F32": DTYPES["float32"],
    "F16": np.dtype(np.float16),
    "BF16": DTYPES["bfloat16"],
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""numpy types by their names in a safetensors file."""


class Weights(Mapping[str, LazyArray]):
    """The tensors of a model directory by name, memory-mapped when they are read.

    A mapping lives as long as the array read from it, so reading a model piece by piece takes no
    more memory than its pieces.

    Attributes:
      directory: the model directory.
      files: tensor name -> file name.

    Raises:
      WeightsError: there are no safetensors, a shard is missing or damaged, a tensor has a type
        that numpy lacks, or the index is wrong.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        self.files: dict[str, str] = {}
        self._tensors: dict[str, LazyArray] = {}
        index = _read_index(self.directory)
        for file in sorted(set(index.values())) or [SINGLE]:
            for name, tensor in _mapped(self.directory / file).items():
                if name in self.files:
                    raise WeightsError(
                        f"{self.directory / file}: {name} is also in {self.files[name]}"
                    )
                self.files[name], self._tensors[name] = file, tensor
        absent = sorted(name for name, file in index.items() if self.files.get(name) != file)
        if absent:
            raise WeightsError(
                f"{self.directory / INDEX}: names tensors that are not where it says: "
                + ", ".join(f"{name} in {index[name]}" for name in absent)
            )

    def __getitem__(self, name: str) -> LazyArray:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def write_weights(
    directory: str | os.PathLike,
    tensors: Mapping[str, LazyArray],
    *,
    dtype: str = "float32",
    max_shard_bytes: int = 5_000_000_000,
    on_bytes: Callable[[int], None] | None = None,
) -> list[str]:
    """Writes tensors in the given order to one file, or to shards with an index.

    Args:
      directory: an existing directory.
      tensors: tensors by name; read, converted and written piece by piece.
      dtype: "float32" or "bfloat16".
      max_shard_bytes: a shard is larger only if a single tensor is.
      on_bytes: called with the number of bytes written since the last call.

    Returns:
      The names of the weight files.
    """
    if dtype not in DTYPES:
        raise WeightsError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    plan: list[dict[str, LazyArray]] = [{}]
    room = max_shard_bytes
    for name, tensor in tensors.items():
        tensor = tensor.astype(DTYPES[dtype])
        if plan[-1] and tensor.nbytes > room:
            plan.append({})
            room = max_shard_bytes
        plan[-1][name] = tensor
        room -= tensor.nbytes
    count = len(plan)
    files = (
        [SINGLE]
        if count == 1
        else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    )
    for file, shard in zip(files, plan, strict=True):
        _write_shard(Path(directory) / file, shard, on_bytes or (lambda _: None))
    if count > 1:
        index = {
            "metadata": {
                "total_parameters": sum(t.size for shard in plan for t in shard.values()),
                "total_size": sum(t.nbytes for shard in plan for t in shard.values()),
            },
            "weight_map": {n: file for file, shard in zip(files, plan, strict=True) for n in shard},
        }
        write_json(Path(directory) / INDEX, index)
    return files


def _write_shard(
    path: Path, tensors: Mapping[str, LazyArray], on_bytes: Callable[[int], None]
) -> None:
    """Writes one safetensors file: header length, JSON header, tensor data.

    The safetensors library can only write a file whose tensors are all in memory.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        kind = next(code for code, dtype in _CODES.items() if dtype == tensor.dtype)
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with ThreadPoolExecutor(1) as thread, open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        unsynced = 0
        pieces = ([(t, index)] for t in tensors.values() for index in t.pieces())
        for (piece,) in read_ahead(thread, lambda piece: piece[0].read(piece[1]), pieces):
            file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
            on_bytes(piece.nbytes)
            unsynced += piece.nbytes
            if unsynced > _SYNC_BYTES:  # the disk works while the next pieces are read
                os.fsync(file.fileno())
                unsynced = 0
        file.flush()
        os.fsync(file.fileno())


def write_json(path: str | os.PathLike, values: Mapping | list) -> None:
    """Writes JSON formatted as transformers does."""
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def _read_index(directory: Path) -> dict[str, str]:
    """Tensor name -> file name of a sharded directory; empty for a single file."""
    if not directory.is_dir():
        raise WeightsError(f"{directory}: is not a directory")
    if (directory / SINGLE).is_file():
        return {}
    path = directory / INDEX
    if not path.is_file():
        pickles = sorted(p.name for p in directory.glob("*.bin"))
        if pickles:
            raise WeightsError(
                f"{directory}: holds its weights only as pickle ({', '.join(pickles)}), which can "
                "run code when it is read; expected safetensors"
            )
        raise WeightsError(f"{directory}: has no {SINGLE} and no {INDEX}")
    try:
        index = json.loads(path.read_text("utf-8"))["weight_map"]
        index = {str(name): str(file) for name, file in index.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: is not an index of safetensors: {error!r}") from error
    if not index:
        raise WeightsError(f"{path}: names no tensors")
    outside = sorted(f for f in set(index.values()) if Path(f).name != f)
    if outside:
        raise WeightsError(f"{path}: expected plain file names, found {', '.join(outside)}")
    missing = sorted(f for f in set(index.values()) if not (directory / f).is_file())
    if missing:
        raise WeightsError(f"{path}: names files that do not exist: {', '.join(missing)}")
    return index


def _mapped(path: Path) -> dict[str, LazyArray]:
    """The tensors of one file, each memory-mapped again on every read."""
    try:
        with safe_open(path, framework="numpy"):
            pass  # the library checks the header: its length, the types, that no byte is left over
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: is truncated or damaged: {error}") from error
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    foreign = sorted(f"{n} is {h['dtype']}" for n, h in header.items() if h["dtype"] not in _CODES)
    if foreign:
        raise WeightsError(f"{path}: {', '.join(foreign)}; expected one of {', '.join(_CODES)}")

    def tensor(entry: Mapping[str, Any]) -> LazyArray:
        shape, dtype = tuple(entry["shape"]), _CODES[entry["dtype"]]
        offset = 8 + length + entry["data_offsets"][0]

        def read(index: Index) -> np.ndarray:
            return np.memmap(path, dtype, "r", offset, shape)[index]

        return LazyArray(shape, dtype, read)

    return {name: tensor(entry) for name, entry in header.items()}
