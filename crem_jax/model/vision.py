"""The vision towers of Qwen2-VL and Qwen2.5-VL, over packed images of any size."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crem_jax.config import VisionConfig
from crem_jax.mesh import constrain
from crem_jax.model.attention import attend
from crem_jax.model.layers import Dense, LayerNorm, RMSNorm, SwiGLU, partitioned
from crem_jax.model.mask import segment_mask
from crem_jax.model.rope import Rotation, rotate, vision_rotation
from crem_jax.types import Patches


def quick_gelu(x: jax.Array) -> jax.Array:
    return x * nn.sigmoid(1.702 * x)


def window_segments(patches: Patches, window: int) -> jax.Array:
    """Segment ids of windows of `window` × `window` patches, tiled from each image's corner.

    Returns:
      int32 [B, P], one id for each window of each image (ids wrap around, and are distinct while
      images · (P / window)² is below 2³²); 0 is padding.
    """
    row, column = jnp.moveaxis(patches.position // window, -1, 0)
    side = patches.picture.shape[1] // window + 1
    return jnp.where(patches.picture > 0, (patches.picture * side + row) * side + column, 0)


def layer_segments(config: VisionConfig, patches: Patches) -> jax.Array:
    """Segment ids of each layer, int32 [depth, B, P]: windows, or images in full attention."""
    full = np.isin(np.arange(config.depth), config.full_attention_layers)[:, None, None]
    return jnp.where(full, patches.picture, window_segments(patches, config.window))


def norm(config: VisionConfig, name: str) -> nn.Module:
    if config.style == "qwen2_vl":
        return LayerNorm(name=name)
    return RMSNorm(1e-6, "vision_embed", name=name)


class VisionBlock(nn.Module):
    config: VisionConfig
    dtype: jnp.dtype = jnp.float32
    attention: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array, rotation: Rotation, segment: jax.Array):
        """One block of the vision tower, for `nn.scan`.

        Args:
          x: [B, P, E]. rotation: of the patches.
          segment: int32 [B, P]; patches attend to those with the same id; 0 is padding.

        Returns:
          (x, None).
        """
        cfg = self.config
        heads = (cfg.num_heads, cfg.head_dim)
        x = constrain(x, "batch", "length", "vision_embed")
        qkv = Dense(
            (3, *heads),
            ("vision_embed", "qkv", "vision_heads", "head_dim"),
            dtype=self.dtype,
            name="qkv",
        )(norm(cfg, "norm1")(x))
        qkv = constrain(qkv, "batch", "length", "qkv", "vision_heads", "head_dim")
        q, k, v = (qkv[:, :, i] for i in range(3))
        q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        out = attend(q, [(k, v, segment_mask(segment))], self.attention)
        x = x + Dense(
            (cfg.embed_dim,),
            ("vision_heads", "head_dim", "vision_embed"),
            contract=2,
            scale=0.5 / cfg.depth,
            dtype=self.dtype,
            name="proj",
        )(out)
        x = constrain(x, "batch", "length", "vision_embed")
        y, axes = norm(cfg, "norm2")(x), ("vision_embed", "vision_mlp")
        if cfg.style == "qwen2_5_vl":
            mlp = SwiGLU(cfg.mlp_dim, 0.5 / cfg.depth, self.dtype, True, axes, name="mlp")
            return x + mlp(y), None
        y = Dense((cfg.mlp_dim,), axes, dtype=self.dtype, name="fc1")(y)
        y = constrain(y, "batch", "length", "vision_mlp")
        y = Dense(
            (cfg.embed_dim,), axes[::-1], scale=0.5 / cfg.depth, dtype=self.dtype, name="fc2"
        )(quick_gelu(y))
        return x + y, None


class VisionTower(nn.Module):
    """Encodes image patches as vision tokens of the decoder's width.

    Attributes:
      features: hidden size of the decoder.
    """

    config: VisionConfig
    features: int
    remat: str = "none"
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32
    attention: str = "xla"

    @nn.compact
    def __call__(self, patches: Patches) -> jax.Array:
        """Vision tokens [B, P / merge², D]; those of padding patches are meaningless."""
        cfg = self.config
        mean = jnp.repeat(jnp.asarray(cfg.image_mean, jnp.float32), cfg.patch_size**2)
        std = jnp.repeat(jnp.asarray(cfg.image_std, jnp.float32), cfg.patch_size**2)
        x = (patches.pixels.astype(jnp.float32) / 255.0 - mean) / std
        # A still picture repeats in time, so Qwen2-VL's temporal slices of the kernel just add up.
        shape = (cfg.in_channels, cfg.temporal_patch_size, cfg.patch_size**2, cfg.embed_dim)
        init = nn.initializers.variance_scaling(
            1.0 / cfg.temporal_patch_size, "fan_in", "truncated_normal", in_axis=(0, 1, 2)
        )
        names = ("channels", "time", "pixels", "vision_embed")
        kernel = self.param("patch_kernel", partitioned(init, names), shape)
        kernel = jnp.sum(kernel, axis=1).reshape(cfg.patch_values, cfg.embed_dim)
        x = x.astype(self.dtype) @ kernel.astype(self.dtype)

        rotation = vision_rotation(patches.position, cfg.head_dim, cfg.rope_theta)
        # One compiled block serves windowed and full layers: they differ in these ids alone.
        windowed = bool(cfg.window_size)
        segment = layer_segments(cfg, patches) if windowed else patches.picture
        in_axes = (nn.broadcast, 0 if windowed else nn.broadcast)
        x, _ = scanned(VisionBlock, cfg.depth, self.remat, self.unroll, in_axes)(
            cfg, self.dtype, self.attention, name="blocks"
        )(x, rotation, segment)

        batch, count, width = x.shape
        group = cfg.merge_size**2
        x = norm(cfg, "merge_norm")(x).reshape(batch, count // group, group * width)
        x = Dense((group * width,), ("merge", "vision_mlp"), dtype=self.dtype, name="merge_fc1")(x)
        x = constrain(x, "batch", "length", "vision_mlp")
        x = nn.gelu(x, approximate=False)
        return Dense((self.features,), ("vision_mlp", "embed"), dtype=self.dtype, name="merge_fc2")(
            x
        )


def scanned(block: type[nn.Module], length: int, remat: str, unroll: int, in_axes=nn.broadcast):
    """A stack of `length` blocks, scanned over parameters stacked along a leading axis.

    Args:
      remat: what the backward pass recomputes: "none", "full", or "dots" (all but matmuls).
      unroll: layers compiled into one iteration, faster where layers are tiny.
      in_axes: as of `nn.scan`.
    """
    if remat != "none":
        policy = (
            None if remat == "full" else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        )
        block = nn.remat(block, policy=policy, prevent_cse=False)
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=length,
        in_axes=in_axes,
        unroll=min(unroll, length),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
