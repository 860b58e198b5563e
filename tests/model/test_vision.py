"""The vision tower alone: transformers' torch tower is the oracle, on pictures of many sizes."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.vision_utils import get_vision_window_index

from crem_jax import trees
from crem_jax.config import STYLES
from crem_jax.model.crem import Crem
from crem_jax.model.vision import window_segments
from crem_jax.train.optim import _labels
from crem_jax.types import Patches
from tests.support import hf_models as hf
from tests.support import samples

PATCHES = 320
SIZES = (
    ((14, 10), (2, 2), (6, 8)),  # longer than a window, smaller than one, no multiple of one
    ((4, 4), (4, 4), (4, 4), (8, 12)),
    ((2, 30), (18, 2)),  # strips
    ((16, 16),),
)
"""Patch grids of the pictures of four rows."""


@pytest.fixture(scope="module", params=STYLES)
def oracle(request, seed, tmp_path_factory):
    return hf.oracle(tmp_path_factory.getbasetemp(), seed, bool(seed % 2), request.param)


@pytest.fixture(scope="module")
def batch(seed):
    rng = np.random.default_rng(seed)
    rows = [samples.random_row(rng, grids) for grids in SIZES]
    return samples.whole(rows, (), 128, PATCHES, "right")


def tower(config, params, patches: Patches) -> np.ndarray:
    """Vision tokens [B, P / 4, D]."""

    @jax.jit
    def run(params, patches):
        return Crem(config).apply({"params": params}, patches, method=lambda m, p: m.vision(p))

    return np.asarray(run(params, patches))


def test_vision_tokens_equal_transformers(oracle, batch):
    got = tower(oracle.config, oracle.params, batch.patches)
    inputs = hf.torch_pictures(batch.rows, oracle.config)
    visual = oracle.torch_model.model.visual
    expected = visual(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output.numpy()
    real = batch.patches.picture[:, ::4] > 0
    worst = np.abs(got[real] - expected).max()
    print(f"max abs difference {worst:.1e}, largest value {np.abs(expected).max():.1f}")
    assert worst <= 1e-4


@pytest.mark.parametrize("window_size", [8, 16, 20, 24, 48])
def test_windows_are_those_of_transformers(batch, window_size):
    """The same patches share a window, in every picture of every row; padding shares none."""
    side = window_size // 8 * 2
    ids = np.asarray(window_segments(batch.patches, side))
    assert (ids[batch.patches.picture == 0] == 0).all()
    for b, row in enumerate(batch.rows):
        grids = torch.tensor([(1, *grid) for grid in row.grids])
        order, bounds = get_vision_window_index(
            grids, spatial_merge_size=2, window_size=window_size, patch_size=4
        )
        order = (order[:, None] * 4 + torch.arange(4)).reshape(-1).numpy()
        expected = np.empty(len(order), int)
        for window, (start, stop) in enumerate(itertools.pairwise(bounds)):
            expected[order[start:stop]] = window
        got = ids[b][: len(order)]
        assert (got != 0).all()
        pairs = set(zip(got.tolist(), expected.tolist(), strict=True))
        assert len(pairs) == len(set(got)) == len(set(expected))


def test_windows_stay_distinct_in_the_longest_bucket():
    """A strip of 12,000 patches, and a thousand small pictures after it."""
    strip = np.indices((2, 6_000)).reshape(2, -1).T
    small = np.tile(np.indices((2, 2)).reshape(2, -1).T, (1000, 1))
    picture = np.concatenate([np.ones(len(strip)), 2 + np.arange(4000) // 4]).astype(np.int32)
    position = np.concatenate([strip, small]).astype(np.int32)
    patches = Patches(jnp.zeros((1, 16_000, 0), jnp.uint8), position[None], picture[None])
    ids = np.asarray(window_segments(patches, 8))[0]
    assert (ids != 0).all()
    assert len(np.unique(ids)) == 6_000 // 8 + 1000


@pytest.mark.parametrize("full", [(), (0,)], ids=["windows alone", "one full layer"])
def test_a_patch_is_heard_outside_its_window_through_full_layers_alone(
    seed, tmp_path_factory, batch, full
):
    oracle = hf.oracle(tmp_path_factory.getbasetemp(), seed, bool(seed % 2), "qwen2_5_vl")
    vision = dataclasses.replace(oracle.config.vision, window_size=16, full_attention_layers=full)
    config = oracle.config.replace(vision=vision)
    before = tower(config, oracle.params, batch.patches)
    pixels = batch.patches.pixels.copy()
    pixels[:, 0] = 255 - pixels[:, 0]
    after = tower(config, oracle.params, batch.patches.replace(pixels=pixels))
    changed = np.abs(after - before).max(axis=-1) > 0
    ids, picture = (
        np.asarray(ids)[:, ::4]
        for ids in (window_segments(batch.patches, 4), batch.patches.picture)
    )
    heard = picture == 1 if full else ids == ids[:, :1]
    np.testing.assert_array_equal(changed, heard)


def test_muon_takes_every_matrix_of_the_tower(oracle):
    labels = trees.flatten(_labels(oracle.params))
    kernels = {path for path in labels if path.startswith("vision/") and path.endswith("/kernel")}
    assert kernels == {p for p in labels if p.startswith("vision/") and labels[p] == "muon"}
