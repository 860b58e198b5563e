"""crem_jax: compression-aware retrieval and generation, TPU-first (CREM, arXiv 2602.19091).

    model = crem_jax.load("runs/quickstart")
    model.encode(["a tiger", pil_image, {"image": pil_image, "text": "the one on the left"}])
    model.generate([{"image": pil_image, "text": "What is this?"}], compressed=True)

Importing this is quick: JAX is loaded with the first name that needs it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("load", "Model"):
        from crem_jax.inference import model as api

        return getattr(api, name)
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("crem_jax")
        except metadata.PackageNotFoundError:  # run from a checkout without `pip install`
            return "0+checkout"
    raise AttributeError(f"module 'crem_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
