"""A small MMEB made of the packaged emoji, in MMEB-eval's format, to try `crem eval mmeb` on.

    python -m crem_jax.evaluate.mmeb.emoji_data OUT
    crem eval mmeb MODEL --data OUT

writes all 36 data sets, alternating between the two layouts (instructions in the texts or in their
own columns) and between parquet and JSONL. Only names, meta-tasks and formats are MMEB's: scores
are not comparable.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crem_jax.data.emoji.emoji import EmojiPictures
from crem_jax.data.images.encoded import file_bytes
from crem_jax.evaluate.mmeb.datasets import (
    CLASSIFICATION,
    DATASETS,
    GROUNDING,
    VQA,
    Dataset,
)
from crem_jax.files import write_lines

_MARK = "<|image_1|>\n"
_WORDS_ALONE = ("VisDial", "VisualNews_t2i", "MSCOCO_t2i", "WebQA", "EDIS", "Wiki-SS-NQ")
_BOTH = ("WebQA", "EDIS", "OVEN", "RefCOCO-Matching")
"""Data sets whose queries are text, and those whose targets are a picture with text."""


def write(
    out: str | os.PathLike,
    datasets: Sequence[Dataset] = DATASETS,
    queries: int = 12,
    candidates: int = 20,
    sizes: Sequence[tuple[int, int]] = ((48, 48), (72, 72), (96, 96)),
) -> Path:
    """Writes small data sets in MMEB-eval's format, and returns their folder.

    Data sets of one family (ImageNet-1K, ImageNet-A) use the same pictures, as MMEB's do.

    Args:
      queries: number of queries per data set. candidates: number of candidates per query.
      sizes: (width, height) of the pictures in pixels, in turn.
    """
    out, pictures = Path(out), EmojiPictures("train", 96)
    files = _Pictures(out, pictures, sizes)
    for number, dataset in enumerate(datasets):
        family, rng = re.split("[-_]", dataset.name)[0], np.random.default_rng(number)
        own = np.random.default_rng([*family.encode()])
        pool = own.choice(len(pictures), 2 * candidates, replace=False)
        rows = []
        for _ in range(queries):
            chosen = rng.choice(pool, candidates, replace=False)
            rows.append(_row(files, dataset, [int(i) for i in chosen], number % 2 == 1))
        _write_rows(out / dataset.name, rows, number % 3)
    return out


class _Pictures:
    """Emoji pictures, written to files on first use."""

    def __init__(self, out: Path, emoji: EmojiPictures, sizes: Sequence[tuple[int, int]]):
        self._out, self.emoji, self._sizes = out / "images", emoji, sizes

    def file(self, index: int) -> str:
        """The path of emoji number `index`, as rows refer to it."""
        name = f"emoji/{self.emoji[index].codepoints}.png"
        path = self._out / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(self.emoji.draw(index))
            path.write_bytes(file_bytes(image.resize(self._sizes[index % len(self._sizes)])))
        return name


def _row(files: _Pictures, dataset: Dataset, chosen: list[int], beside: bool) -> dict[str, Any]:
    """A row whose target is `chosen[0]`. beside: instructions have their own columns."""
    name, pictures = dataset.name, files.emoji
    target = pictures[chosen[0]]
    finds_text = dataset.task in (CLASSIFICATION, VQA) or name.endswith("_i2t")
    instruction, question = "Represent the given image for classification", ""
    if dataset.task == VQA:
        instruction = "Represent the given image with the following question:"
        question = f"Which one of {target.group} is this?"
    elif not finds_text:
        instruction, question = "Find the emoji:", target.name
        if dataset.task == GROUNDING:
            instruction = "Select the portion of the image that isolates the object:"
    asks_alone = name in _WORDS_ALONE
    target_instruction = "" if finds_text else "Represent the given image."
    own = [pictures[i].name if finds_text or name in _BOTH else "" for i in chosen]
    paths = ["" if finds_text else files.file(i) for i in chosen]
    row = {
        "qry_text": question,
        "qry_img_path": "" if asks_alone else files.file(chosen[0]),
        "tgt_text": own,
        "tgt_img_path": paths,
    }
    lead = "" if asks_alone else _MARK
    ahead = _MARK if target_instruction else ""
    if beside:
        return {
            **row,
            "qry_inst": f"{lead}{instruction}",
            "tgt_inst": f"{ahead}{target_instruction}",
        }
    row["qry_text"] = f"{lead}{instruction} {question}\n"
    row["tgt_text"] = [
        f"{ahead}{target_instruction} {text}\n" if target_instruction else text for text in own
    ]
    return row


def _write_rows(folder: Path, rows: list[dict[str, Any]], form: int) -> None:
    if form == 0:
        write_lines(folder.with_name(f"{folder.name}.jsonl"), rows)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    half = len(rows) // form  # form 2: two files
    for number, part in enumerate((rows[:half], rows[half:])[:form]):
        file = folder / f"test-{number:05d}-of-{form:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(part), file)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m crem_jax.evaluate.mmeb.emoji_data OUT")
    print(write(sys.argv[1]))
