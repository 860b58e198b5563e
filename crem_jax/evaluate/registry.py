"""Names of the worlds a model may be measured in (`config.evaluate`)."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from crem_jax.errors import CremError
from crem_jax.evaluate import emoji

EVALUATORS: Mapping[str, ModuleType] = {"emoji": emoji}
"""Each has `quick(model)`, for the curve of training, and `evaluate(model)`, for the summary."""


def evaluator(name: str) -> ModuleType:
    """Raises CremError for an unknown name."""
    if name not in EVALUATORS:
        known = ", ".join(sorted(EVALUATORS))
        raise CremError(f"config.evaluate {name!r} is not one of {known}, or '' for none")
    return EVALUATORS[name]
