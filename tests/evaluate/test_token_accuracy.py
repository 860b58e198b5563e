"""Teacher-forced token accuracy against answers that the model gives by itself."""

from __future__ import annotations

import functools
import re

import jax
import numpy as np
import pytest

import crem_jax
from crem_jax.evaluate.tokens import token_accuracy
from crem_jax.model import crem

QUESTION, STEPS = "What is it?", 5
WAYS = ({}, {"compressed": True, "k": 2}, {"compressed": True, "k": 4, "sinks": 1})


@pytest.fixture(scope="module")
def wordy(tiny_model_dir) -> crem_jax.Model:
    """A model that says nothing but whole words, so that its answers can be read back."""
    model = crem_jax.load(tiny_model_dir)
    words = [
        token
        for token in range(model.config.first_chorus_id)
        if re.fullmatch(" [a-z]{3,}", model.tokenizer.decode([token]))
    ]
    params = jax.jit(functools.partial(crem.init, model.config))(jax.random.key(8))
    table = params["backbone"]["embedding"]
    params["backbone"]["embedding"] = table.at[np.array(words)].multiply(20)
    return crem_jax.Model(model.config, params, model.tokenizer)


def test_an_answer_of_the_model_is_right_but_for_its_end_and_read_otherwise_is_not(wordy):
    rng = np.random.default_rng(0)
    shapes = [(16, 16, 3), (16, 32, 3), (32, 32, 3)]
    pictures = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    items = [{"image": picture, "text": QUESTION} for picture in pictures]
    answers = [wordy.generate(items, max_new_tokens=STEPS, **way) for way in WAYS]
    assert len({tuple(said) for said in answers}) == len(WAYS)
    whole = STEPS / (STEPS + 1)
    for said in answers:
        turns = [(QUESTION, answer) for answer in said]
        for way, own in zip(WAYS, answers, strict=True):
            score = token_accuracy(wordy, pictures, turns, **way)
            assert score == whole if own == said else score < whole, (way, said)
