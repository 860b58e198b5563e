"""A plain folder of pictures, each with what belongs to it in a file beside it."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from crem_jax.data.images.folders import pictures_in
from crem_jax.data.records import Item, Record, RecordError
from crem_jax.data.sources.base import FileSource
from crem_jax.data.sources.formats.fields import make_item, text_of
from crem_jax.data.sources.formats.file_rows import parse_json
from crem_jax.data.sources.formats.jsonl import record_of
from crem_jax.errors import CremError


class FolderPictures(FileSource):
    """The pictures under a folder, in the order of their names.

    Beside `a/dog.jpg` stands `a/dog.txt`, the text the picture should find, or `a/dog.json`, an
    object as in a JSONL file without its picture: {"text": …, "negatives": …, "turns": …}.

    Args:
      path: the folder; subfolders included, hidden files and folders left out.
      name_as_text: a picture without such a file is described by its name: `red_car-2.jpg` is
        "red car 2". Otherwise it cannot be used.
      bare: a picture without such a file is a record with nothing to learn, to be searched for.
    """

    def __init__(self, path: str | os.PathLike, name_as_text: bool = False, bare: bool = False):
        self._folder = Path(path)
        self._pictures = [os.fspath(p.relative_to(path)) for p in pictures_in(path)]
        self._name_as_text, self._bare = name_as_text, bare

    def __len__(self) -> int:
        return len(self._pictures)

    def where(self, index: int) -> str:
        return os.fspath(self._folder / self._pictures[index])

    def read(self, index: int) -> Record:
        name, picture = self._pictures[index], self._folder / self._pictures[index]
        source = self._folder.resolve().name
        for suffix in (".json", ".txt"):
            beside = picture.with_suffix(suffix)
            if not beside.is_file():
                continue
            try:
                content = beside.read_text(encoding="utf-8-sig")
                value = parse_json(content) if suffix == ".json" else None
            except (CremError, UnicodeDecodeError, OSError) as error:
                raise RecordError(f"{beside}: cannot be read: {error}") from error
            if suffix == ".json":
                record = record_of(
                    value, str(picture.parent), str(beside), source, picture.name, self._bare
                )
                return dataclasses.replace(record, id=name) if self._bare else record
            text = content
            break
        else:
            if self._bare and not self._name_as_text:
                return Record(name, Item(images=(os.path.normpath(picture),)), source=source)
            if not self._name_as_text:
                raise RecordError(
                    f"{picture}: has neither a .json nor a .txt beside it (name_as_text=true takes "
                    "its name)"
                )
            beside = picture
            text = re.sub(r"[\W_]+", " ", text_of(picture.stem, f"the name of {picture!r}"))
        positive = make_item(text.strip(), (), str(beside))
        query = Item(images=(os.path.normpath(picture),))
        return Record(id=name, query=query, positives=(positive,), source=source)
