"""The analytic count of operations against the compiler's, where that can be trusted."""

from __future__ import annotations

import dataclasses
import functools

import jax
import pytest

from crem_jax.config import TextConfig
from crem_jax.configs.schema.data import BucketSpec
from crem_jax.flops import Flops, decoder_weights, model_flops, training_passes
from crem_jax.model import crem
from crem_jax.types import Context, Patches, Target
from tests.support import toy

BUCKET = BucketSpec(slots=16, patches=32, rows=3, target_slots=8, answers=8)


def shape(*sizes, dtype="int32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.fixture(scope="module")
def wide():
    """One layer of each kind (the compiler counts a scanned layer once), its matrices dominant."""
    config = toy.config()
    text = dict(hidden_size=128, intermediate_size=512, num_layers=1, num_heads=2, num_kv_heads=1)
    return config.replace(
        text=dataclasses.replace(config.text, mrope_section=(8, 12, 12), **text),
        vision=dataclasses.replace(config.vision, embed_dim=128),
    )


def test_the_count_is_the_compilers_where_that_sees_every_layer(wide):
    b = BUCKET
    context = Context(
        shape(b.rows, b.slots),
        shape(b.rows, b.slots, 3),
        shape(b.rows, b.slots),
        Patches(
            shape(b.rows, b.patches, wide.vision.patch_values, dtype="uint8"),
            shape(b.rows, b.patches, 2),
            shape(b.rows, b.patches),
        ),
    )
    tokens = shape(b.rows, b.target_slots)
    target = Target(tokens, shape(b.rows, b.target_slots, dtype="bool"), tokens, tokens)

    def forward(params, context, target, z):
        memory = crem.compress(wide, params, context)
        hidden, _ = crem.decode(wide, params, memory, target, z)
        return crem.logits(wide, params, hidden)

    params = jax.eval_shape(functools.partial(crem.init, wide), jax.random.key(0))
    z = shape(b.rows, dtype="bool")
    counted = jax.jit(forward).lower(params, context, target, z).cost_analysis()["flops"]
    assert model_flops(wide, {"picture": b}).forward == pytest.approx(counted, rel=0.08)


TRAINED = dict.fromkeys(
    (
        *("vision/patch_kernel", "vision/blocks/qkv/kernel", "vision/merge_norm/scale"),
        *("backbone/embedding", "backbone/layers/q/kernel", "backbone/layers/q/bias"),
    ),
    1.0,
)
ADAPTERS = {"backbone/layers/q/lora_a": 1.0, "compressor/chorus_delta": 1.0}


def test_a_step_is_three_forward_passes_and_a_frozen_tower_has_no_backward_pass(wide):
    flops = model_flops(wide, [BUCKET])
    assert flops.training() == flops.training(TRAINED) == 3 * flops.forward
    tower = flops.vision + flops.vision_attention
    still = {path: rate * (not path.startswith("vision/")) for path, rate in TRAINED.items()}
    assert flops.training(still) == flops.training() - 2 * tower


def test_matrices_that_are_frozen_have_no_gradient_of_their_own():
    assert training_passes(dict.fromkeys(TRAINED, 0.0) | ADAPTERS) == Flops(1, 1, 2, 3, 2)
    norms = TRAINED | {"vision/patch_kernel": 0.0, "vision/blocks/qkv/kernel": 0.0}
    assert training_passes(norms) == Flops(2, 3, 3, 3, 3)
    assert training_passes(norms | {"backbone/head": 0.0}).head == 2


def test_the_decoder_of_qwen2_vl_2b_has_its_known_size():
    text = TextConfig(151_936, 1536, 8960, 28, 12, 2, (16, 24, 24))
    assert decoder_weights(text) == pytest.approx(1.31e9, rel=0.01)


def test_windows_cost_less_than_whole_pictures(wide):
    vision = dataclasses.replace(wide.vision, style="qwen2_5_vl", window_size=32, depth=4)
    windowed = model_flops(wide.replace(vision=vision), [BUCKET])
    vision = dataclasses.replace(vision, full_attention_layers=(0, 1, 2, 3))
    whole = model_flops(wide.replace(vision=vision), [BUCKET])
    assert windowed.vision_attention == whole.vision_attention / 2
    assert windowed.vision == whole.vision
