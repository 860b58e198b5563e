"""The evaluators that a config can name (`config.evaluate`)."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from crem_jax.errors import CremError
from crem_jax.evaluate import emoji

EVALUATORS: Mapping[str, ModuleType] = {"emoji": emoji}
"""Modules with `quick(model)`, called during training, and `evaluate(model)`, for the summary."""


def evaluator(name: str) -> ModuleType:
    """The evaluator of a name.

    Raises:
      CremError: the name is unknown.
    """
    if name not in EVALUATORS:
        known = ", ".join(sorted(EVALUATORS))
        raise CremError(f"config.evaluate {name!r} is not one of {known}, or '' for none")
    return EVALUATORS[name]
