"""An estimate of a step's time: each part bound by arithmetic or by memory, and the links.

An upper bound of what a chip can do and no measurement: matrices run at the chip's full rate, each
reads its weights and input and writes its output once, and nothing else costs anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from crem_jax.chips import Chip
from crem_jax.config import ModelConfig
from crem_jax.configs.schema.data import BucketSpec
from crem_jax.flops import Flops, decoder_weights, model_flops, training_passes
from crem_jax.train.objective.joint_loss import LossConfig

WIDTH = 2
"""Bytes of a bfloat16 weight or activation."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the step on one chip.

    Attributes:
      flops: executed, passes that are repeated to save memory included. bytes: of HBM traffic.
    """

    name: str
    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    def seconds(self, chip: Chip) -> float:
        return max(self.flops / chip.flops, self.bytes / chip.bandwidth)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of a step on one chip.

    Attributes:
      parts: vision, text, attention, head and optimizer.
      compute: seconds of the parts, one after another. links: of the collectives.
      model_flops: what counts as useful.
    """

    parts: tuple[Part, ...]
    compute: float
    links: float
    model_flops: float
    peak: float

    @property
    def seconds(self) -> float:
        """With the collectives hidden behind arithmetic as far as they fit."""
        return max(self.compute, self.links)

    @property
    def utilisation(self) -> float:
        """Model-FLOPs utilisation at that time."""
        return self.model_flops / (self.peak * self.seconds)

    @property
    def utilisation_exposed(self) -> float:
        """If no collective were hidden."""
        return self.model_flops / (self.peak * (self.compute + self.links))


def estimate(
    model: ModelConfig,
    buckets: Iterable[BucketSpec],
    chip: Chip,
    chips: int,
    link_bytes: float,
    state_bytes: float,
    loss: LossConfig,
    rates: Mapping[str, float] | None = None,
) -> Estimate:
    """The estimate for one of `chips` chips that share a global batch evenly.

    Args:
      link_bytes: of a chip's collectives. state_bytes: of its parameters and moments.
      loss: says what GradCache runs. rates: see `flops.training_passes`.
    """
    buckets = list(buckets)
    flops, traffic = model_flops(model, buckets), _forward_bytes(model, buckets, chips)
    passes = training_passes(rates)
    again = model.remat == "full"  # every layer that has a backward pass runs forward twice
    tower = again and passes.vision > 1
    passes += Flops(tower, tower, again, again, head=1)  # chunks of the head are computed again
    done, moved = flops * passes, traffic * passes
    if loss.chunk_rows and loss.retrieval:  # the first pass of `train.gradcache`
        contexts = [_context(bucket, not loss.cache_vision) for bucket in buckets]
        done += model_flops(model, contexts)
        moved += _forward_bytes(model, contexts, chips)
    parts = (
        Part("vision", done.vision / chips, moved.vision),
        Part("text", done.text / chips, moved.text),
        Part(
            "attention",
            (done.attention + done.vision_attention) / chips,
            moved.attention + moved.vision_attention,
        ),
        Part("head", done.head / chips, moved.head),
        Part("optimizer", 0.0, 2 * state_bytes),
    )
    return Estimate(
        parts=parts,
        compute=sum(part.seconds(chip) for part in parts),
        links=link_bytes / chip.links,
        model_flops=flops.training(rates) / chips,
        peak=chip.flops,
    )


def _context(bucket: BucketSpec, images: bool) -> BucketSpec:
    """The bucket without its conversations, and without its images unless `images`."""
    patches = bucket.patches if images else 0
    return dataclasses.replace(bucket, patches=patches, target_slots=0, answers=0)


def _forward_bytes(model: ModelConfig, buckets: list[BucketSpec], chips: int) -> Flops:
    """HBM traffic of one forward pass on one chip: weights once a bucket, activations per token."""
    text, vision = model.text, model.vision
    block = decoder_weights(text)
    wide = text.num_kv_heads * text.head_dim
    per_token = text.num_layers * (8 * text.hidden_size + 2 * wide + 3 * text.intermediate_size)
    mlp = (2 if vision.style == "qwen2_vl" else 3) * vision.mlp_dim
    tower = vision.depth * (4 * vision.embed_dim**2 + vision.embed_dim * mlp)
    per_patch = vision.depth * (8 * vision.embed_dim + mlp)
    total = Flops()
    for bucket in buckets:
        rows = bucket.rows / chips
        tokens, patches = rows * (bucket.slots + bucket.target_slots), rows * bucket.patches
        runs = 2 if bucket.target_slots else 1
        shared = text.num_layers * rows * 2 * wide * (bucket.slots if bucket.target_slots else 0)
        total += Flops(
            vision=WIDTH * ((tower if patches else 0) + patches * per_patch),
            vision_attention=WIDTH * vision.depth * 4 * vision.embed_dim * patches,
            text=WIDTH * (runs * block + tokens * per_token),
            attention=WIDTH
            * (text.num_layers * tokens * (2 * text.hidden_size + 2 * wide) + shared),
            head=WIDTH * text.vocab_size * (text.hidden_size + 2 * rows * bucket.answers)
            if bucket.answers
            else 0.0,
        )
    return total
