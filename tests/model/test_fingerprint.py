"""A model keeps its fingerprint, and with it its libraries, when configs gain fields."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from crem_jax.config import LoRAConfig, ModelConfig, TextConfig
from crem_jax.model import crem
from crem_jax.model.fingerprint import fingerprint
from tests.support import toy

PLAIN, ADAPTED = "6bcc406b7e91e08e5518b0f5b7ad17c3", "aefdda43eebb081a9e321e654f6b6365"
"""As the version that made the first libraries gave them."""


@dataclasses.dataclass(frozen=True)
class LaterText(TextConfig):
    """A text config of a later version."""

    sliding_window: int = 0


@dataclasses.dataclass(frozen=True)
class LaterModel(ModelConfig):
    """A model config of a later version."""

    pooling: str = "chorus"
    layers_read: tuple[int, ...] = dataclasses.field(default_factory=tuple)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(lambda: crem.init(toy.config(), jax.random.key(0)))
    numbers = lambda x: np.arange(x.size, dtype=np.float32).reshape(x.shape) % 7  # noqa: E731
    return jax.tree.map(numbers, shapes)


def later(text: dict, **changes) -> LaterModel:
    config = toy.config()
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    text_fields = dataclasses.asdict(config.text) | text
    return LaterModel(**fields | {"text": LaterText(**text_fields)} | changes)


def test_fingerprints_of_existing_models_stay(params):
    assert fingerprint(toy.config(), params) == PLAIN
    adapted = toy.config(lora=LoRAConfig(2, 4.0, ("backbone/.*",)))
    assert fingerprint(adapted, params) == ADAPTED


def test_fields_of_the_first_version_count_at_their_default_too(params):
    assert fingerprint(toy.config(system_prompt="You are a helpful assistant."), params) != PLAIN


def test_a_field_added_later_counts_only_where_it_differs_from_its_default(params):
    assert fingerprint(later({}), params) == PLAIN
    changed = [
        later({}, pooling="mean"),
        later({}, layers_read=(1,)),
        later({"sliding_window": 8}),
        later({"sliding_window": 9}),
    ]
    names = {fingerprint(config, params) for config in changed}
    assert len(names) == len(changed) and PLAIN not in names
