"""Where MMEB's rows and pictures are in a folder, and how both are written there."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crem_jax.data.sources.formats.fields import paths_of, text_of
from crem_jax.data.sources.formats.file_rows import JsonLines, ParquetRows, Rows, scan
from crem_jax.errors import CremError

COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path")
SPLITS = ("original", "diverse_instruction")
PLACEHOLDER = re.compile(r"<\|image_\d+\|>|<\|image_pad\|>")

_SUFFIXES = (".parquet", ".jsonl")
_LAYOUT_ROWS = 32


def subsets_in(root: Path, splits: Sequence[str] = SPLITS) -> list[str]:
    """The names of the subsets in a folder that have one of the splits.

    Raises:
      FileNotFoundError, CremError: there is no such folder, or nothing in it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"folder {root} does not exist")
    names = {p.stem for p in root.iterdir() if p.suffix in _SUFFIXES}
    for split in splits:
        names |= {p.parent.name for p in root.glob(f"*/{split}*") if p.suffix in _SUFFIXES}
    if not names:
        raise CremError(
            f"{root} has no subsets: neither SUBSET.parquet nor SUBSET/{splits[0]}*.parquet "
            "(or .jsonl)"
        )
    return sorted(names)


def subset_files(root: Path, name: str, split: str) -> list[Path]:
    """The files of a subset, in order."""
    for suffix in _SUFFIXES:
        files = sorted((root / name).glob(f"{split}*{suffix}"))
        if not files and (root / f"{name}{suffix}").is_file():
            files = [root / f"{name}{suffix}"]
        if files:
            return files
    known = ", ".join(subsets_in(root, SPLITS if split in SPLITS else (split,)))
    raise FileNotFoundError(
        f"{root} has no subset {name!r} with split {split!r} (no {name}/{split}*.parquet, "
        f"{name}.parquet, or .jsonl); subsets there: {known}"
    )


def open_rows(files: list[Path], columns: Sequence[str] = COLUMNS) -> Rows:
    """The rows of a subset's files, one after the other."""
    if files[0].suffix == ".parquet":
        return ParquetRows(files, columns)
    if len(files) > 1:
        raise CremError(f"{files[0]}: one .jsonl file a split is read, not {len(files)}")
    return JsonLines(files[0])


def picture_layout(
    rows: Rows, root: Path, image_root: Any, columns: Sequence[str] = (COLUMNS[1], COLUMNS[3])
) -> tuple[str, str]:
    """(what to strip from the beginning of the picture paths, where they are then).

    Args:
      columns: those that hold paths.
    """
    bases = [Path(image_root)] if image_root is not None else [root, root / "images"]
    paths: list[str] = []
    for row in itertools.islice(scan(rows, columns), _LAYOUT_ROWS):
        if isinstance(row, Mapping):
            for key in columns:
                value = row.get(key)
                values = value if isinstance(value, list) else [value]
                paths += [v for v in values if isinstance(v, str) and v.strip()]
    for base, strip in itertools.product(bases, ("", "images/")):
        if any(os.path.isfile(base / path.removeprefix(strip)) for path in paths):
            return strip, os.fspath(base)
    return "", os.fspath(bases[0])


def picture_paths(value: Any, base: str, strip: str, where: str) -> tuple[str, ...]:
    """The files that a path, a list of paths or None names; `picture_layout` gives base and strip.

    Raises:
      RecordError: it is neither.
    """
    values = value if isinstance(value, list | tuple) else [value]
    plain = [text_of(path, where).strip().removeprefix(strip) for path in values]
    return paths_of(plain, base, where)


def plain_text(text: str) -> str:
    """A text without its placeholders: pictures come before the text of their item."""
    return PLACEHOLDER.sub("", text).strip() if "<|" in text else text.strip()
