"""Directories of safetensors: read memory-mapped, written sharded, published in one rename."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from crem_jax.convert.table import WeightsError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
"""Types weights are written in. ml_dtypes teaches numpy bfloat16, for reading too."""


class Weights:
    """The tensors of a model directory; nothing is read before it is asked for.

    Attributes:
      directory: where they are.
      shapes: name -> shape of every tensor.
      files: name -> file name.

    Raises:
      WeightsError: there are no safetensors, a shard is missing or damaged, or the index is wrong.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.files: dict[str, str] = {}
        self._open: dict[str, safe_open] = {}
        index = _read_index(self.directory)
        for file in sorted(set(index.values())) or [SINGLE]:
            handle = _open(self.directory / file)
            self._open[file] = handle
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                if name in self.files:
                    raise WeightsError(
                        f"{self.directory / file}: {name} is also in {self.files[name]}"
                    )
                self.files[name] = file
                self.shapes[name] = tuple(handle.get_slice(name).get_shape())
        absent = sorted(name for name, file in index.items() if self.files.get(name) != file)
        if absent:
            raise WeightsError(
                f"{self.directory / INDEX}: names tensors that are not where it says: "
                + ", ".join(f"{name} in {index[name]}" for name in absent)
            )

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor in the type it is stored in."""
        file = self.files[name]
        try:
            return self._open[file].get_tensor(name)
        except (SafetensorError, TypeError, ValueError) as error:
            raise WeightsError(
                f"{self.directory / file}: {name} cannot be read: {error}"
            ) from error


def write_weights(
    directory: str | os.PathLike,
    tensors: Iterable[tuple[str, np.ndarray]],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: str = "float32",
    max_shard_bytes: int = 5_000_000_000,
) -> list[str]:
    """Writes tensors in the given order to one file, or to shards and their index.

    Args:
      directory: exists.
      tensors: (name, array), consumed once; at most one shard of them is held in memory.
      shapes: name -> shape of the same tensors in the same order, to plan the shards.
      dtype: "float32" or "bfloat16".
      max_shard_bytes: a shard is larger only if a single tensor is.

    Returns:
      The names of the weight files.
    """
    if dtype not in DTYPES:
        raise WeightsError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    plan: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize
        if plan[-1] and size > room:
            plan.append([])
            room = max_shard_bytes
        plan[-1].append(name)
        room -= size
    count = len(plan)
    files = (
        [SINGLE]
        if count == 1
        else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    )
    stream = iter(tensors)
    total = parameters = 0
    for file, names in zip(files, plan, strict=True):
        shard: dict[str, np.ndarray] = {}
        for expected in names:
            name, array = next(stream)
            if name != expected or array.shape != tuple(shapes[name]):
                raise WeightsError(f"{name} {array.shape} comes where {expected} was planned")
            shard[name] = np.ascontiguousarray(array, DTYPES[dtype])
            total += shard[name].nbytes
            parameters += array.size
        save_file(shard, Path(directory) / file, metadata={"format": "pt"})
    if count > 1:
        index = {
            "metadata": {"total_parameters": parameters, "total_size": total},
            "weight_map": {n: file for file, names in zip(files, plan, strict=True) for n in names},
        }
        write_json(Path(directory) / INDEX, index)
    return files


def write_json(path: str | os.PathLike, values: Mapping) -> None:
    Path(path).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")


@contextlib.contextmanager
def atomic_directory(target: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """A directory to fill that becomes `target` when the block ends well, and vanishes otherwise.

    It is a hidden sibling until then, so a killed process leaves `target` as it was; the next call
    sweeps up, or puts back, what such a process left.

    Args:
      overwrite: replace a directory that has files in it.

    Raises:
      WeightsError: the target has files in it, or is a file.
    """
    target = Path(os.path.abspath(target))
    partial = target.parent / f".{target.name}.partial"
    old = target.parent / f".{target.name}.old"
    if old.is_dir() and not target.exists():
        os.replace(old, target)
    if target.exists() and not target.is_dir():
        raise WeightsError(f"{target}: is a file, expected a directory")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise WeightsError(f"{target}: already has files in it; expected a new directory")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.is_dir():
            os.replace(target, old)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _read_index(directory: Path) -> dict[str, str]:
    """name -> file of a sharded directory; empty for a single file."""
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
    missing = sorted(f for f in set(index.values()) if not (directory / f).is_file())
    if missing:
        raise WeightsError(f"{path}: names files that do not exist: {', '.join(missing)}")
    return index


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: is truncated or damaged: {error}") from error
