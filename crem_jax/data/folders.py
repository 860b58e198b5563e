"""The picture files of a folder."""

from __future__ import annotations

import os
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def pictures_in(folder: str | os.PathLike) -> list[Path]:
    """The picture files under a folder, subfolders included, hidden ones left out.

    Raises:
      FileNotFoundError, NotADirectoryError: there is no such folder.
      ValueError: it has no pictures.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder of pictures")
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not paths:
        raise ValueError(f"folder {folder} has no pictures ({', '.join(SUFFIXES)})")
    return paths
