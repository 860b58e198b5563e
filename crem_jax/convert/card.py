"""The model card (README.md) of an exported model, filled from its run."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2

from crem_jax.config import ConfigError, ModelConfig

KEYS = ("name", "base_model", "license", "data", "recipe", "metrics")


def model_card(config: ModelConfig, card: Mapping[str, Any] | None = None) -> str:
    """The model card: Markdown with YAML front matter.

    Args:
      card: any of `name`, `base_model`, `license` (a lower-case SPDX identifier), `data` and
        `recipe` (text, a list, or a mapping), and `metrics` (name -> number, may be nested).

    Raises:
      ConfigError: the card has an unknown key.
    """
    card = dict(card or {})
    unknown = sorted(set(card) - set(KEYS))
    if unknown:
        raise ConfigError(f"unknown key card.{unknown[0]}; known keys: {', '.join(KEYS)}")
    text = resources.files("crem_jax").joinpath("assets/model_card.md.jinja").read_text("utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(text).render(
        config=config,
        backbone={"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL"}[config.vision.style],
        name=card.get("name", "CREM"),
        base_model=card.get("base_model"),
        license=card.get("license", "apache-2.0"),
        data=_lines(card.get("data")),
        recipe=_lines(card.get("recipe")),
        metrics=_figures(card.get("metrics") or {}),
    )


def _lines(value: Any) -> list[str]:
    if not value:
        return []
    if isinstance(value, Mapping):
        return [f"{key}: {entry}" for key, entry in value.items()]
    return [value] if isinstance(value, str) else [str(entry) for entry in value]


def _figures(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            rows += _figures(value, f"{prefix}{key}/")
        else:
            rows.append(
                (f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value))
            )
    return rows
