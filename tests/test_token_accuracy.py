"""Teacher-forced token accuracy against answers that the model gives by itself."""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np
import pytest

import crem_jax
from crem_jax.evaluate.tokens import token_accuracy

QUESTION, STEPS = "What is it?", 5


@pytest.fixture(scope="module")
def wordy(tiny_model_dir) -> crem_jax.Model:
    """A model that says nothing but whole words, so that its answers can be read back."""
    model = crem_jax.load(tiny_model_dir)
    words = [
        token
        for token in range(model.config.first_chorus_id)
        if re.fullmatch(" [a-z]{3,}", model.tokenizer.decode([token]))
    ]
    embedding = np.array(model.params["backbone"]["embedding"])
    embedding[words] *= 20
    backbone = {**model.params["backbone"], "embedding": jnp.asarray(embedding)}
    return crem_jax.Model(model.config, {**model.params, "backbone": backbone}, model.tokenizer)


def test_an_answer_of_the_model_is_right_but_for_its_end_and_read_otherwise_is_not(wordy):
    rng = np.random.default_rng(0)
    shapes = [(16, 16, 3), (16, 32, 3), (32, 32, 3)]
    pictures = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    items = [{"image": picture, "text": QUESTION} for picture in pictures]
    ways = ({}, {"compressed": True, "k": 2}, {"compressed": True, "k": 4, "sinks": 1})
    for way in ways:
        said = wordy.generate(items, max_new_tokens=STEPS, **way)
        turns = [(QUESTION, answer) for answer in said]
        scores = [token_accuracy(wordy, pictures, turns, **other) for other in ways]
        expected = [
            STEPS / (STEPS + 1) if other is way else pytest.approx(0.4, abs=0.4) for other in ways
        ]
        assert scores == expected, said
