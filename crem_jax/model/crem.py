"""CREM: compressor and decoder over one set of backbone weights, as pure functions.

memory = compress(config, params, context)          # [V, T, U] -> Memory
pool_traced(memory.chorus)                          # the librarian: float32 [B, D]
hidden, _ = decode(config, params, memory, target, z)  # the storyteller: [B, T, D]
logits(config, params, hidden)                      # float32 [B, T, V]
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crem_jax import trees
from crem_jax.config import ModelConfig
from crem_jax.model import lora
from crem_jax.model.attention import implementation
from crem_jax.model.backbone import Backbone
from crem_jax.model.compressor import Compressor
from crem_jax.model.decoder import Decoder
from crem_jax.model.vision import VisionTower
from crem_jax.types import CHORUS, CONTEXT, Cache, Context, Memory, Patches, Target

Params = dict[str, Any]


class Crem(nn.Module):
    """The whole model: compressor and decoder over shared modules `vision` and `backbone`."""

    config: ModelConfig

    def setup(self):
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        options = (cfg.remat, cfg.unroll, dtype, implementation(cfg.attention, dtype))
        self.vision = VisionTower(cfg.vision, cfg.text.hidden_size, *options)
        self.backbone = Backbone(cfg.text, *options)
        self.compressor = Compressor(self.vision, self.backbone, cfg.num_chorus, cfg.image_token_id)
        self.decoder = Decoder(self.backbone)

    def compress(self, context: Context, vision: jax.Array | None = None) -> Memory:
        return self.compressor(context, vision)

    def encode_images(self, patches: Patches) -> jax.Array:
        return self.vision(patches)

    def decode(
        self, memory: Memory, target: Target, z: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        return self.decoder(memory, target, z, cache)

    def logits(self, hidden: jax.Array) -> jax.Array:
        return self.backbone.logits(hidden)

    def __call__(self, context: Context, target: Target) -> jax.Array:
        """Uses every parameter, so that `init` creates them all."""
        memory = self.compress(context)
        hidden, _ = self.decode(memory, target, jnp.zeros(memory.next_position.shape, bool))
        return self.logits(hidden)


def compress(
    config: ModelConfig, params: Params, context: Context, vision: jax.Array | None = None
) -> Memory:
    """Compresses a context into a Memory, see `Compressor`.

    Args:
      vision: what `encode_images` gives for the context's patches; None computes it.
    """
    return _apply(config, params, Crem.compress, context, vision)


def encode_images(config: ModelConfig, params: Params, patches: Patches) -> jax.Array:
    """Vision tokens [B, P / merge², D] of image patches, which `compress` accepts as `vision`."""
    return _apply(config, params, Crem.encode_images, patches)


def decode(
    config: ModelConfig,
    params: Params,
    memory: Memory,
    target: Target,
    z: jax.Array,
    cache: Cache | None = None,
) -> tuple[jax.Array, Cache | None]:
    """Hidden states of the target region, see `Decoder.__call__`."""
    return _apply(config, params, Crem.decode, memory, target, z, cache)


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Next-token logits: hidden states […, D] -> float32 […, V]."""
    return _apply(config, params, Crem.logits, hidden)


def head(config: ModelConfig, params: Params) -> jax.Array:
    """The weights of the language-model head, [V, D]: the logits are hidden · headᵀ."""
    return params["backbone"]["embedding" if config.text.tie_embeddings else "head"]


def boxed_init(config: ModelConfig, key: jax.Array) -> Params:
    """Initial parameters with logical axis names (`nn.LogicallyPartitioned` leaves)."""
    merge, slots = config.vision.merge_size**2, config.num_chorus + 1
    tokens = jnp.full((1, slots), config.image_token_id, jnp.int32)
    context = Context(
        tokens=tokens,
        position=jnp.zeros((1, slots, 3), jnp.int32),
        region=jnp.full((1, slots), CHORUS, jnp.int32).at[:, 0].set(CONTEXT),
        patches=Patches(
            pixels=jnp.zeros((1, merge, config.vision.patch_values), jnp.uint8),
            position=jnp.zeros((1, merge, 2), jnp.int32),
            picture=jnp.ones((1, merge), jnp.int32),
        ),
    )
    one = jnp.zeros((1, 1), jnp.int32)
    target = Target(tokens=one, valid=jnp.ones((1, 1), bool), answer_slot=one, answer=one)
    params = Crem(config).init(key, context, target)["params"]
    return lora.add_adapters(config, params, key) if config.lora else params


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Initial float32 parameters, as a nested dict of arrays."""
    return nn.meta.unbox(boxed_init(config, key))


def abstract(config: ModelConfig) -> Params:
    """Shapes, dtypes and logical axes of the parameters, without allocating them."""
    return jax.eval_shape(lambda: boxed_init(config, jax.random.key(0)))


def axes(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Parameter path -> its logical axes."""
    return {path: leaf.names for path, leaf in trees.flatten(abstract(config)).items()}


def _apply(config: ModelConfig, params: Params, method, *arguments):
    params = lora.scaled(config, params)
    return Crem(config).apply({"params": params}, *arguments, method=method)
