"""The model's config: read as transformers reads it, written as it writes it, checked."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

from crem_jax.config import STYLES, ConfigError, ModelConfig
from crem_jax.convert import config_json, table
from tests.support import hf_models as hf

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


FLAT_2_5_3B = {
    **FLAT_2B,
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
}
"""config.json of Qwen2.5-VL-3B-Instruct, likewise."""

PUBLISHED = {"qwen2_vl": FLAT_2B, "qwen2_5_vl": FLAT_2_5_3B}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("style", STYLES)
def test_config_json_there_and_back(seed, tmp_path_factory, tied, style):
    oracle = hf.oracle(tmp_path_factory.getbasetemp(), seed, tied, style)
    assert (
        config_json.from_hf(json.loads(json.dumps(config_json.to_hf(oracle.config))))
        == oracle.config
    )


@pytest.mark.parametrize("style", STYLES)
def test_a_published_config_reads_as_transformers_reads_it(style):
    config_class, model_class = hf.STYLES[style]
    theirs = config_class.from_dict(copy.deepcopy(PUBLISHED[style]))
    config = config_json.from_hf(PUBLISHED[style])
    assert config_json.from_hf(theirs.to_dict()) == config
    with torch.device("meta"):
        model = model_class(theirs)
    shapes = {table.canonical(n): tuple(t.shape) for n, t in model.state_dict().items()}
    del shapes[table.HEAD]
    assert table.hf_shapes(config) == shapes


def test_other_architectures_are_refused():
    with pytest.raises(ConfigError, match="'qwen3_vl' is not one of qwen2_vl, qwen2_5_vl"):
        config_json.from_hf({**FLAT_2B, "model_type": "qwen3_vl"})
    with pytest.raises(ConfigError, match="use_sliding_window=True is not implemented"):
        config_json.from_hf({**FLAT_2B, "use_sliding_window": True})


@pytest.mark.parametrize("style", STYLES)
def test_to_dict_and_from_dict_are_inverse(style):
    config = config_json.from_hf(PUBLISHED[style])
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_keys_are_refused_by_name():
    values = config_json.from_hf(FLAT_2B).to_dict()
    values["text"]["num_layer"] = 3
    with pytest.raises(
        ConfigError,
        match=r"unknown key model\.text\.num_layer; .* mean model\.text\.num_layers\? known keys",
    ):
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
    with pytest.raises(ConfigError, match="vision style 'qwen3' is not one of qwen2_vl, qwen2_5"):
        dataclasses.replace(config.vision, style="qwen3")
    with pytest.raises(ConfigError, match="vision window_size 112 needs style 'qwen2_5_vl'"):
        dataclasses.replace(config.vision, window_size=112)
    with pytest.raises(ConfigError, match="window_size 27 must be at least a merge group of 28"):
        dataclasses.replace(config.vision, style="qwen2_5_vl", window_size=27)
    with pytest.raises(ConfigError, match=r"chorus rows 151930\.\.151945 do not fit in vocab_size"):
        config.replace(num_chorus=16, first_chorus_id=151930)
    with pytest.raises(ConfigError, match="pad_token_id 151936 is no row of the 151936-row vocab"):
        config.replace(pad_token_id=151936)
