"""A run that starts from weights: its model, its tokenizer, and what it refuses."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

from crem_jax import trees
from crem_jax.checkpoints.model_directory import load_config, load_model, save_model_files
from crem_jax.config import ConfigError
from crem_jax.convert.huggingface import export_hf, read_tokenizer
from crem_jax.inference import decoding
from crem_jax.inference import model as api
from crem_jax.inference.sampling import Sampling
from crem_jax.train import layout
from crem_jax.train.loop import train
from crem_jax.train.setup import make_parts
from tests.support import toy
from tests.support.tiny_run import tiny_config


def config_from(directory, steps: int = 2, **lora):
    """`tiny_config` started from a model directory, its shape left to that."""
    config = tiny_config(steps)
    config.model = dict(temperature=0.2, dtype="float32")
    if lora:
        config.model.lora = lora
    config.init_from = str(directory)
    config.optim.lr = 1e-3
    return config


LORA = dict(rank=2, alpha=4.0, targets=(r"backbone/layers/(q|v)/kernel",))


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_model_dir):
    """A directory of its own, so that it can be taken away."""
    return shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def run(tmp_path_factory, source):
    """Two steps of adapters on the weights of a directory, after which that is gone."""
    workdir = tmp_path_factory.mktemp("run") / "lora"
    model = train(config_from(source, **LORA), workdir)
    source.rename(source.with_name("elsewhere"))
    return workdir, model, source.with_name("elsewhere")


def first_params(config, parts):
    mesh = layout.meshes.make_mesh(layout.mesh_shape(config.mesh, jax.device_count()))
    abstract = layout.abstract_state(parts, mesh)
    return layout.first_state(parts, abstract, parts.weights, jax.random.key(0)).params


def test_the_first_state_holds_the_weights_of_the_directory(tiny_model_dir):
    config = config_from(tiny_model_dir, **LORA)
    config.optim.frozen_dtype = "bfloat16"
    parts = make_parts(config)
    assert parts.model.temperature == 0.2
    assert parts.model.num_chorus == load_config(tiny_model_dir).num_chorus
    got = trees.flatten(first_params(config, parts))
    for path, weights in trees.flatten(load_model(tiny_model_dir)[1]).items():
        np.testing.assert_array_equal(got[path], weights.astype("bfloat16"), err_msg=path)
    adapters = {path for path in got if "lora" in path or "delta" in path}
    assert len(adapters) == 5
    assert all(got[path].dtype == "float32" for path in adapters)


def test_adapters_train_and_what_they_adapt_stays(run):
    _, model, source = run
    got, start = trees.flatten(model.params), trees.flatten(load_model(source)[1])
    for path, weights in start.items():
        np.testing.assert_array_equal(got[path], weights, err_msg=path)
    moved = [path for path in got if path not in start and np.abs(got[path]).max() > 0]
    assert len(moved) == 5


def test_an_opened_run_has_its_adapters_merged_and_embeds_the_same(run):
    workdir, model, _ = run
    opened = api.load(workdir, "last")
    assert opened.config.lora is None
    assert not [path for path in trees.flatten(opened.params) if "lora" in path]
    texts = ["two cats", "rain"]
    np.testing.assert_allclose(opened.encode(texts), model.encode(texts), atol=1e-5)


def test_a_run_that_has_begun_needs_its_source_no_more(run):
    workdir, _, source = run
    longer = config_from(source.with_name("model"), **LORA)
    again = train(longer, workdir)
    assert again.config.lora is not None
    with pytest.raises(FileNotFoundError, match=r"config\.init_from .* is no directory; expected"):
        train(longer, workdir.with_name("new"))


def test_a_run_writes_what_it_was_made_with_and_its_parameters(run):
    workdir, _, _ = run
    recipe = json.loads((workdir / "recipe.json").read_text())
    (start, *_) = recipe["made_with"]
    assert recipe["optim"]["lr"] == 1e-3
    assert {"jax", "flax", "python"} <= set(start["versions"])
    assert start["data"]["toy"]["records"] == len(toy.Toy())
    assert start["from_step"] == 0
    table = (workdir / "parameters.txt").read_text()
    assert table.count("frozen") == len(trees.flatten(load_model(run[2])[1]))
    assert "compressor/chorus_delta" in table


def test_a_shape_other_than_that_of_the_weights_is_refused(tiny_model_dir):
    config = config_from(tiny_model_dir)
    config.model.text = dict(hidden_size=64, num_heads=2)
    with pytest.raises(ConfigError, match=r"text\.hidden_size is 32, config\.model says 64"):
        make_parts(config)
    config.model.text, config.model.num_chorus = {}, 8
    with pytest.raises(ConfigError, match=r"num_chorus is 4, config\.model says 8"):
        make_parts(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("system_promt", "x", r"unknown key model\.system_promt; .* mean model\.system_prompt\?"),
        ("pad_token_id", 3, r"unknown key model\.pad_token_id; known keys: attention, chorus_"),
        ("lora", {**LORA, "dropout": 0.1}, r"unknown key model\.lora\.dropout; known keys"),
    ],
)
def test_a_key_that_would_say_nothing_is_refused_by_name(tiny_model_dir, key, value, message):
    config = config_from(tiny_model_dir)
    config.model[key] = value
    with pytest.raises(ConfigError, match=message):
        make_parts(config)


def test_the_system_prompt_of_the_section_is_that_of_the_run(tiny_model_dir, tmp_path):
    config = config_from(tiny_model_dir)
    config.model.system_prompt = "You are 'terse'."
    parts = make_parts(config)
    assert parts.model.system_prompt == "You are 'terse'."
    save_model_files(tmp_path, parts.model, parts.tokenizer)
    said = read_tokenizer(tmp_path / "tokenizer").apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False
    )
    assert "You are 'terse'." in said


def test_a_token_that_exists_may_stand_for_the_chorus(tiny_model_dir, tmp_path):
    config = tiny_config()
    config.model.chorus_token, config.model.num_chorus = "<|im_end|>", 1
    model, tokenizer = (parts := make_parts(config)).model, parts.tokenizer
    assert model.chorus_ids == (model.eos_token_id,)
    params = layout.fresh_state(parts, jax.random.key(0)).params
    own = api.Model(model, params, tokenizer)
    assert own.encode(["a tiger"]).shape == (1, model.text.hidden_size)
    hidden = np.zeros((1, model.text.hidden_size), np.float32)
    greedy = Sampling()
    table = np.zeros_like(params["backbone"]["embedding"])
    table[model.eos_token_id] = 1
    said = {**params, "backbone": {**params["backbone"], "embedding": table}}
    assert decoding._choose(model, said, hidden + 1, greedy, 0) == model.eos_token_id
    with pytest.raises(ConfigError, match="reads the token that ends a turn"):
        export_hf(model, params, tokenizer, tmp_path / "out")
    for token, count, reason in (("<|no|>", 1, "is no token"), ("<|im_end|>", 2, "num_chorus = 1")):
        config.model.chorus_token, config.model.num_chorus = token, count
        with pytest.raises(ConfigError, match=reason):
            make_parts(config)
