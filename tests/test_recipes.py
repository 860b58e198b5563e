"""The recipes of real sizes: their options, their shapes, and what of them trains."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from crem_jax import trees
from crem_jax.commands.recipe import read_recipe
from crem_jax.data.batch_spec import make_batch_spec
from crem_jax.model import crem
from crem_jax.train.setup import make_objective

CONFIGS = Path(__file__).parents[1] / "configs"


def objective(name: str, *flags: str):
    config = read_recipe(str(CONFIGS / name), flags)
    make_batch_spec(config.data)
    return make_objective(config)


@pytest.mark.parametrize(
    ("name", "parameters"), [("qwen2_vl_2b.py", 2_208_985_600), ("qwen2_vl_7b.py", 8_291_375_616)]
)
def test_a_recipe_has_the_published_number_of_parameters(name, parameters):
    """Those of Qwen2-VL-2B-Instruct and 7B-Instruct on the Hugging Face hub."""
    leaves = trees.flatten(crem.abstract(objective(name).model))
    assert sum(math.prod(leaf.value.shape) for leaf in leaves.values()) == parameters


def test_an_unknown_option_is_refused_and_the_known_ones_are_named():
    with pytest.raises(ValueError, match=r"unknown config option 'tiny'; expected some of smoke"):
        objective("qwen2_vl_2b.py:tiny")


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
