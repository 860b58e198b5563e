"""Where MMEB-train's rows and pictures are in a folder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crem_jax.data.sources.rows import JsonLines, ParquetRows, Rows, scan

COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path")
SPLITS = ("original", "diverse_instruction")
_SUFFIXES = (".parquet", ".jsonl")
_LAYOUT_ROWS = 32


def subsets_in(root: Path) -> list[str]:
    """The names of the subsets in a folder.

    Raises:
      FileNotFoundError, ValueError: there is no such folder, or nothing in it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"folder {root} does not exist")
    names = {p.stem for p in root.iterdir() if p.suffix in _SUFFIXES}
    names |= {p.parent.name for p in root.glob(f"*/{SPLITS[0]}*") if p.suffix in _SUFFIXES}
    names |= {p.parent.name for p in root.glob(f"*/{SPLITS[1]}*") if p.suffix in _SUFFIXES}
    if not names:
        raise ValueError(
            f"{root} has no subsets: neither SUBSET.parquet nor SUBSET/{SPLITS[0]}*.parquet "
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
    known = ", ".join(subsets_in(root))
    raise FileNotFoundError(
        f"{root} has no subset {name!r} with split {split!r} (no {name}/{split}*.parquet, "
        f"{name}.parquet, or .jsonl); subsets there: {known}"
    )


def open_rows(files: list[Path]) -> Rows:
    """The rows of a subset's files, one after the other."""
    if files[0].suffix == ".parquet":
        return ParquetRows(files, COLUMNS)
    if len(files) > 1:
        raise ValueError(f"{files[0]}: one .jsonl file a split is read, not {len(files)}")
    return JsonLines(files[0])


def picture_layout(rows: Rows, root: Path, image_root: Any) -> tuple[str, str]:
    """(what to strip from the beginning of the picture paths, where they are then)."""
    bases = [Path(image_root)] if image_root is not None else [root, root / "images"]
    paths: list[str] = []
    for row in itertools.islice(scan(rows, COLUMNS[:4]), _LAYOUT_ROWS):
        if isinstance(row, Mapping):
            for key in ("qry_image_path", "pos_image_path"):
                value = row.get(key)
                values = value if isinstance(value, list) else [value]
                paths += [v for v in values if isinstance(v, str) and v.strip()]
    for base, strip in itertools.product(bases, ("", "images/")):
        if any(os.path.isfile(base / path.removeprefix(strip)) for path in paths):
            return strip, os.fspath(base)
    return "", os.fspath(bases[0])
