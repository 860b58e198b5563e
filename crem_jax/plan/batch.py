"""The batch of a plan: shapes only, no arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.typing import DTypeLike

from crem_jax.config import ConfigError, ModelConfig
from crem_jax.configs.schema.data import BatchSpec, BucketSpec
from crem_jax.types import Batch, Context, Patches, Target

SEQUENCE = BucketSpec(slots=1280, patches=4096, rows=1, target_slots=256, answers=128)
"""One packed sequence: a context of 1,280 slots, which hold the 1,024 vision tokens of 4,096
patches, their markers, the text and the chorus; and a target region of 256 slots, 128 of which are
answer tokens with a logit for every row of the vocabulary."""


def packed_spec(sequences: int) -> BatchSpec:
    """A global batch of packed sequences, each a query, a candidate and a conversation."""
    bucket = BucketSpec(**{**vars(SEQUENCE), "rows": sequences})
    return BatchSpec({"sequence": bucket}, sequences, records={"sequences": sequences})


def check_fits(model: ModelConfig) -> None:
    """Raises ConfigError if a packed sequence is more than the model takes."""
    merged = SEQUENCE.patches // model.vision.merge_size**2
    if merged + model.num_chorus > SEQUENCE.slots:
        raise ConfigError(
            f"a packed sequence of {SEQUENCE.slots} slots cannot hold {merged} vision tokens and "
            f"{model.num_chorus} chorus tokens; leave --per_chip_batch out to plan data.buckets"
        )


def abstract_batch(spec: BatchSpec, model: ModelConfig, sharding: NamedSharding | None) -> Batch:
    """The shapes of a batch that `data.batches.packing.BatchPacker` fills for a spec."""

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(placed, jax.eval_shape(lambda: _zeros(spec, model)))


def _zeros(spec: BatchSpec, model: ModelConfig) -> Batch:
    def array(*shape: int, dtype: DTypeLike = jnp.int32) -> jax.Array:
        return jnp.zeros(shape, dtype)

    contexts, targets = {}, {}
    for name, bucket in sorted(spec.buckets.items()):
        rows, patches = bucket.rows, None
        if bucket.patches:
            patches = Patches(
                pixels=array(rows, bucket.patches, model.vision.patch_values, dtype=jnp.uint8),
                position=array(rows, bucket.patches, 2),
                picture=array(rows, bucket.patches),
            )
        slots = (rows, bucket.slots)
        contexts[name] = Context(array(*slots), array(*slots, 3), array(*slots), patches)
        if bucket.target_slots:
            target, answers = (rows, bucket.target_slots), (rows, bucket.answers)
            targets[name] = Target(
                tokens=array(*target),
                valid=array(*target, dtype=jnp.bool_),
                answer_slot=array(*answers),
                answer=array(*answers),
            )
    return Batch(
        contexts=contexts,
        targets=targets,
        query_row=array(spec.queries),
        positive_hash=array(spec.queries, spec.positives, 2, dtype=jnp.uint32),
        candidate_row=array(spec.candidates),
        candidate_hash=array(spec.candidates, 2, dtype=jnp.uint32),
    )
