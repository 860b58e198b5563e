"""CremEncoder as mteb calls it: batches of columns, prompts by task, texts of any length."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from mteb.types import PromptType
from PIL import Image

from crem_jax.evaluate.mteb import CremEncoder
from crem_jax.inference.model import Model, load
from tests.support import mteb_tasks

TASK = mteb_tasks.MockRetrievalTask.metadata
PICTURE = Image.new("RGB", (32, 16), "teal")


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return load(tiny_model_dir)


def encode(encoder: CremEncoder, *batches: dict, prompt_type=None) -> np.ndarray:
    return encoder.encode(
        batches, task_metadata=TASK, prompt_type=prompt_type, show_progress_bar=False
    )


def test_batches_come_back_in_order_as_texts_pictures_and_both(model):
    encoder = CremEncoder(model, "my/model", k=2)
    got = [
        encode(encoder, {"text": ["a", "b"], "id": ["1", "2"]}, {"text": ["c"], "id": ["3"]}),
        encode(encoder, {"image": [PICTURE]}),
        encode(encoder, {"image": [PICTURE, None], "text": ["old", "new"]}),
    ]
    given = ["a", "b", "c", PICTURE, {"image": PICTURE, "text": "old"}, "new"]
    np.testing.assert_allclose(np.concatenate(got), model.encode(given, k=2), atol=1e-6)
    assert encode(encoder).shape == (0, 32)
    with pytest.raises(ValueError, match="neither 'text' nor 'image', only audio"):
        encode(encoder, {"audio": [0]})


def test_prompts_go_in_front_of_the_text_of_what_they_are_for(model):
    encoder = CremEncoder(model, "my/model", prompts={"query": "find: "})
    batch = {"image": [PICTURE, None], "text": ["", "a"]}
    asked = encode(encoder, batch, prompt_type=PromptType.query)
    given = [{"image": PICTURE, "text": "find: "}, "find: a"]
    np.testing.assert_allclose(asked, model.encode(given), atol=1e-6)
    plain = encode(encoder, batch, prompt_type=PromptType.document)
    np.testing.assert_allclose(plain, model.encode([PICTURE, "a"]), atol=1e-6)
    assert encoder.mteb_model_meta.use_instructions
    with pytest.raises(KeyError, match="Task name querry is not valid"):
        CremEncoder(model, "my/model", prompts={"querry": "find: "})


def test_a_text_beyond_the_positions_loses_its_end(model):
    texts = ["word " * 300, "虎" * 300, "\n \n" * 300]
    for text in texts:
        with pytest.raises(ValueError, match="positions"):
            model.encode([text + "x"])
    encoder = CremEncoder(model, "my/model")
    one = encode(encoder, {"text": [text + "x" for text in texts]})
    two = encode(encoder, {"text": [text + "y" for text in texts]})
    np.testing.assert_allclose(one, two, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    assert np.abs(one[0] - one[1]).max() > 1e-3


def test_an_empty_text_is_the_bare_prompt(model):
    empty, blank, some = encode(CremEncoder(model, "my/model"), {"text": ["", " \n", "a"]})
    np.testing.assert_allclose(empty, blank, atol=1e-6)
    assert np.abs(empty - some).max() > 1e-3


def test_the_meta_tells_the_model_and_its_revision_the_weights(model):
    meta = CremEncoder(model, "my/model", k=2, license="apache-2.0").mteb_model_meta
    assert meta.framework == ["JAX"] and meta.modalities == ["image", "text"]
    assert (meta.embed_dim, meta.max_tokens, meta.license) == (32, 128, "apache-2.0")
    assert meta.n_parameters == sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert meta.n_embedding_parameters == 2048 * 32
    assert meta.experiment_kwargs == {"k": 2}
    params = jax.tree.map(lambda leaf: leaf, model.params)
    params["backbone"]["embedding"] = params["backbone"]["embedding"].at[5, 5].add(0.1)
    other = CremEncoder(Model(model.config, params, model.tokenizer), "my/model")
    assert other.mteb_model_meta.revision != meta.revision
    assert CremEncoder(model, "a/b").mteb_model_meta.revision == meta.revision


def test_bad_arguments_are_told_at_once(model):
    with pytest.raises(ValueError, match="organization/model_name"):
        CremEncoder(model, "model")
    with pytest.raises(ValueError, match=r"k = 9 is not in 1\.\.4"):
        CremEncoder(model, "my/model", k=9)
    plain = Model(model.config.replace(num_chorus=0), model.params, model.tokenizer)
    with pytest.raises(ValueError, match="no chorus tokens"):
        CremEncoder(plain, "my/model")
