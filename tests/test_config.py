"""The model's config: read as transformers reads it, written as it writes it, checked."""

from __future__ import annotations

import dataclasses
import json

import hf_models as hf
import pytest
import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from crem_jax.config import ConfigError, ModelConfig
from crem_jax.convert import config_json, table

FLAT_2B = {
    "model_type": "qwen2_vl",
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": 1536,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
    "vocab_size": 151936,
}
"""config.json of Qwen2-VL-2B-Instruct as published, in transformers 4's flat layout."""


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_config_json_there_and_back(seed, tmp_path_factory, tied):
    oracle = hf.oracle(tmp_path_factory.getbasetemp(), seed, tied)
    assert (
        config_json.from_hf(json.loads(json.dumps(config_json.to_hf(oracle.config))))
        == oracle.config
    )


def test_the_published_2b_config_reads_as_transformers_reads_it():
    theirs = Qwen2VLConfig.from_dict(FLAT_2B)
    config = config_json.from_hf(FLAT_2B)
    assert config_json.from_hf(theirs.to_dict()) == config
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(theirs)
    shapes = {table.canonical(n): tuple(t.shape) for n, t in model.state_dict().items()}
    del shapes[table.HEAD]
    assert table.their_shapes(config) == shapes


def test_other_architectures_are_refused():
    with pytest.raises(ConfigError, match="model_type 'qwen2_5_vl' is not 'qwen2_vl'"):
        config_json.from_hf({**FLAT_2B, "model_type": "qwen2_5_vl"})
    with pytest.raises(ConfigError, match="use_sliding_window=True is not implemented"):
        config_json.from_hf({**FLAT_2B, "use_sliding_window": True})


def test_to_dict_and_from_dict_are_inverse():
    config = config_json.from_hf(FLAT_2B)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_keys_are_refused_by_name():
    values = config_json.from_hf(FLAT_2B).to_dict()
    values["text"]["num_layer"] = 3
    with pytest.raises(ConfigError, match=r"unknown key model\.text\.num_layer; known keys"):
        ModelConfig.from_dict(values)


def test_contradictions_are_refused():
    config = config_json.from_hf(FLAT_2B)
    with pytest.raises(ConfigError, match="hidden_size 1536 is no multiple of num_attention"):
        dataclasses.replace(config.text, num_heads=7)
    with pytest.raises(ConfigError, match="num_attention_heads 12 is no multiple of num_key_value"):
        dataclasses.replace(config.text, num_kv_heads=5)
    with pytest.raises(ConfigError, match=r"mrope_section \[1, 2, 3\] must sum to half .* 128"):
        dataclasses.replace(config.text, mrope_section=(1, 2, 3))
    with pytest.raises(ConfigError, match=r"vision mlp_ratio 2\.5 must be a whole number"):
        dataclasses.replace(config.vision, mlp_ratio=2.5)
    with pytest.raises(ConfigError, match=r"chorus rows 151930\.\.151945 do not fit in vocab_size"):
        config.replace(num_chorus=16, first_chorus_id=151930)
    with pytest.raises(ConfigError, match="pad_token_id 151936 is no row of the 151936-row vocab"):
        config.replace(pad_token_id=151936)
