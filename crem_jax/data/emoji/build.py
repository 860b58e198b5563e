"""Rebuilds the packaged emoji data set from a folder of `emoji.jsonl` and 96x96 PNG pictures.

    python -m crem_jax.data.emoji.build SOURCE_DIR OUT_DIR

writes the tensorflow-datasets directory `OUT_DIR/emoji/1.0.0` (ArrayRecord; no TensorFlow needed)
with the same records in the same order each time. The pictures keep their palette, which takes half
the bytes of true colour; read them with `tfds.decode.SkipDecoding` and PIL, as `sources/emoji.py`
does.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from crem_jax.errors import CremError

SPLITS = ("train", "heldout")
DESCRIPTION = (
    "96x96 palette PNG pictures of emoji on white, with their Unicode names, groups and CLDR "
    "keywords. `heldout` holds skin-tone variants of concepts that `train` has in other tones."
)
HOMEPAGE = "https://github.com/googlefonts/noto-emoji"


class EmojiBuilder(tfds.core.GeneratorBasedBuilder):
    """The tfds builder; `source_dir` is the folder with `emoji.jsonl` and `images/`."""

    __module__ = "crem_jax.data.emoji.build"  # also under `python -m`: tfds records it
    code_path = None  # nothing is downloaded, so tfds need not look for checksums beside the code
    name = "emoji"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, source_dir: str | Path, data_dir: str | Path):
        self._source_dir = Path(source_dir)
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            homepage=HOMEPAGE,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(96, 96, 3), encoding_format="png"),
                    "emoji": tfds.features.Text(),
                    "name": tfds.features.Text(),
                    "group": tfds.features.Text(),
                    "subgroup": tfds.features.Text(),
                    "keywords": tfds.features.Sequence(tfds.features.Text()),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        lines = (self._source_dir / "emoji.jsonl").read_text(encoding="utf-8").splitlines()
        for key, line in enumerate(lines):
            row = json.loads(line)
            if row["split"] not in SPLITS:
                raise CremError(
                    f"emoji.jsonl line {key + 1}: split is {row['split']!r}, "
                    f"expected one of {SPLITS}"
                )
            if row["split"] == split:
                example = {k: row[k] for k in ("emoji", "name", "group", "subgroup", "keywords")}
                example["image"] = io.BytesIO(repack(self._source_dir / row["image"]))
                yield key, example


def repack(path: Path) -> bytes:
    """The PNG at `path` re-encoded without loss or metadata; refuses any size but 96x96."""
    with Image.open(path) as image:
        if image.size != (96, 96):
            raise CremError(f"{path}: the picture is {image.size}, expected (96, 96)")
        image.info.clear()
        out = io.BytesIO()
        image.save(out, "PNG", optimize=True)
    return out.getvalue()


def main(source_dir: str, out_dir: str) -> Path:
    """Builds the data set and returns its directory."""
    builder = EmojiBuilder(source_dir, out_dir)
    with tempfile.TemporaryDirectory() as unused:  # tfds wants a folder, though nothing is fetched
        builder.download_and_prepare(download_dir=unused)
    return Path(builder.data_dir)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m crem_jax.data.emoji.build SOURCE_DIR OUT_DIR")
    print(main(sys.argv[1], sys.argv[2]))
