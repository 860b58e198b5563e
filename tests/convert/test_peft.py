"""Adapters in PEFT's format are, once PEFT has merged them, the model we merge ourselves."""

from __future__ import annotations

import json

import jax
import numpy as np
import peft
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from crem_jax import trees
from crem_jax.checkpoints.model_directory import save_model
from crem_jax.cli import main
from crem_jax.config import LoRAConfig
from crem_jax.convert.safetensors_io import SINGLE
from crem_jax.convert.table import canonical
from crem_jax.model import crem
from crem_jax.model.lora import is_adapter
from tests.support import toy

TARGETS = (r"backbone/layers/(q|o|mlp/down)/kernel", r"vision/(blocks/qkv|merge_fc1)/kernel")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, seed):
    """A model with trained adapters, and the same without."""
    root = tmp_path_factory.mktemp("peft")
    config = toy.config(lora=LoRAConfig(rank=3, alpha=6.0, targets=TARGETS))
    rng = np.random.default_rng(seed)
    leaves = trees.flatten(jax.jit(crem.init, static_argnums=0)(config, jax.random.key(seed)))
    leaves = {
        path: rng.standard_normal(leaf.shape).astype(np.float32) if is_adapter(path) else leaf
        for path, leaf in leaves.items()
    }
    plain = {path: leaf for path, leaf in leaves.items() if not is_adapter(path)}
    save_model(root / "adapted", config, trees.unflatten(leaves), toy.tokenizer())
    save_model(root / "plain", config.replace(lora=None), trees.unflatten(plain), toy.tokenizer())
    return root


def crem_run(*argv) -> None:
    assert main([str(arg) for arg in argv]) == 0


def test_peft_merges_our_adapter_to_the_weights_we_export(runs):
    crem_run("export", runs / "plain", runs / "base")
    crem_run("export", runs / "adapted", runs / "merged")
    crem_run("export", runs / "adapted", runs / "adapter", "--adapter", runs / "base")
    base = AutoModelForImageTextToText.from_pretrained(runs / "base")
    before = {canonical(name): tensor.clone() for name, tensor in base.state_dict().items()}
    model = peft.PeftModel.from_pretrained(base, runs / "adapter").merge_and_unload()
    got = {canonical(name): tensor.numpy() for name, tensor in model.state_dict().items()}
    wanted = load_file(runs / "merged" / SINGLE)
    assert set(wanted) <= set(got)
    changed = 0
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-5, err_msg=name)
        changed += not np.array_equal(before[name].numpy(), array)
    assert changed == 2 * 3 + 1 + 1 + 1  # q, o, down; qkv, merge_fc1; the chorus rows
    tokenizer = AutoTokenizer.from_pretrained(runs / "adapter")
    assert "<|chorus_0|>" in tokenizer.get_vocab()
    settings = json.loads((runs / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(runs / "base")


def test_a_run_that_trained_more_than_its_adapters_is_not_exported_as_one(runs, capsys, tmp_path):
    recipe = runs / "adapted" / "recipe.json"
    argv = ["export", str(runs / "adapted"), str(tmp_path / "adapter"), "--adapter", "base"]
    rules = [["backbone/norm/scale", 0.5], ["loss/.*", 0.5], ["vision/.*", 0.0]]
    try:
        recipe.write_text(json.dumps({"optim": {"rates": rules}}))
        assert main(argv) == 2
        told = capsys.readouterr().err
        assert "has trained backbone/norm/scale too (optim.rates)" in told
        assert not (tmp_path / "adapter").exists()
        recipe.write_text(json.dumps({"optim": {"rates": rules[1:]}}))
        assert main(argv) == 0
    finally:
        recipe.unlink()


def test_a_model_without_adapters_has_none_to_export(runs, capsys):
    argv = ["export", str(runs / "plain"), str(runs / "none"), "--adapter", "base"]
    assert main(argv) == 2
    assert "has no adapters; expected a run trained with model.lora" in capsys.readouterr().err
    assert not (runs / "none").exists()
