"""Libraries: stored embeddings and chorus memories of images and texts, to search and to ask.

library = crem_jax.library.open("photos.crem")
hits = library.find(model, "a tiger", top=5)
library.ask(model, [hit.entry.id for hit in hits], "What is this?")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crem_jax.library.entry import Entry, Hit, LibraryError, LibraryInfo
    from crem_jax.library.library import Library, create, is_library, open

_PLACES = {
    "library": ("Library", "create", "is_library", "open"),
    "entry": ("LibraryInfo", "Entry", "Hit", "LibraryError"),
}

__all__ = ["Entry", "Hit", "Library", "LibraryError", "LibraryInfo", "create", "is_library", "open"]


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"crem_jax.library.{module}"), name)
    raise AttributeError(f"module 'crem_jax.library' has no attribute {name!r}")
