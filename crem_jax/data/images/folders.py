"""The picture files of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from crem_jax.errors import CremError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def pictures_in(folder: str | os.PathLike) -> list[Path]:
    """The picture files under a folder, subfolders and links included, hidden ones left out.

    Raises:
      FileNotFoundError, NotADirectoryError: there is no such folder.
      CremError: it has no pictures.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder of pictures")
    paths = sorted(path for path in _files(folder) if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise CremError(f"folder {folder} has no pictures ({', '.join(SUFFIXES)})")
    return paths


def _files(folder: Path) -> Iterator[Path]:
    """Regular files, each folder's once: links into the folder, or around it, are not followed."""
    root = Path(os.path.realpath(folder))
    followed: set[Path] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in [name for name in folders if os.path.islink(os.path.join(place, name))]:
            real = Path(os.path.realpath(os.path.join(place, link)))
            if root.is_relative_to(real) or real.is_relative_to(root) or real in followed:
                folders.remove(link)
            followed.add(real)
        for name in files:
            path = Path(place, name)
            if not name.startswith(".") and path.is_file():
                yield path
