"""Where the chorus looks: against transformers' own attention, and as figures and pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import crem_jax
from crem_jax.config import STYLES
from crem_jax.data.inputs.padding import pad_contexts
from crem_jax.inference.attention_maps import AttentionMaps, attention_maps
from crem_jax.model import crem as crem_model
from crem_jax.model.chorus_attention import chorus_attention
from crem_jax.report.attention_maps import overlay
from crem_jax.types import CHORUS, CONTEXT, PAD, TARGET
from tests.support import hf_models as hf
from tests.support import samples
from tests.support.cli_runner import crem

WIDTH, SLOTS, PATCHES = 36, 32, 32


@pytest.mark.parametrize("style", STYLES)
def test_the_attention_of_the_chorus_is_that_of_transformers(style, seed, tmp_path_factory):
    o = hf.oracle(tmp_path_factory.getbasetemp(), seed, bool(seed % 2), style)
    rows = samples.rows_of_every_kind(np.random.default_rng(seed))
    batch = samples.whole(rows, o.config.chorus_ids, WIDTH, PATCHES, "right")
    inputs = hf.torch_inputs(batch, o.config)
    layers = o.torch_model.model(**inputs, output_attentions=True).attentions
    expected = np.stack([layer.numpy() for layer in layers])

    context = pad_contexts([row.halves()[0] for row in rows], o.config, SLOTS, PATCHES)
    memory = hf.compress(o.config, o.params, context)
    got = np.asarray(chorus_attention(o.config, o.params, context, memory))
    assert got.shape == (len(layers), len(rows), expected.shape[2], hf.K, SLOTS)
    np.testing.assert_allclose(got.sum(-1), 1, atol=1e-5)
    for b in range(len(rows)):
        theirs = batch.region[b] == CHORUS, np.isin(batch.region[b], (CONTEXT, CHORUS))
        of_torch = expected[:, b][:, :, theirs[0]][..., theirs[1]]
        seen = context.region[b] != PAD
        np.testing.assert_allclose(got[:, b][..., seen], of_torch, atol=1e-5)
        assert not got[:, b][..., ~seen].any()
    assert (batch.region == TARGET).any()


def test_the_figures_of_known_maps():
    even = AttentionMaps(np.full((3, 2, 4), 0.1, np.float32)).figures()
    assert even["on_picture"] == pytest.approx(0.8)
    assert [even[n] for n in ("entropy", "coverage", "overlap")] == pytest.approx([1, 1, 1])
    apart = np.zeros((2, 2, 2), np.float32)
    apart[0, 0, 0], apart[1, 1, 1] = 0.3, 0.5
    points = AttentionMaps(apart).figures()
    assert points["entropy"] == points["overlap"] == 0
    assert points["coverage"] == pytest.approx(0.5)
    assert points["by_token"]["on_picture"] == pytest.approx([0.3, 0.5])
    assert AttentionMaps(apart[:1]).figures()["overlap"] is None


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """48 x 32 pixels, six vision tokens of the tiny model."""
    path = tmp_path_factory.mktemp("look") / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_map_has_the_grid_of_the_picture_and_depends_on_the_text(tiny_model_dir, picture):
    model = crem_jax.load(tiny_model_dir)
    alone = attention_maps(model, {"image": picture})
    asked = attention_maps(model, {"image": picture, "text": "find the key"})
    assert alone.maps.shape == asked.maps.shape == (4, 2, 3)
    assert 0 < asked.figures()["on_picture"] < 1 and not np.allclose(asked.maps, alone.maps)
    np.testing.assert_array_equal(attention_maps(model, {"image": picture}, [0]).maps, alone.maps)
    context = pad_contexts([model.runner.prepare({"image": picture})], model.config, SLOTS, PATCHES)
    memory = crem_model.compress(model.config, model.params, context)
    attention = chorus_attention(model.config, model.params, context, memory)
    by_slot = np.asarray(attention)[0, 0].mean(0)
    pictured = context.tokens[0] == model.config.image_token_id
    corner = context.position[0][pictured].min(axis=0)
    for slot in np.flatnonzero(pictured):
        _, y, x = context.position[0, slot] - corner
        np.testing.assert_allclose(alone.maps[:, y, x], by_slot[:, slot], atol=1e-6)
    with pytest.raises(ValueError, match=r"layer 1 is not in 0\.\.0"):
        attention_maps(model, {"image": picture}, [1])
    with pytest.raises(ValueError, match="0 pictures; expected one"):
        attention_maps(model, "words")


def test_an_overlay_is_coloured_where_the_map_is_large():
    share = np.array([[0.0, 0.4], [0.0, 0.0]], np.float32)
    grey = np.full((40, 40, 3), 90, np.uint8)
    drawn = np.asarray(overlay(grey, share), np.float32)
    colour, half = np.ptp(drawn, axis=-1), len(drawn) // 2
    assert colour[:half, half:].mean() > 5 * colour[half:].mean()
    assert np.ptp(np.asarray(overlay(grey, 0 * share)), axis=-1).max() == 0


def test_models_are_looked_at_side_by_side(capsys, tiny_model_dir, picture, tmp_path):
    models = []
    for arm in ("one", "two"):
        (tmp_path / arm).mkdir()
        models.append(tmp_path / arm / "0")
        models[-1].symlink_to(tiny_model_dir, target_is_directory=True)
    out = tmp_path / "out"
    found = crem(capsys, "look", *models, picture, "--out", out, "--layers", "last", "--json").json
    assert list(found["models"]) == ["one-0", "two-0"]
    assert found["models"]["one-0"] == found["models"]["two-0"]
    assert found == json.loads((out / "look.json").read_text())
    names = ["all", "token-01", "token-02", "token-03", "token-04"]
    assert sorted(path.stem for path in (out / "two-0").iterdir()) == names
    assert Image.open(out / "sheet.png").width > 500
    wrong = crem(capsys, "look", models[0], picture, "--layers", "first")
    assert wrong.code == 2 and "--layers 'first' is not all, last or numbers" in wrong.err
    twice = crem(capsys, "look", models[0], models[0], picture)
    assert twice.code == 2 and "a model is given twice" in twice.err
