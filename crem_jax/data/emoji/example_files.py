"""The packaged emoji in the formats that `crem train` reads: examples to look at and to train on.

    python -m crem_jax.data.emoji.example_files OUT

writes, from the pictures of the training split,

    OUT/photos/*.png    the pictures, and
    OUT/pairs.jsonl     their names, near misses, questions and answers; docs/data.md: the schema
    OUT/mmeb            two subsets in the format of MMEB-train
    OUT/talk.json       conversations in the format of ShareGPT-4V
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from crem_jax.data.emoji.emoji import WHAT, WHICH_GROUP, EmojiPictures, same_picture_names
from crem_jax.data.images.encoded import file_bytes
from crem_jax.files import write_json, write_lines

SIZE = 96
PICTURE_SUBSET, NAME_SUBSET = "Emoji_i2t", "Emoji_t2i"
_MARK = "<|image_1|>\n"
_FIND_NAME, _FIND_PICTURE = "Find the name of the emoji.", "Find the emoji:"
_REPRESENT = "Represent the given image."
_NEGATIVES = 2
_TEXT_ONLY = 10  # one conversation in so many has no picture


def write(out: str | os.PathLike, count: int | None = None) -> Path:
    """Writes all formats and returns the folder.

    Args:
      count: only the first so many pictures.
    """
    out, pictures = Path(out), EmojiPictures("train", SIZE)
    indices = range(len(pictures) if count is None else min(count, len(pictures)))
    folders = out / "photos", out / "mmeb" / "images" / PICTURE_SUBSET / "Train"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    names = {i: f"{pictures[i].codepoints}.png" for i in indices}
    for i in indices:
        data = file_bytes(pictures.draw(i))
        for folder in folders:
            (folder / names[i]).write_bytes(data)
    alike = _look_alikes(pictures, set(indices))
    pairs = [_pair(pictures, i, names, alike) for i in indices]
    write_lines(out / "pairs.jsonl", pairs)
    talks = [_talk(pictures, i, names) for i in indices]
    write_json(out / "talk.json", talks)
    _write_mmeb(out / "mmeb", pictures, names, alike)
    return out


def _look_alikes(pictures: EmojiPictures, among: set[int]) -> dict[int, list[int]]:
    """Others of the same cluster whose names do not describe the picture too."""
    alike: dict[int, list[int]] = defaultdict(list)
    for cluster in pictures.clusters():
        for i, j in itertools.permutations([int(i) for i in cluster if int(i) in among], 2):
            true = same_picture_names(pictures[i])
            if pictures[j].name not in true and len(alike[i]) < _NEGATIVES:
                alike[i].append(j)
    return alike


def _pair(pictures: EmojiPictures, i: int, names: dict[int, str], alike: Any) -> dict[str, Any]:
    emoji = pictures[i]
    return {
        "id": emoji.codepoints,
        "image": f"photos/{names[i]}",
        "text": list(same_picture_names(emoji)),
        "negatives": [pictures[j].name for j in alike[i]],
        "turns": [{"question": WHAT, "answer": emoji.name}],
    }


def _talk(pictures: EmojiPictures, i: int, names: dict[int, str]) -> dict[str, Any]:
    emoji = pictures[i]
    if i % _TEXT_ONLY == 0:
        said = [f"{WHICH_GROUP} {emoji.name}", emoji.group]
        return {"id": emoji.codepoints, "conversations": _messages(said)}
    first = f"<image>\n{WHAT}" if i % 2 else f"{WHAT}\n<image>"
    said = [first, emoji.name, WHICH_GROUP, emoji.group]
    return {
        "id": emoji.codepoints,
        "image": f"photos/{names[i]}",
        "conversations": _messages(said),
    }


def _messages(said: list[str]) -> list[dict[str, str]]:
    return [
        {"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(said)
    ]


def _write_mmeb(root: Path, pictures: EmojiPictures, names: dict[int, str], alike: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def path(i: int) -> str:
        return f"images/{PICTURE_SUBSET}/Train/{names[i]}"

    rows: dict[str, list[dict[str, Any]]] = {PICTURE_SUBSET: [], NAME_SUBSET: []}
    for i in names:
        name, others = pictures[i].name, alike[i]
        rows[PICTURE_SUBSET].append(
            {
                "qry": f"{_MARK}{_FIND_NAME}\n",
                "qry_image_path": path(i),
                "pos_text": name,
                "pos_image_path": "",
                "neg_text": [pictures[j].name for j in others],
                "neg_image_path": ["" for _ in others],
            }
        )
        rows[NAME_SUBSET].append(
            {
                "qry": f"{_FIND_PICTURE} {name}",
                "qry_image_path": "",
                "pos_text": f"{_MARK}{_REPRESENT}\n",
                "pos_image_path": path(i),
                "neg_text": f"{_MARK}{_REPRESENT}\n" if others else "",
                "neg_image_path": path(others[0]) if others else "",
            }
        )
    for subset, values in rows.items():
        (root / subset).mkdir(parents=True, exist_ok=True)
        file = root / subset / "original-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(values), file, row_group_size=1000)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m crem_jax.data.emoji.example_files OUT")
    print(write(sys.argv[1]))
