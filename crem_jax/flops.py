"""Floating-point operations (FLOPs) of the model, computed from its shapes.

XLA's own cost analysis does not serve: it counts a scanned layer once and a custom kernel as zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from crem_jax.config import ModelConfig, TextConfig, VisionConfig


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one forward pass, by part of the model; a multiply-add counts as two.

    Attributes:
      vision, vision_attention: the vision tower's matrix products, and its attention (scores and
        weighted sums).
      text, attention: the same for the decoder layers, over contexts and targets.
      head: the language-model logits of the answers.
    """

    vision: float = 0.0
    vision_attention: float = 0.0
    text: float = 0.0
    attention: float = 0.0
    head: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(a + b for a, b in zip(self.parts, other.parts, strict=True)))

    def __mul__(self, other: Flops) -> Flops:
        """The product of each part with the same part of `other`."""
        return Flops(*(a * b for a, b in zip(self.parts, other.parts, strict=True)))

    @property
    def parts(self) -> tuple[float, ...]:
        return dataclasses.astuple(self)

    @property
    def forward(self) -> float:
        return sum(self.parts)

    def training(self, rates: Mapping[str, float] | None = None) -> float:
        """FLOPs of a training step without rematerialisation, as model FLOPs utilisation counts.

        Args:
          rates: see `training_passes`.
        """
        return (self * training_passes(rates)).forward


def training_passes(rates: Mapping[str, float] | None = None) -> Flops:
    """The cost of each part in a training step, in multiples of its forward pass.

    The backward pass adds one for the gradient with respect to the inputs, and one for the gradient
    with respect to the weights if any of the part's matrices are trained (adapters are too small to
    count). A wholly frozen vision tower has no backward pass.

    Args:
      rates: learning-rate multipliers by parameter path, 0 where frozen; None trains everything.
    """
    if rates is None:
        return Flops(3, 3, 3, 3, 3)
    trained = {path for path, rate in rates.items() if rate}

    def matrices(part: str) -> int:
        return 2 + any(path.startswith(part) and path.endswith("kernel") for path in trained)

    trains_vision = any(path.startswith("vision/") for path in trained)
    head = "backbone/head" if "backbone/head" in rates else "backbone/embedding"
    return Flops(
        vision=matrices("vision/") if trains_vision else 1,
        vision_attention=3 if trains_vision else 1,
        text=matrices("backbone/layers/"),
        attention=3,
        head=2 + (head in trained),
    )


def model_flops(config: ModelConfig, buckets: Mapping[str, Any] | Iterable[Any]) -> Flops:
    """FLOPs of one forward pass over a batch of static shape, padding included.

    Attention counts only unmasked pairs of query and key slots, and takes a row's patches as one
    image.

    Args:
      buckets: the batch's buckets, each a `data.batches.spec.BucketSpec` or anything with its
        fields.
    """
    total = Flops()
    shapes: Iterable[Any] = buckets.values() if isinstance(buckets, Mapping) else buckets
    for bucket in shapes:
        rows = bucket.rows
        if bucket.patches:
            linear, pairs = vision_flops(config.vision, config.text.hidden_size, bucket.patches)
            total += Flops(vision=rows * linear, vision_attention=rows * pairs)
        slots, targets = bucket.slots, bucket.target_slots
        visible_pairs = slots * (slots + 1) / 2 + targets * slots + targets * (targets + 1) / 2
        text = config.text
        total += Flops(
            text=rows * (slots + targets) * 2 * decoder_weights(text),
            attention=rows * text.num_layers * 4 * text.hidden_size * visible_pairs,
            head=rows * bucket.answers * 2 * text.hidden_size * text.vocab_size,
        )
    return total


def decoder_weights(text: TextConfig) -> int:
    """The number of weights in the matrices of the decoder layers."""
    width = text.hidden_size
    attention = 2 * width * width + 2 * width * text.num_kv_heads * text.head_dim
    return text.num_layers * (attention + 3 * width * text.intermediate_size)


def vision_flops(vision: VisionConfig, features: int, patches: int) -> tuple[float, float]:
    """FLOPs of the vision tower on one row of `patches` patches: (matrix products, attention).

    Args:
      features: hidden size of the decoder.
    """
    width, group = vision.embed_dim, vision.merge_size**2
    matrices = 3 if vision.style == "qwen2_5_vl" else 2
    block = 4 * width * width + matrices * width * vision.mlp_dim
    merger = group * width * (group * width + features) / group
    linear = vision.patch_values * width + vision.depth * block + merger
    window = min(vision.window**2, patches) if vision.window_size else patches
    full = len([layer for layer in vision.full_attention_layers if layer < vision.depth])
    full = full if vision.window_size else vision.depth
    visible_pairs = patches * (full * patches + (vision.depth - full) * window)
    return 2 * linear * patches, 4 * width * visible_pairs
