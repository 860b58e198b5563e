"""Any tensorflow-datasets data set stored as ArrayRecord, read without TensorFlow."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crem_jax.data.records import Record, RecordError
from crem_jax.data.sources.base import FileSource
from crem_jax.data.sources.formats.feature_map import FeatureMap
from crem_jax.data.sources.formats.tfds_layout import LATER, LAYOUT, decode_record
from crem_jax.errors import CremError

INFO_FILE = "dataset_info.json"


class TfdsRecords(FileSource):
    """What `crem prepare` wrote, or any other tfds data set with a map of its features.

    Args:
      path: the directory with dataset_info.json, or one above it if there is just one such.
      split: e.g. "train", or a part of it: "train[:1000]".
      features: what of a record is in which feature, as FeatureMap says, or the name of such a map
        ("coco_captions"). What `crem prepare` wrote needs none.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        split: str = "train",
        features: str | Mapping[str, str] | None = None,
    ):
        self._path, self._split, self._map = find_directory(path), split, features
        info = self._builder.info
        kind = getattr(info.file_format, "value", "unknown")
        if kind != "array_record":
            raise CremError(
                f"{self._path} is stored as {kind}; expected array_record, which needs no "
                "TensorFlow to be read (`tfds convert_format` makes it)"
            )
        mapped = None if features is None else self._mapped  # raises for what does not fit
        if mapped is None and set(info.features) | LATER != set(LAYOUT):
            raise CremError(
                f"{self._path} needs `features`, which say what of a record is in which of its "
                f"features: {', '.join(sorted(info.features))}"
            )
        if split.split("[")[0] not in info.splits:
            raise CremError(
                f"{self._path} has no split {split!r}; it has {', '.join(sorted(info.splits))}"
            )
        try:
            chosen = info.splits[split]
        except Exception as error:  # a part that is none; tfds has no class for it
            raise CremError(f"{self._path} has no split {split!r}: {error}") from error
        files = [os.fspath(file) for file in chosen.filepaths]
        missing = [file for file in files if not os.path.isfile(file)]
        if missing:
            raise FileNotFoundError(f"{missing[0]} does not exist")
        self._length = chosen.num_examples

    def __len__(self) -> int:
        return self._length

    def where(self, index: int) -> str:
        return f"{self._path} {self._split}[{index}]"

    def read(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        where = self.where(index)
        try:
            data = self._data[index]
        except Exception as error:  # the reader's errors have no type of their own
            raise RecordError(f"{where}: cannot be read: {error}") from error
        if self._mapped is None:
            return decode_record(data, where)
        return self._mapped.record(data, where)

    def __getstate__(self) -> dict[str, Any]:
        """For other processes, which open the files themselves."""
        ours = ("_builder", "_data", "_mapped")
        return {key: value for key, value in self.__dict__.items() if key not in ours}

    @functools.cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        try:
            return tfds.builder_from_directory(self._path)
        except Exception as error:  # protobuf's JSON errors, and many others
            raise CremError(f"{self._path} is a damaged tfds data set: {error}") from error

    @functools.cached_property
    def _data(self) -> Any:
        import tensorflow_datasets as tfds

        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return self._builder.as_data_source(self._split, deserialize_method=raw)

    @functools.cached_property
    def _mapped(self) -> FeatureMap | None:
        if self._map is None:
            return None
        info = self._builder.info
        try:
            return FeatureMap(self._map, info.features, info.name)
        except CremError as error:
            raise CremError(f"{self._path}: {error}") from error


def find_directory(path: str | os.PathLike) -> str:
    """The directory with dataset_info.json at or below a path.

    Raises:
      FileNotFoundError, CremError: there is none, or more than one.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"folder {root} does not exist")
    if (root / INFO_FILE).is_file():
        return os.fspath(root)
    found = sorted(
        file.parent for depth in ("*", "*/*", "*/*/*") for file in root.glob(f"{depth}/{INFO_FILE}")
    )
    if len(found) > 1:
        raise CremError(f"{root} holds several data sets: {', '.join(map(str, found))}")
    if not found:
        raise FileNotFoundError(f"{root} is no tfds data set: it has no {INFO_FILE}")
    return os.fspath(found[0])
