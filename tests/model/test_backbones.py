"""A Qwen2.5-VL directory through the command line: in, told, found with, and out again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration

import crem_jax
from crem_jax.convert.safetensors_io import SINGLE
from tests.support import hf_models as hf
from tests.support.cli_runner import crem

CHORUS = 4
KEPT = ("hidden_size", "intermediate_size", "out_hidden_size", "window_size")
KEPT += ("fullatt_block_indexes", "tokens_per_second")
"""Keys of `vision_config` that an export must not change."""


@pytest.fixture(scope="module")
def published(seed, tmp_path_factory) -> Path:
    """As on the Hub: weights, config, tokenizer, generation config, preprocessor with limits."""
    oracle = hf.oracle(tmp_path_factory.getbasetemp(), seed, bool(seed % 2), "qwen2_5_vl")
    directory = tmp_path_factory.mktemp("hub") / "Qwen2.5-VL-tiny"
    shutil.copytree(oracle.directory, directory)
    generation = {"bos_token_id": 256, "eos_token_id": [258, 256], "pad_token_id": 256}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    preprocessor = {
        "min_pixels": 8 * 8 * 4,
        "max_pixels": 8 * 8 * 20,
        "patch_size": 4,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return directory


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(((7, 9), (24, 40), (100, 30))):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_a_qwen2_5_vl_directory_is_imported_tells_finds_and_is_exported(
    capsys, published, photos, tmp_path
):
    ours, back, out = tmp_path / "model", tmp_path / "hf", tmp_path / "grid.png"
    assert crem(capsys, "import", published, ours, "--chorus", CHORUS).code == 0
    model = crem_jax.load(ours)
    assert model.config.vision.style == "qwen2_5_vl"
    assert (model.config.vision.min_pixels, model.config.vision.max_pixels) == (256, 1280)

    picture = photos / "1.png"
    argv = ["tell", ours, picture, "what?", "--max_new_tokens", 5, "--json"]
    told = crem(capsys, *argv).json["answer"]
    item = {"image": picture, "text": "what?"}
    assert "".join(model.stream(item, max_new_tokens=5)) == told
    argv = ["find", ours, "--image", picture, "--in", photos, "--out", out, "--json"]
    best = crem(capsys, *argv).json["results"][0]
    assert best["file"] == str(picture) and best["score"] == pytest.approx(1, abs=1e-5)

    assert crem(capsys, "export", ours, back).code == 0
    opened = AutoModelForImageTextToText.from_pretrained(back)
    assert type(opened) is Qwen2_5_VLForConditionalGeneration
    assert "- qwen2_5_vl\n" in (back / "README.md").read_text()
    before, after = (load_file(directory / SINGLE) for directory in (published, back))
    assert sorted(before) == sorted(after)
    spare = slice(263, 263 + CHORUS)
    for name, old in before.items():
        new = after[name]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            old[spare] = new[spare] = 0
        np.testing.assert_array_equal(new, old, err_msg=name)
    kept = (
        json.loads((directory / "config.json").read_text())["vision_config"]
        for directory in (published, back)
    )
    was, now = ({k: v for k, v in values.items() if k in KEPT} for values in kept)
    assert now == was and len(now) == len(KEPT)
