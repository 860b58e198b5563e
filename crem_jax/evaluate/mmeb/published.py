"""Published means on MMEB, for comparison: CREM (arXiv 2602.19091), Table 1. In percent."""

from __future__ import annotations

from collections.abc import Mapping

from crem_jax.evaluate.mmeb.summary import MEANS

_FIGURES = {
    "CREM-2B": (66.7, 65.8, 60.7, 68.3, 78.9, 70.8, 61.5),
    "CREM-7B": (72.1, 68.3, 69.4, 72.9, 86.1, 75.6, 67.8),
    "VLM2Vec-V2-2B": (64.9,),
    "UNITE-7B": (70.3,),
}

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    name: dict(zip(MEANS, figures, strict=False)) for name, figures in _FIGURES.items()
}
"""Model -> its means by name (`summary.MEANS`); unpublished ones are absent."""
