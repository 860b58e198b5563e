"""Hugging Face → crem_jax → Hugging Face, and back out through plain transformers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from crem_jax import trees
from crem_jax.config import ConfigError
from crem_jax.convert import config_json, table
from crem_jax.convert.card import model_card
from crem_jax.convert.chorus import add_chorus, chorus_tokens
from crem_jax.convert.huggingface import export_hf
from crem_jax.convert.safetensors_io import INDEX, SINGLE, Weights
from crem_jax.data.inputs.padding import TargetRow, pad_contexts, pad_targets
from crem_jax.data.inputs.prompt import Prompter
from crem_jax.data.records import Item
from crem_jax.model.pooling import pool_traced
from tests.support import hf_models as hf

TEXT = "the tiger, 3 of them!\nétoile <|im_end|>  "


@pytest.fixture(scope="module", params=hf.KINDS)
def oracle(request, seed, tmp_path_factory):
    return hf.oracle(tmp_path_factory.getbasetemp(), seed, *hf.KINDS[request.param])


def tensors(directory: Path) -> dict[str, np.ndarray]:
    weights = Weights(directory)
    return {name: np.asarray(tensor) for name, tensor in weights.items()}


def assert_bit_equal(got: dict, expected: dict) -> None:
    assert sorted(got) == sorted(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("max_shard_bytes", [10**9, 40_000], ids=["single", "sharded"])
def test_there_and_back_is_bit_equal(oracle, tmp_path, max_shard_bytes):
    config, params, tokenizer = hf.read(oracle.directory)
    out = tmp_path / "out"
    export_hf(config, params, tokenizer, out, max_shard_bytes=max_shard_bytes)
    assert (out / INDEX).exists() == (max_shard_bytes < 10**9)
    assert_bit_equal(tensors(out), tensors(oracle.directory))
    again, params_again, tokenizer_again = hf.read(out)
    assert again == config
    assert_bit_equal(trees.flatten(params_again), trees.flatten(params))
    assert tokenizer_again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]


def test_what_transformers_shards_reads_the_same(oracle, tmp_path):
    oracle.torch_model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_bit_equal(tensors(tmp_path), tensors(oracle.directory))


def test_bfloat16_files_are_bit_equal_there_and_back(oracle, tmp_path):
    source = Path(shutil.copytree(oracle.directory, tmp_path / "source"))
    values = load_file(source / SINGLE)
    save_file({k: v.astype(ml_dtypes.bfloat16) for k, v in values.items()}, source / SINGLE)
    config, params, tokenizer = hf.read(source)
    assert {leaf.dtype for leaf in trees.flatten(params).values()} == {np.dtype(np.float32)}
    export_hf(config, params, tokenizer, tmp_path / "out", dtype="bfloat16")
    assert_bit_equal(tensors(tmp_path / "out"), tensors(source))
    opened = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert opened.dtype == torch.bfloat16


def test_both_key_styles_read_the_same(oracle, tmp_path):
    copy = Path(shutil.copytree(oracle.directory, tmp_path / "copy"))
    long = {
        re.sub("^visual", "model.visual", re.sub("^model", "model.language_model", name)): array
        for name, array in load_file(copy / SINGLE).items()
    }
    assert any(name.startswith("model.language_model.layers") for name in long)
    save_file(long, copy / SINGLE)
    _, params, _ = hf.read(copy)
    assert_bit_equal(trees.flatten(params), trees.flatten(hf.read(oracle.directory)[1]))


def test_the_table_names_every_parameter_once():
    for column in (0, 1):
        names = [row[column] for row in table.ROWS]
        assert len(set(names)) == len(names)


# crem → plain transformers


@pytest.fixture(scope="module")
def exported(oracle, tmp_path_factory):
    """A CREM model, its directory, and a picture of a size that needs no resizing."""
    config, params, tokenizer = hf.read(oracle.directory)
    config, params, tokenizer = add_chorus(config, params, tokenizer, hf.K, seed=1)
    directory = tmp_path_factory.mktemp("export") / "model"
    card = {"name": "Tiny", "metrics": {"p1": 0.25, "elastic": {"4": 0.5}}, "data": ["emoji"]}
    export_hf(config, params, tokenizer, directory, card=card)
    pixels = np.random.default_rng(0).integers(0, 256, (72, 64, 3), dtype=np.uint8)
    return config, params, tokenizer, directory, pixels


def test_the_model_card_runs_in_plain_transformers_and_gives_our_embedding(exported):
    config, params, tokenizer, directory, pixels = exported
    picture = directory.parent / "picture.png"
    Image.fromarray(pixels).save(picture)
    code, *_ = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    scope = {"PATH": str(directory), "IMAGE": str(picture)}
    exec(compile(code, "README.md", "exec"), scope)
    row = Prompter(config, tokenizer).context(Item(images=(pixels,)))
    context = pad_contexts([row], config, 160, len(row.picture))
    ours = pool_traced(hf.compress(config, params, context).chorus)[0]
    np.testing.assert_allclose(scope["embedding"].numpy(), ours, atol=1e-5)
    said = scope["output"][0, scope["inputs"]["input_ids"].shape[1] :]
    assert not set(said.tolist()) & set(config.chorus_ids)


def test_exported_model_gives_our_logits_in_plain_transformers(exported):
    config, params, _, directory, pixels = exported
    model = AutoModelForImageTextToText.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    processor = Qwen2VLImageProcessorPil.from_pretrained(directory)
    inputs = dict(processor([pixels], return_tensors="pt"))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "chorus"}, {"text": "what?"}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    count = int(inputs["image_grid_thw"].prod()) // 4
    text = text.replace("<|image_pad|>", "<|image_pad|>" * count)
    inputs |= tokenizer(text, return_tensors="pt")
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == config.image_token_id).int()
    with torch.no_grad():
        theirs = model(**inputs).logits[0].numpy()

    prompter = Prompter(config, tokenizer)
    row = prompter.context(Item(images=(pixels,)))
    memory = hf.compress(config, params, pad_contexts([row], config, 160, len(row.picture)))
    question = prompter.question("what?")
    target = pad_targets([TargetRow(question, np.full(len(question), -1))], config, 40, 1)
    hidden, _ = hf.decode(config, params, memory, target, np.zeros(1, bool))
    ours = np.asarray(hf.logits(config, params, hidden))[0, : len(question)]
    np.testing.assert_allclose(ours, theirs[-len(question) :], atol=1e-5)


def test_export_keeps_the_original_vocabulary_shape_and_suppresses_the_chorus(exported, oracle):
    config, _, _, directory, _ = exported
    assert config.text.vocab_size == hf.VOCAB
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == list(config.chorus_ids)

    def shapes(path: Path) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in Weights(path).items()}

    assert shapes(directory) == shapes(oracle.directory)


def test_exported_files_are_what_transformers_itself_writes(exported, tmp_path):
    _, _, _, directory, _ = exported
    Qwen2VLImageProcessorPil.from_pretrained(directory).save_pretrained(tmp_path)
    AutoModelForImageTextToText.from_pretrained(directory).save_pretrained(tmp_path)
    name = "preprocessor_config.json"
    assert json.loads((tmp_path / name).read_text()) == json.loads((directory / name).read_text())
    assert_bit_equal(tensors(tmp_path), tensors(directory))
    theirs, ours = (
        config_json.from_hf(json.loads((d / "config.json").read_text()))
        for d in (tmp_path, directory)
    )
    assert theirs == ours


def test_the_card_holds_the_figures_of_the_run(exported):
    text = (exported[3] / "README.md").read_text()
    assert "# Tiny" in text and "| p1 | 0.25 |" in text and "| elastic/4 | 0.5 |" in text
    assert "https://arxiv.org/abs/2602.19091" in text and "- emoji" in text


def test_the_card_refuses_unknown_facts(oracle):
    with pytest.raises(ConfigError, match=r"unknown key card\.metric; known keys: .*metrics"):
        model_card(oracle.config, {"metric": {}})


# the chorus


def test_chorus_takes_spare_rows_and_leaves_the_others_alone(oracle):
    config, params, tokenizer = hf.read(oracle.directory)
    new, changed, grown = add_chorus(config, params, tokenizer, 4, seed=3)
    assert new.text == config.text and new.chorus_ids == (263, 264, 265, 266)
    assert grown.convert_tokens_to_ids(chorus_tokens(4)) == list(new.chorus_ids)
    assert len(tokenizer) == 263 and len(grown) == 267
    before, after = params["backbone"]["embedding"], changed["backbone"]["embedding"]
    np.testing.assert_array_equal(
        np.delete(after, new.chorus_ids, 0), np.delete(before, new.chorus_ids, 0)
    )
    rows = after[list(new.chorus_ids)]
    assert len(np.unique(rows, axis=0)) == 4
    assert 0.1 < rows.std() / before[:263].std() < 2


def test_too_few_spare_rows_grow_the_table_to_a_multiple_of_128(oracle, tmp_path):
    config, params, tokenizer = hf.read(oracle.directory)
    config, params, tokenizer = add_chorus(config, params, tokenizer, 16)
    assert config.text.vocab_size == 384 and config.first_chorus_id == 263
    for name in set(params["backbone"]) & {"embedding", "head"}:
        assert params["backbone"][name].shape[0] == 384
    export_hf(config, params, tokenizer, tmp_path / "out")
    opened = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert opened.get_output_embeddings().weight.shape[0] == 384


def test_a_model_that_has_its_chorus_stays_as_it_is(exported):
    config, params, tokenizer, directory, _ = exported
    assert add_chorus(config, params, tokenizer, 16) == (config, params, tokenizer)
    read, _, _ = hf.read(directory)
    assert read.chorus_ids == config.chorus_ids


def test_a_tokenizer_that_knows_the_chorus_keeps_its_rows(oracle):
    config, params, tokenizer = hf.read(oracle.directory)
    tokenizer.add_tokens([*chorus_tokens(4), "<|later|>"], special_tokens=True)
    new, _, same = add_chorus(config, params, tokenizer, 4)
    assert new.first_chorus_id == 263 and len(same) == len(tokenizer)
