"""The recipes of real sizes: their options, their shapes, and what of them trains."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from crem_jax import trees
from crem_jax.commands.recipe import read_recipe
from crem_jax.configs.schema import TrainConfig
from crem_jax.configs.schema.loss import LossConfig
from crem_jax.flops import Flops, training_passes
from crem_jax.mesh import AXES
from crem_jax.model import crem
from crem_jax.train import layout
from crem_jax.train.optim import make_optimizer
from crem_jax.train.run.parameter_table import parameter_table
from crem_jax.train.setup import make_objective

CONFIGS = Path(__file__).parents[2] / "configs"


def objective(name: str, *flags: str):
    return make_objective(read_recipe(str(CONFIGS / name), flags))


@pytest.mark.parametrize(
    ("name", "parameters"), [("qwen2_vl_2b.py", 2_208_985_600), ("qwen2_vl_7b.py", 8_291_375_616)]
)
def test_a_recipe_has_the_published_number_of_parameters(name, parameters):
    """Those of Qwen2-VL-2B-Instruct and 7B-Instruct on the Hugging Face hub."""
    leaves = trees.flatten(crem.abstract(objective(name).model))
    assert sum(math.prod(leaf.value.shape) for leaf in leaves.values()) == parameters


def trained(parts) -> set[str]:
    return {path for path, rate in parts.rates.items() if rate}


def test_a_recipe_names_every_key_of_the_loss_so_that_no_default_decides():
    config = read_recipe(str(CONFIGS / "qwen2_vl_2b.py"))
    names = {field.name for field in dataclasses.fields(LossConfig)}
    assert names <= set(config.loss)
    assert config.loss.temperature is None and config.model.temperature == 0.02


def test_what_the_options_train():
    full, still = objective("qwen2_vl_2b.py"), objective("qwen2_vl_2b.py:frozen_vision")
    assert not full.frozen
    assert still.frozen == {path for path in full.rates if path.startswith("vision/")}
    adapted = objective("qwen2_vl_7b.py:lora,chips=8")
    assert {path.split("/")[-1] for path in trained(adapted)} == {
        "lora_a",
        "lora_b",
        "chorus_delta",
    }
    assert len(trained(adapted)) == 2 * 7 + 1
    assert adapted.frozen_dtype == "bfloat16"
    assert training_passes(full.rates) == Flops(3, 3, 3, 3, 3)
    assert training_passes(still.rates) == Flops(1, 1, 3, 3, 3)
    assert training_passes(adapted.rates) == Flops(1, 1, 2, 3, 2)
    assert dict(adapted.loss.chunk_rows) == dict(label=24, text=16, small=32, medium=8, large=8)


def test_frozen_parameters_are_stored_small_and_have_no_moments():
    parts = objective("qwen2_vl_2b.py:lora,smoke")
    mesh = jax.make_mesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    state = layout.abstract_state(parts, mesh)
    adapters = sum(math.prod(parts_of.shape) for parts_of in leaves(state, trained(parts)))
    assert all(leaf.dtype == "bfloat16" for leaf in leaves(state, parts.frozen))
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * adapters
    table = parameter_table(state, parts.rates)
    assert re.search(
        r"backbone/layers/q/kernel +1×64×2×32 +4,096 +bfloat16 +fsdp.* frozen\n", table
    )
    assert f"of which {adapters:,} train" in table


def leaves(state, paths):
    return [leaf for path, leaf in trees.flatten(state.params).items() if path in paths]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.optim.rates=(('vision/.+/kernels',0.0),)"], "vision/.+/kernels"),
        (["--config.optim.rates=(('.*',0.0),)"], "freezes every parameter"),
        (["--config.loss.cache_vision=True"], "needs a frozen vision tower"),
        (["--config.loss.dims=(8,100)"], r"loss\.dims: 100 is not in 1\.\.64"),
        (["--config.loss.elastic=0.0"], r"loss\.dims needs loss\.elastic above 0"),
        (["--config.loss.p_compressed=2.0"], r"loss\.p_compressed = 2\.0 is not in 0\.\.1"),
        (["--config.model.num_chorus=0"], r"loss\.retrieval = 1\.0 and .*model\.num_chorus = 0"),
        (
            ["--config.model.num_chorus=0", "--config.loss.retrieval=0.0"],
            r"loss\.p_compressed = 0\.5 must be 0",
        ),
        (["--config.optim.frozen_dtype=float16"], "is not one of float32, bfloat16"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_its_key(flags, message):
    with pytest.raises(ValueError, match=message):
        objective("qwen2_vl_2b.py:smoke", *flags)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_moments_are_laid_out_and_multipliers_scale_the_update(name):
    flags = [f"--config.optim.name={name}", "--config.optim.rates=(('.*/q/kernel',0.5),)"]
    config = read_recipe(str(CONFIGS / "qwen2_vl_2b.py:smoke"), flags)
    config.optim.update(weight_decay=0.0, clip=0.0, warmup=0)
    optim = TrainConfig.of(config).optim
    half, whole = (
        make_optimizer(optim, 10, rates)
        for rates in ({"a/q/kernel": 0.5, "a/norm/scale": 1.0}, None)
    )
    params = {"a": {"q": {"kernel": jnp.ones((256, 256))}, "norm": {"scale": jnp.ones(8)}}}
    grads = jax.tree.map(lambda x: 0.1 * x, params)
    got, expected = (o.update(grads, o.init(params), params)[0]["a"] for o in (half, whole))
    np.testing.assert_allclose(got["q"]["kernel"], 0.5 * expected["q"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(got["norm"]["scale"], expected["norm"]["scale"], rtol=1e-6)
    assert float(jnp.max(expected["norm"]["scale"])) < 0
    moments = sum(x.nbytes for x in jax.tree.leaves(whole.init(params)))
    adamw = (2 + 4) * 256 * 256
    assert (moments < adamw) == (name == "adafactor")


def test_an_unknown_option_is_refused_and_the_known_ones_are_named():
    with pytest.raises(
        ValueError,
        match=r"unknown config option 'tiny'; expected some of smoke, lora, frozen_vision, chips=N",
    ):
        objective("qwen2_vl_2b.py:tiny")


@pytest.mark.parametrize("option", ["", ":smoke"])
@pytest.mark.parametrize("name", ["emoji.py", "mixture.py", "own.py", "qwen2_vl_2b.py"])
def test_a_recipe_saves_at_least_as_often_as_it_evaluates(name, option):
    config = read_recipe(f"{CONFIGS / name}{option}")
    assert config.checkpoint_every <= config.eval_every <= config.steps


def test_a_config_may_import_its_neighbours_and_leaves_nothing_behind(tmp_path):
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "common.py").write_text(f"NUMBER = {number}\n")
        (folder / "mine.py").write_text(
            "from common import NUMBER\nfrom ml_collections import ConfigDict\n"
            "def get_config():\n    return ConfigDict(dict(number=NUMBER))\n"
        )
    got = [read_recipe(str(tmp_path / str(n) / "mine.py")).number for n in (1, 2)]
    assert got == [1, 2]
