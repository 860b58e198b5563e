"""MMEB-train (hub: `TIGER-Lab/MMEB-train`) and its hard-negative variants, from local files.

Rows have `qry`, `qry_image_path`, `pos_text`, `pos_image_path` and perhaps `neg_text`,
`neg_image_path`; all are texts, "" where absent, and any but `qry` and `pos_text` may be lists.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crem_jax.data.records import EmptySideError, Item, Record, RecordError
from crem_jax.data.sources.base import FileSource
from crem_jax.data.sources.formats.fields import shown, text_of
from crem_jax.data.sources.formats.file_rows import Rows, scan
from crem_jax.data.sources.formats.mmeb_files import (
    COLUMNS,
    PLACEHOLDER,
    SPLITS,
    open_rows,
    picture_layout,
    picture_paths,
    plain_text,
    subset_files,
    subsets_in,
)
from crem_jax.errors import CremError

VLM2VEC_V2_CAPS = {
    "ImageNet_1K": 100_000,
    "N24News": 50_000,
    "HatefulMemes": 10_000,
    "VOC2007": 10_000,
    "SUN397": 20_000,
    "OK-VQA": 10_000,
    "A-OKVQA": 20_000,
    "DocVQA": 40_000,
    "InfographicsVQA": 25_000,
    "ChartQA": 28_000,
    "Visual7W": 70_000,
    "VisDial": 130_000,
    "CIRR": 30_000,
    "VisualNews_t2i": 100_000,
    "VisualNews_i2t": 100_000,
    "MSCOCO_t2i": 100_000,
    "MSCOCO_i2t": 120_000,
    "NIGHTS": 20_000,
    "WebQA": 20_000,
    "MSCOCO": 100_000,
}
"""Rows of each subset in the recipe of VLM2Vec-V2."""


class Mmeb(FileSource):
    """One or several subsets of MMEB-train.

    A subset's files are `PATH/SUBSET/SPLIT*.parquet` (or .jsonl), as on the hub, or
    `PATH/SUBSET.parquet` (or .jsonl). Its pictures are found with their paths as they stand or
    without the leading `images/`, under `image_root`; the first pictures of the subset decide.

    Rows without a query or a target are left out and counted in `left_out`. Pictures come before
    the text of their item, so their placeholders are dropped; so are placeholders without picture.

    Args:
      path: folder of the subsets.
      subset: a name or a list of names; default: all there are.
      split: "original" or "diverse_instruction".
      image_root: default: PATH, or PATH/images where that is what fits.
      cap: rows of a subset at most, chosen by a seeded shuffle: a number, a number by subset, or
        "vlm2vec-v2" (VLM2VEC_V2_CAPS). seed: of that shuffle.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        subset: str | Sequence[str] | None = None,
        split: str = "original",
        image_root: str | os.PathLike | None = None,
        cap: int | str | Mapping[str, int] | None = None,
        seed: int = 0,
    ):
        if split not in SPLITS:
            raise CremError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        root = Path(path)
        names = [subset] if isinstance(subset, str) else list(subset or subsets_in(root))
        caps = _caps(cap, names)
        left_out: Counter[str] = Counter()
        self._subsets: list[tuple[str, Rows, str, str]] = []
        kept, starts = [], [0]
        for number, name in enumerate(names):
            rows = open_rows(subset_files(root, name, split))
            strip, base = picture_layout(rows, root, image_root)
            self._subsets.append((name, rows, base, strip))
            usable = []
            for i, row in enumerate(scan(rows, COLUMNS[:4])):
                empty = _empty_side(row)
                if empty:
                    left_out[f"{name}: the {empty} is empty"] += 1
                else:
                    usable.append(i)
            order = np.asarray(usable, np.int64)
            if name in caps and caps[name] < len(order):
                rng = np.random.default_rng([seed, number, *name.encode()])
                order = np.sort(rng.permutation(order)[: caps[name]])
            kept.append(order)
            starts.append(starts[-1] + len(order))
        self.left_out = dict(left_out)
        self._split = split
        self._kept, self._starts = np.concatenate(kept), np.asarray(starts, np.int64)

    def __len__(self) -> int:
        return len(self._kept)

    def where(self, index: int) -> str:
        number, row = self._place(index)
        return self._subsets[number][1].where(row)

    def read(self, index: int) -> Record:
        number, row = self._place(index)
        name, rows, base, strip = self._subsets[number]
        where, value = rows.where(row), self._value(number, row)

        def item(text: Any, images: Any, what: tuple[str, str]) -> Item | None:
            plain = plain_text(text_of(text, f"{where} {what[0]}"))
            paths = picture_paths(images, base, strip, f"{where} {what[1]}")
            return Item(plain, paths) if plain or paths else None

        query = item(value.get("qry"), value.get("qry_image_path"), COLUMNS[:2])
        positive = item(value.get("pos_text"), value.get("pos_image_path"), COLUMNS[2:4])
        if query is None or positive is None:
            raise EmptySideError(f"{where} has an empty {'query' if query is None else 'target'}")
        negatives = [
            item(text, image, COLUMNS[4:])
            for text, image in _pairs(value.get("neg_text"), value.get("neg_image_path"), where)
        ]
        return Record(
            id=f"{name}/{self._split}/{row}",
            query=query,
            positives=(positive,),
            negatives=tuple(negative for negative in negatives if negative),
            source=name,
        )

    def problems(self, index: int) -> list[str]:
        """Sides whose placeholders are not as many as their pictures."""
        number, row = self._place(index)
        value = self._value(number, row)
        found = []
        for side, (text, image) in {"query": COLUMNS[:2], "target": COLUMNS[2:4]}.items():
            marks = len(PLACEHOLDER.findall(value.get(text) or ""))
            pictures = len(picture_paths(value.get(image), "", "", image))
            if marks != pictures:
                found.append(f"the {side} has {marks} placeholders and {pictures} pictures")
        return found

    def _place(self, index: int) -> tuple[int, int]:
        row = int(self._kept[index])
        return int(np.searchsorted(self._starts, index, side="right")) - 1, row

    def _value(self, number: int, row: int) -> Mapping[str, Any]:
        rows = self._subsets[number][1]
        value = rows[row]
        if not isinstance(value, Mapping):
            raise RecordError(f"{rows.where(row)} is {shown(value)}; expected an object")
        missing = [key for key in COLUMNS[:4] if key not in value]
        if missing:
            raise RecordError(f"{rows.where(row)} has no column {missing[0]!r}")
        return value


def _empty_side(row: Any) -> str | None:
    """Which side of a row is empty; None too where a row is wrong in another way."""
    if not isinstance(row, Mapping):
        return None
    for side, (text, image) in {"query": COLUMNS[:2], "target": COLUMNS[2:4]}.items():
        if text not in row or not isinstance(row[text], str | None):
            continue
        images = row.get(image)
        images = images if isinstance(images, list) else [images]
        if not plain_text(row[text] or "") and not any(images):
            return side
    return None


def _pairs(texts: Any, images: Any, where: str) -> Iterator[tuple[Any, Any]]:
    """Negatives as (text, picture), from scalars or lists."""
    lists = [
        value if isinstance(value, list | tuple) else [value] if value else []
        for value in (texts, images)
    ]
    if all(lists) and len(lists[0]) != len(lists[1]):
        raise RecordError(
            f"{where} has {len(lists[0])} neg_text and {len(lists[1])} neg_image_path; expected "
            "as many"
        )
    return itertools.zip_longest(*lists)


def _caps(cap: Any, names: Sequence[str]) -> Mapping[str, int]:
    if cap is None:
        return {}
    if cap == "vlm2vec-v2":
        return VLM2VEC_V2_CAPS
    if isinstance(cap, Mapping):
        unknown = sorted(set(cap) - set(names))
        if unknown:
            raise CremError(f"cap names the subset {unknown[0]!r}; known: {', '.join(names)}")
        return dict(cap)
    if isinstance(cap, int) and not isinstance(cap, bool) and cap > 0:
        return dict.fromkeys(names, cap)
    raise CremError(f"cap is {cap!r}; expected a positive number, one by subset, or 'vlm2vec-v2'")
