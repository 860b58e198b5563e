"""What cannot be read is refused in one clear sentence; what is written, is written whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from crem_jax import trees
from crem_jax.config import ConfigError
from crem_jax.convert import table
from crem_jax.convert.huggingface import export_hf
from crem_jax.convert.safetensors_io import INDEX, SINGLE, Weights
from crem_jax.convert.table import WeightsError
from crem_jax.errors import CremError
from tests.support import hf_models as hf


@pytest.fixture(scope="module")
def oracle(seed, tmp_path_factory):
    return hf.oracle(tmp_path_factory.getbasetemp(), seed, True)


@pytest.fixture
def broken(oracle, tmp_path):
    """A copy of a model directory, with a tied head, to damage."""
    return Path(shutil.copytree(oracle.directory, tmp_path / "model"))


def rewrite(directory: Path, change) -> None:
    values = load_file(directory / SINGLE)
    change(values)
    save_file(values, directory / SINGLE)


def refuses(directory: Path, *words: str) -> None:
    with pytest.raises(WeightsError) as caught:
        hf.read(directory)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


NORM, DOWN = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"


def test_missing_tensors_are_all_listed(broken):
    rewrite(broken, lambda v: [v.pop(NORM), v.pop(DOWN)])
    refuses(broken, str(broken), f"missing (2): {DOWN}, {NORM}")


def test_extra_tensors_are_all_listed(broken):
    more = {"visual.more": np.zeros(2), "model.layers.2.mlp.down_proj.weight": np.zeros(3)}
    rewrite(broken, lambda v: v.update(more))
    refuses(broken, str(broken), f"extra (2): {', '.join(sorted(more))}")


def test_missing_extra_and_misshapen_come_in_one_message(broken):
    def change(values):
        values["mode.norm.weight"] = values.pop(NORM)
        values[DOWN] = np.zeros((3, 5), np.float32)

    expected = list(Weights(broken)[DOWN].shape)
    rewrite(broken, change)
    refuses(
        broken,
        SINGLE,
        f"missing (1): {NORM}",
        "extra (1): mode.norm.weight",
        f"wrong shape (1): {DOWN} has shape [3, 5], expected {expected}",
    )


def test_the_same_tensor_under_two_names_is_refused(broken):
    rewrite(broken, lambda v: v.update({"model.language_model.norm.weight": v[NORM]}))
    refuses(broken, f"model.language_model.norm.weight and {NORM} are the same tensor")


def test_a_tied_head_is_accepted_where_it_equals_the_embedding(oracle, broken):
    rewrite(broken, lambda v: v.update({table.HEAD: v["model.embed_tokens.weight"].copy()}))
    _, params, _ = hf.read(broken)
    for path, leaf in trees.flatten(hf.read(oracle.directory)[1]).items():
        np.testing.assert_array_equal(trees.flatten(params)[path], leaf)
    rewrite(broken, lambda v: v.update({table.HEAD: v["model.embed_tokens.weight"] + 1}))
    refuses(broken, "lm_head.weight differs from model.embed_tokens.weight")


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_truncated_safetensors_name_the_file(broken, size):
    data = (broken / SINGLE).read_bytes()
    (broken / SINGLE).write_bytes(data[:size])
    refuses(broken, f"{broken / SINGLE}: is truncated or damaged")


def header(text: str, data: int = 8) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + bytes(data)


ENTRY = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
HOSTILE = {
    "a header longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "a header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "a name twice": header("{" + ENTRY + "," + ENTRY + "}"),
    "offsets past the end": header("{" + ENTRY.replace("0,8", "0,4096") + "}"),
    "offsets that do not fit the shape": header("{" + ENTRY.replace("[2]", "[3]") + "}"),
    "an unknown type": header("{" + ENTRY.replace("F32", "C9") + "}"),
    "a negative size": header("{" + ENTRY.replace("[2]", "[-2]") + "}"),
    "no JSON": header("{" * 1000),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers_are_refused_in_a_sentence(broken, data):
    (broken / SINGLE).write_bytes(data)
    refuses(broken, str(broken))


def test_an_index_that_leads_out_of_the_directory_is_refused(oracle, broken):
    (broken / SINGLE).rename(broken.parent / SINGLE)
    (broken / INDEX).write_text(json.dumps({"weight_map": {NORM: f"../{SINGLE}"}}))
    refuses(broken, INDEX, f"expected plain file names, found ../{SINGLE}")


def test_an_index_that_names_a_missing_file_is_refused(oracle, broken):
    (broken / SINGLE).unlink()
    oracle.torch_model.save_pretrained(broken, max_shard_size="30KB")
    (broken / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
    gone = sorted(broken.glob("model-*"))[-1]
    gone.unlink()
    refuses(broken, f"{broken / INDEX}: names files that do not exist", gone.name)


def test_an_index_that_names_a_tensor_in_the_wrong_file_is_refused(oracle, broken):
    (broken / SINGLE).unlink()
    oracle.torch_model.save_pretrained(broken, max_shard_size="30KB")
    index = json.loads((broken / INDEX).read_text())
    index["weight_map"]["model.absent"] = index["weight_map"][NORM]
    (broken / INDEX).write_text(json.dumps(index))
    refuses(broken, INDEX, f"model.absent in {index['weight_map'][NORM]}")


def test_pickle_weights_are_refused_by_name(broken):
    (broken / SINGLE).unlink()
    (broken / "pytorch_model.bin").write_bytes(b"")
    refuses(broken, "only as pickle (pytorch_model.bin)", "expected safetensors")


def test_a_directory_without_weights_config_or_tokenizer_says_so(broken, tmp_path):
    refuses(tmp_path / "nowhere", "nowhere: has no config.json")
    (broken / "tokenizer.json").unlink()
    refuses(broken, f"{broken}: has no tokenizer.json")
    (broken / SINGLE).unlink()
    refuses(broken, f"{broken}: has no model.safetensors and no model.safetensors.index.json")
    (broken / "config.json").write_text("{")
    refuses(broken, f"{broken / 'config.json'}: is not JSON")


@pytest.mark.parametrize(
    "part, key, value",
    [
        ("text_config", "hidden_size", "wide"),
        ("text_config", "num_attention_heads", 0),
        ("text_config", "rope_parameters", "default"),
        ("text_config", "vocab_size", None),
        ("vision_config", "embed_dim", [16]),
        ("", "text_config", [1, 2]),
        ("", "image_token_id", "<|image_pad|>"),
    ],
)
def test_a_config_of_the_wrong_types_is_refused_in_a_sentence(broken, part, key, value):
    values = json.loads((broken / "config.json").read_text())
    (values[part] if part else values)[key] = value
    (broken / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"config\.json (has a value of the wrong type|lacks)"):
        hf.read(broken)


def test_a_bug_in_reading_is_no_damage_of_the_files(broken, monkeypatch):
    def fail(*_, **__):
        return np.zeros((2, 3)) @ np.zeros((2, 3))

    monkeypatch.setattr(table, "from_hf", fail)
    with pytest.raises(ValueError, match="matmul") as met:
        hf.read(broken)
    assert not isinstance(met.value, CremError)


def test_parameters_that_do_not_fit_the_config_are_not_written(oracle, tmp_path):
    config, params, tokenizer = hf.read(oracle.directory)
    params["backbone"]["more"] = np.zeros(3)
    with pytest.raises(WeightsError, match=r"extra \(1\): backbone/more"):
        export_hf(config, params, tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# all at once or not at all


KILLED = """
import sys, time
from tests.support import hf_models
from crem_jax.convert import huggingface
wait = sys.argv[3]
def stop(*_, **__):
    print("ready", flush=True)
    time.sleep(60)
written = [0]
def count(size):
    written[0] += size
    if wait == "weights" and written[0] > 50_000: stop()
if wait == "card":
    huggingface.model_card = stop
huggingface.export_hf(
    *hf_models.read(sys.argv[1]), sys.argv[2], max_shard_bytes=20_000, on_bytes=count)
"""


@pytest.mark.parametrize("moment", ["weights", "card"])
def test_a_killed_export_leaves_nothing_that_looks_complete(oracle, tmp_path, moment):
    target = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(oracle.directory), str(target), moment],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    assert not list(tmp_path.rglob("config.json"))
    export_hf(*hf.read(oracle.directory), target)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
