"""The schema: what it fills in, what it refuses, and the page that is written from it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crem_jax.commands.recipe import packaged, read_recipe
from crem_jax.config import ConfigError
from crem_jax.configs import document
from crem_jax.configs.fields import REQUIRED
from crem_jax.configs.schema import TrainConfig, default_config
from crem_jax.configs.schema.sources import KINDS, PACKAGED
from crem_jax.data.sources.registry import SOURCES
from crem_jax.train.run import recipe

ROOT = Path(__file__).parents[2]


def test_the_page_of_all_keys_is_as_the_schema_has_them():
    page = (ROOT / "docs/config.md").read_text()
    hint = "write it again: python -m crem_jax.configs.document > docs/config.md"
    assert page == document.markdown(), hint


def test_every_key_says_what_it_means():
    undocumented = [each.path for each in document.all_keys() if not each.node.key.doc]
    assert undocumented == []


@pytest.mark.parametrize("kind", PACKAGED)
def test_a_kind_of_source_has_the_arguments_of_its_constructor(kind):
    taken = inspect.signature(SOURCES[kind]).parameters
    defaults = {
        name: REQUIRED if about.default is about.empty else about.default
        for name, about in taken.items()
    }
    declared = {
        each.name: REQUIRED if each.default is dataclasses.MISSING else each.default
        for each in dataclasses.fields(KINDS[kind])
        if each.name in KINDS[kind].own()
    }
    assert declared == defaults


@pytest.mark.parametrize("name", packaged())
def test_a_recipe_has_every_key_and_reads_back_as_it_was_written(name):
    config = read_recipe(f"{name}:smoke" if name != "own" else name)
    checked = TrainConfig.of(config)
    assert TrainConfig.of(json.loads(json.dumps(checked.to_dict()))) == checked
    assert set(config) == {each.name for each in dataclasses.fields(TrainConfig)}
    for section in ("data", "loss", "optim", "model"):
        names = {each.name for each in dataclasses.fields(getattr(checked, section))}
        assert set(config[section]) == names


def test_a_config_is_imported_without_jax():
    code = (
        "import sys, crem_jax.configs.own as own; own.get_config('2b')\n"
        "print(sorted({'jax', 'transformers', 'tensorflow_datasets'} & set(sys.modules)))"
    )
    run = [sys.executable, "-c", code]
    got = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert got.stdout.strip() == "[]"


def test_a_run_begun_before_the_schema_goes_on_by_the_same_config(tmp_path):
    """recipe.json as `--config=configs/emoji.py:smoke` wrote it then, with fewer keys."""
    old = Path(__file__).with_name("recipe_before_the_schema.json")
    shutil.copy(old, tmp_path / "recipe.json")
    same = TrainConfig.of(read_recipe("emoji:smoke"))
    assert (
        "z_loss" in same.to_dict()["loss"] and "z_loss" not in json.loads(old.read_text())["loss"]
    )
    recipe.refuse_another(tmp_path, same.to_dict())
    other = TrainConfig.of(read_recipe("emoji:smoke", ["--config.loss.z_loss=1e-4"]))
    with pytest.raises(ValueError, match=r"another config \(different: loss\.z_loss\)"):
        recipe.refuse_another(tmp_path, other.to_dict())


def test_what_is_unset_has_its_default_from_scratch_and_none_beside_weights():
    scratch = TrainConfig.of(read_recipe("own"))
    assert scratch.model.dtype == "float32" and scratch.model.text["rms_norm_eps"] == 1e-6
    weights = TrainConfig.of(read_recipe("own", ["--config.init_from=models/some"]))
    assert weights.model.dtype is None and "rms_norm_eps" not in weights.model.text
    assert weights.model.running() == {"unroll": 3, "temperature": 0.05, "system_prompt": ""}


def base() -> dict:
    """A config that is filled as little as may be."""
    config = default_config()
    config.data.update(
        buckets=dict(text=dict(slots=8, patches=0, rows=2)), candidates=4, records=dict(emoji=2)
    )
    config.data.sources = dict(emoji={})
    return config


def test_what_a_config_leaves_out_has_the_schemas_default():
    checked = TrainConfig.of(base())
    assert checked.data.buckets["text"].target_slots == 0
    assert checked.data.sources["emoji"].kind == "emoji"  # its name
    assert checked.data.sources["emoji"].size == 48
    assert checked.optim.lr == 1e-4 and checked.mesh == (-1, 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(step=3), r"unknown key step; did you mean steps\? known keys: "),
        (
            lambda c: c.loss.update(vocab_chunks=3),
            r"unknown key loss\.vocab_chunks; did you mean loss\.vocab_chunk\?",
        ),
        (
            lambda c: c.data.sources.emoji.update(splitt="train"),
            r"takes no 'splitt'; .*; did you mean data\.sources\.emoji\.split\?",
        ),
        (
            lambda c: c.data.sources.emoji.update(kind="emojis"),
            r"data\.sources\.emoji\.kind 'emojis' is not one of .*; did you mean emoji\?",
        ),
        (
            lambda c: c.data.sources.update(mine=dict(kind="jsonl")),
            r"data\.sources\.mine: a source of kind 'jsonl' needs 'path'",
        ),
        (lambda c: c.data.update(candidates=None), r"data\.candidates is not set; it is: M: room"),
        (
            lambda c: c.data.buckets.text.update(answers=2),
            r"data\.buckets\.text: target_slots = 0 and answers = 2",
        ),
        (lambda c: c.loss.update(chunk_rows=dict(b=1)), r"loss\.chunk_rows\.b: no such bucket"),
        (lambda c: c.update(steps="9"), r"config\.steps = '9': expected a whole number"),
        (lambda c: c.loss.update(dims=(8, 0)), r"loss\.dims = 0 must be at least 1"),
        (lambda c: c.optim.update(name="sgd"), r"optim\.name 'sgd' is not one of adamw, adaf"),
        (lambda c: c.optim.update(rates=(("x", -1.0),)), r"optim\.rates: 'x' has the multiplier"),
        (lambda c: c.update(mesh=(-1, -1, 1)), r"config\.mesh = \(-1, -1, 1\): expected numbers"),
        (lambda c: c.model.update(lora=dict(rank=0)), r"model\.lora\.rank = 0 must be at least 1"),
        (lambda c: c.model.text.update(head=1), r"unknown key model\.text\.head; known keys: "),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_its_key(change, message):
    config = base()
    change(config)
    with pytest.raises(ConfigError, match=message):
        TrainConfig.of(config)
