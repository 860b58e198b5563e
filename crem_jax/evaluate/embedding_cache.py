"""An on-disk cache of embeddings, keyed by content.

A directory holds parts, Arrow files of keys and vectors, each written under another name and then
renamed: with killed and concurrent writers, a part is still complete or absent.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crem_jax.errors import CremError
from crem_jax.files import DIGEST, atomic_write, file_digest

if TYPE_CHECKING:
    from crem_jax.data.records import Item, Picture

_SUFFIX = ".arrow"
_FORMAT = 1  # to be raised whenever prompts or pictures are encoded differently


class EmbeddingCache:
    """Vectors of one model, float32 [D], by content key.

    Args:
      root: the folder of all caches. name: this one's, which must distinguish models and dtypes.
      dim: D.

    Raises:
      CremError: a part is damaged, or holds vectors of another width.
    """

    def __init__(self, root: str | os.PathLike, name: str, dim: int):
        self.directory = Path(root) / f"{name}-v{_FORMAT}"
        self.directory.mkdir(parents=True, exist_ok=True)
        self._dim = dim
        self._parts: list[np.ndarray] = []
        self._files: set[str] = set()
        self._places: dict[bytes, tuple[int, int]] = {}
        self.refresh()

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def refresh(self) -> None:
        """Loads the parts that other processes have written."""
        try:
            for path in sorted(self.directory.glob(f"*{_SUFFIX}")):
                if path.name not in self._files:
                    self._open(path)
        except FileNotFoundError:  # another process merged parts since the listing
            self.refresh()

    def put(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        """Stores vectors, float32 [n, D]; they are on disk when this returns."""
        path = self.directory / f"{uuid.uuid4().hex}{_SUFFIX}"
        _write(path, keys, vectors)
        self._open(path)

    def get(self, keys: Sequence[bytes]) -> np.ndarray:
        """The vectors of keys, float32 [n, D].

        Raises:
          KeyError: a key is not in the cache.
        """
        out = np.zeros((len(keys), self._dim), np.float32)
        places = np.array([self._places[key] for key in keys], np.int64).reshape(-1, 2)
        for part in np.unique(places[:, 0]):
            own = places[:, 0] == part
            out[own] = self._parts[part][places[own, 1]]
        return out

    def tidy(self) -> None:
        """Merges all known parts into one; parts that other processes add meanwhile stay."""
        names = sorted(self._files)
        if len(names) < 2:
            return
        keys = list(self._places)
        self.put(keys, self.get(keys))
        for name in names:
            (self.directory / name).unlink(missing_ok=True)

    def _open(self, path: Path) -> None:
        import pyarrow as pa

        try:
            table = pa.ipc.open_file(pa.memory_map(os.fspath(path))).read_all().combine_chunks()
            keys = table["key"].to_pylist()
            vectors = table["vector"].combine_chunks()
            flat = vectors.flatten().to_numpy(zero_copy_only=len(vectors) > 0)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, KeyError) as error:
            raise CremError(f"{path} is damaged: {error}; delete it") from error
        if vectors.type.list_size != self._dim:
            raise CremError(
                f"{path} has vectors of {vectors.type.list_size} numbers; expected {self._dim}"
            )
        number = len(self._parts)
        self._parts.append(flat.reshape(-1, self._dim))
        self._files.add(path.name)
        self._places |= {key: (number, row) for row, key in enumerate(keys)}


class ContentKeys:
    """Content keys of items, from their texts and picture files; each file is read once."""

    def __init__(self):
        self._files: dict[str, bytes] = {}

    def of(self, items: Sequence[Item], each: Callable = map) -> list[bytes]:
        """The keys of items whose pictures are paths.

        Args:
          each: the `map` to use for hashing files, such as a thread pool's.

        Raises:
          OSError: a file cannot be read.
        """
        named = dict.fromkeys(_path(picture) for item in items for picture in item.images)
        paths = [path for path in named if path not in self._files]
        self._files |= zip(paths, each(file_digest, paths), strict=True)
        return [self._key(item) for item in items]

    def _key(self, item: Item) -> bytes:
        text = item.text.encode()
        parts = (
            len(text).to_bytes(8, "little"),
            text,
            *(self._files[_path(p)] for p in item.images),
        )
        return hashlib.blake2b(b"".join(parts), digest_size=DIGEST).digest()


def _path(picture: Picture) -> str:
    if not isinstance(picture, str | os.PathLike):
        raise TypeError(f"a picture is {type(picture).__name__}; content keys are made of paths")
    return os.fspath(picture)


def _write(path: Path, keys: Sequence[bytes], vectors: np.ndarray) -> None:
    import pyarrow as pa

    values = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    columns = {
        "key": pa.array(keys, pa.binary(DIGEST)),
        "vector": pa.FixedSizeListArray.from_arrays(values, vectors.shape[1]),
    }
    table = pa.table(columns)
    with (
        atomic_write(path, fsync=True) as partial,
        pa.OSFile(os.fspath(partial), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)
