"""Flags on top of recipes: every documented key on every one that ships."""

from __future__ import annotations

import functools
import operator
import shutil
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from crem_jax.commands.recipe import packaged, read_recipe
from crem_jax.config import ConfigError
from crem_jax.configs import document
from crem_jax.configs.schema import TrainConfig
from crem_jax.configs.schema.sources import PACKAGED
from crem_jax.configs.schema.values import is_mapping
from tests.support.cli_runner import crem

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = [
    *packaged(),
    "emoji:smoke,arm=retrieval_only,system",
    "own:smoke",
    "own:2b",
    "qwen2_vl_2b:smoke,lora",
    "qwen2_vl_7b:frozen_vision,chips=8",
    *(str(path) for path in sorted(CONFIGS.glob("*.py"))),
]
_PLAIN = {int: ("7", 7), float: ("1", 1.0), bool: ("true", True), str: ("x", "x")}


def example(each: document.Documented) -> tuple[str, Any]:
    """A value of a key, as a flag spells it and as it then is."""
    key, hint = each.node.key, each.node.hint
    if key.choices:
        return str(key.choices[-1]), key.choices[-1]
    hints = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    hint = next(kind for kind in hints if kind is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        kinds = [kind for kind in typing.get_args(hint) if kind is not ...]
        if typing.get_origin(kinds[0]) is tuple:
            return "(('a/.*', 0.5),)", (("a/.*", 0.5),)
        value = tuple(_PLAIN[kind][1] for kind in kinds)
        return repr(value), value
    return ("{'a': 'b'}", {"a": "b"}) if is_mapping(hint) else _PLAIN[hint]


def documented() -> list[document.Documented]:
    page = (CONFIGS.parent / "docs/config.md").read_text()
    keys = list(document.all_keys())
    assert len(keys) > 100 and all(f"| `{each.path}` |" in page for each in keys)
    return keys


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda recipe: recipe.rpartition("/")[2])
def test_every_documented_key_can_be_set_by_flag(recipe):
    """All at once, but for what excludes each other: kinds, and a map and a name in it."""
    for kind in PACKAGED:
        for in_map in (False, True):
            wanted = {"data.sources.new.kind": (kind, kind)}
            for each in documented():
                path = each.path.replace(document.NAME, "new")
                in_kind = each.kind in ("", kind) and path not in wanted
                if in_kind and path.endswith(".new") == in_map:
                    wanted[path] = example(each)
            config = read_recipe(
                recipe, [f"--config.{k}={text}" for k, (text, _) in wanted.items()]
            )
            for path, (_, value) in wanted.items():
                found: Any = functools.reduce(operator.getitem, path.split("."), config)
                found = found.to_dict() if isinstance(found, ConfigDict) else found
                assert found == value and type(found) is type(value), path


def test_keys_that_no_recipe_mentions_reach_the_run():
    config = read_recipe(
        "own:smoke",
        [
            *("--config.data.workers=2", "--config.data.max_bad_fraction=0.1"),
            *("--config.data.sources.mine.limit=5", "--config.data.sources.mine.index=good.json"),
            *("--config.loss.z_loss=1e-4", "--config.model.dtype=bfloat16"),
            "--config.init_from=models/some",
        ],
    )
    checked = TrainConfig.of(config)
    mine = checked.data.sources["mine"]
    assert checked.data.workers == 2 and checked.data.max_bad_fraction == 0.1
    assert mine.limit == 5 and mine.index == "good.json" and mine.arguments()["bare"] is False
    assert checked.loss.z_loss == 1e-4 and checked.model.dtype == "bfloat16"
    assert checked.init_from == "models/some"


def test_an_open_map_takes_a_new_name_and_completes_it_whatever_the_order_of_flags():
    flags = ["--config.data.sources.mine.path=x.jsonl", "--config.data.sources.mine.kind=jsonl"]
    flags += ["--config.data.records.mine=4", "--config.data.buckets.wide.slots=96"]
    flags += ["--config.data.buckets.wide.patches=0", "--config.data.buckets.wide.rows=8"]
    data = TrainConfig.of(read_recipe("emoji", flags)).data
    assert data.sources["mine"].arguments() == dict(path="x.jsonl", image_root=None, bare=False)
    assert data.buckets["wide"].target_slots == 0 and data.records["mine"] == 4
    assert data.sources["emoji"].arguments() == dict(split="train", size=48)


def test_another_kind_forgets_the_defaults_of_the_one_before():
    flags = ["--config.data.sources.mine.kind=mmeb", "--config.data.sources.mine.cap.VOC2007=9"]
    mine = TrainConfig.of(read_recipe("own", flags)).data.sources["mine"]
    assert mine.kind == "mmeb" and mine.path == "pairs.jsonl" and mine.cap == {"VOC2007": 9}
    with pytest.raises(ConfigError, match=r"\.scenes: .* 'emoji' takes no 'negatives'"):
        TrainConfig.of(read_recipe("emoji", ["--config.data.sources.scenes.kind=emoji"]))


def test_a_flag_below_an_optional_section_makes_it():
    checked = TrainConfig.of(read_recipe("emoji", ["--config.model.lora.rank=8"]))
    assert checked.model.lora.rank == 8 and checked.model.lora.targets
    gone = read_recipe("qwen2_vl_2b:lora", ["--config.model.lora=None"])
    assert TrainConfig.of(gone).model.lora is None


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("optim.lrr=1", r"unknown config key 'optim\.lrr' in emoji; near matches: optim\.lr"),
        ("model.lora.rnak=1", r"near matches: model\.lora\.rank"),
        ("data.buckets.label.row=1", r"near matches: data\.buckets\.label\.rows"),
        ("data.sources.scenes.negative=1", r"near matches: data\.sources\.scenes\.negatives"),
        (
            "data.sources.mine.path=x",
            r"data\.sources\.mine is new; give .*\.kind too, one of emoji",
        ),
        ("data.sources.mine.kind=jsnl", r"data\.sources\.mine\.kind 'jsnl' is not one of emoji"),
        ("loss.elastic=2", r"loss\.elastic = 2\.0 is not in 0\.\.1"),
        ("loss.dims=wide", r"--config\.loss\.dims=wide: expected \(a whole number, …\)"),
        ("loss.symmetric=maybe", r"--config\.loss\.symmetric=maybe: expected true or false"),
        ("mesh=(1,2)", r"--config\.mesh=\(1,2\): expected \(a whole number, a whole number, a"),
        ("mesh[3]=1", r"--config\.mesh\[3\]=1: the value is \(-1, 1, 1\), it has no element 3"),
        ("optim=x", r"--config\.optim=x: expected one of its keys, --config\.optim\.…"),
        ("steps.more=1", r"unknown config key 'steps\.more'"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused_by_its_key(flag, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.of(read_recipe("emoji", [f"--config.{flag}"]))


def test_a_flag_takes_the_type_of_its_key_not_of_the_value_there():
    flags = ["--config.optim.lr=1", "--config.loss.dims=(16,32)", "--config.mesh[1]=4"]
    flags += [
        "--config.optim.adam_lr=None",
        "--config.loss.chunk_rows=8",
        "--config.loss.symmetric",
    ]
    config = read_recipe("emoji", [*flags, "--config.model.dtype", "bfloat16"])
    assert isinstance(config.optim.lr, float) and config.loss.dims == (16, 32)
    assert config.mesh == (-1, 4, 1) and config.optim.adam_lr is None
    assert config.loss.chunk_rows == 8 and config.loss.symmetric is True
    assert config.model.dtype == "bfloat16"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_a_recipe_copied_elsewhere_works_alone(path, tmp_path, monkeypatch, capsys):
    copy = shutil.copy(path, tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    for option in ("", ":smoke"):
        shown = crem(capsys, "train", f"--config={copy}{option}", "--print_config", "--json")
        assert shown.code == 0, shown.err
        assert shown.json == TrainConfig.of(read_recipe(f"{path.stem}{option}")).to_dict()


def test_print_config_shows_every_key_and_trains_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = crem(capsys, "train", "--config=own:smoke", "--print_config", "--config.steps=9")
    lines = shown.out.splitlines()
    assert shown.code == 0 and "steps = 9" in lines and "loss.dims = ()" in lines
    assert "data.sources.mine.path = 'pairs.jsonl'" in lines and "model.dtype = 'float32'" in lines
    assert list(tmp_path.iterdir()) == []
    refused = crem(capsys, "train", "--config=own", "--print_config", "--config.loss.retrieval=-1")
    assert (
        refused.code == 2 and "loss.retrieval = -1.0 must be a number of at least 0" in refused.err
    )
    without = crem(capsys, "train", "--config=own")
    assert without.code == 2 and "required: --workdir" in without.err
    unknown = crem(capsys, "train", "--config=emojy", "--workdir=w")
    assert unknown.code == 2 and "did you mean emoji?" in unknown.err
