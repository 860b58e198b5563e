"""The torch model of transformers is the oracle: float32, random tiny models, random prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crem_jax.types import CHORUS, PAD, TARGET
from tests.support import hf_models as hf
from tests.support import samples

WIDTH, PATCHES = 36, 32


@pytest.fixture(scope="module", params=hf.KINDS)
def oracle(request, seed, tmp_path_factory):
    return hf.oracle(tmp_path_factory.getbasetemp(), seed, *hf.KINDS[request.param])


@pytest.fixture(scope="module")
def rows(seed):
    return samples.rows_of_every_kind(np.random.default_rng(seed))


def batch_of(oracle, rows, side="right"):
    return samples.whole(rows, oracle.config.chorus_ids, WIDTH, PATCHES, side)


def assert_close(got, expected, where, limit):
    worst = np.abs(got - expected)[where].max()
    print(f"max abs difference {worst:.1e}, largest value {np.abs(expected[where]).max():.1f}")
    assert worst <= limit


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_equal_get_rope_index(oracle, rows, side):
    batch = batch_of(oracle, rows, side)
    inputs = hf.torch_inputs(batch, oracle.config)
    inputs.pop("pixel_values")
    position, _ = oracle.torch_model.model.get_rope_index(**inputs)
    real = batch.region != PAD
    np.testing.assert_array_equal(position.permute(1, 2, 0).numpy()[real], batch.position[real])


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_equal_in_a_padded_batch(oracle, rows, side):
    batch = batch_of(oracle, rows, side)
    _, expected = hf.theirs(oracle, batch)
    _, got = hf.ours(oracle, batch, z=False)
    assert_close(got, expected, batch.region != PAD, 1e-4)


@pytest.mark.parametrize("kind", range(4), ids=["one", "several", "text only", "two"])
def test_logits_equal_of_a_sample_alone(oracle, rows, kind):
    row = rows[kind]
    alone = samples.whole(
        [row], oracle.config.chorus_ids, len(row.sequence(range(hf.K))[0]), 32, "left"
    )
    inputs = hf.torch_inputs(alone, oracle.config)
    inputs.pop("attention_mask")
    expected = oracle.torch_model(**inputs).logits.numpy()[0]
    batch = batch_of(oracle, rows)
    _, got = hf.ours(oracle, batch, z=False)
    assert_close(got[kind][batch.region[kind] != PAD], expected, ..., 1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("z", [[0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]], ids=str)
def test_logits_equal_under_the_compression_mask(oracle, rows, z, side):
    z = np.array(z, bool)
    batch = batch_of(oracle, rows, side)
    _, expected = hf.theirs(oracle, batch, z)
    _, got = hf.ours(oracle, batch, z)
    assert_close(got, expected, batch.region != PAD, 1e-4)


def test_compression_changes_the_answer(oracle, rows):
    batch = batch_of(oracle, rows)
    native, compressed = (hf.ours(oracle, batch, z)[1] for z in (False, True))
    target = batch.region == TARGET
    assert np.abs(native - compressed)[target].max() > 0.01
    np.testing.assert_array_equal(
        native[batch.region == CHORUS], compressed[batch.region == CHORUS]
    )


def test_embeddings_equal_the_mean_over_the_chorus(oracle, rows):
    batch = batch_of(oracle, rows)
    hidden, _ = hf.theirs(oracle, batch)
    got, _ = hf.ours(oracle, batch, z=True)
    for b in range(len(rows)):
        chorus = batch.region[b] == CHORUS
        expected = torch.nn.functional.normalize(torch.from_numpy(hidden[b, chorus].mean(0)), dim=0)
        mean = got[b, chorus].mean(axis=0)
        assert_close(mean / np.linalg.norm(mean), expected.numpy(), ..., 1e-5)
