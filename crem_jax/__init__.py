"""crem_jax: compression-aware retrieval and generation, TPU-first (CREM, arXiv 2602.19091).

    model = crem_jax.load("runs/quickstart")
    model.encode(["a tiger", pil_image, {"image": pil_image, "text": "the one on the left"}])
    model.generate([{"image": pil_image, "text": "What is this?"}], compressed=True)

Importing this is quick: JAX is loaded with the first name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crem_jax.errors import CremError
    from crem_jax.inference.model import Model, load

    __version__: str

_PLACES = {
    "CremError": "crem_jax.errors",
    "Model": "crem_jax.inference.model",
    "load": "crem_jax.inference.model",
}

__all__ = ["CremError", "Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("crem_jax")
        except metadata.PackageNotFoundError:  # run from a checkout without `pip install`
            return "0+checkout"
    raise AttributeError(f"module 'crem_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
