"""Temporary memory of one layer's attention, forward and backward: splash against dense, for a TPU.

    python benchmarks/attention_memory.py --json    # a minute; needs crem_jax[plan], no TPU

Compiles the gradient of one attention call at the shapes of Qwen2-VL-2B for v5e, four rows a chip,
and reads the compiler's plan: all it holds at once beside inputs and gradients. Nothing runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

from crem_jax.plan import stay_on_host

stay_on_host()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from crem_jax import mesh as meshes  # noqa: E402
from crem_jax.model import mask  # noqa: E402
from crem_jax.model.attention import attend  # noqa: E402
from crem_jax.plan.batch import SEQUENCE  # noqa: E402
from crem_jax.plan.pods import find_pod  # noqa: E402

TOPOLOGY, ROWS = "v5e:2x2", 4
HEADS, GROUPS, DIM = 12, 2, 128
VISION_HEADS, VISION_DIM = 16, 80


def context(how: str, q, k, v, region) -> jax.Array:
    """Context rows on themselves."""
    return attend(q, [(k, v, mask.context_mask(region))], how)


def target(how: str, q, mk, mv, k, v, region, valid, z) -> jax.Array:
    """Target rows on the memory and themselves."""
    memory = (mk, mv, mask.memory_mask(region, z))
    return attend(q, [memory, (k, v, mask.target_mask(valid, valid))], how)


def vision(how: str, q, k, v, segment) -> jax.Array:
    """Patches on their picture."""
    return attend(q, [(k, v, mask.segment_mask(segment))], how)


def temporary(call: Callable, how: str, inputs: Sequence[jax.ShapeDtypeStruct], mesh) -> float:
    """MiB on one chip."""
    differentiable = [i for i, x in enumerate(inputs) if x.dtype == jnp.bfloat16]

    def loss(*arrays):
        return jnp.sum(call(how, *arrays).astype(jnp.float32))

    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, differentiable)).lower(*inputs).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    pod = find_pod(TOPOLOGY)
    mesh = pod.mesh((1, len(pod.devices), 1))
    rows = ROWS * len(pod.devices)

    def array(*shape: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=meshes.rows(mesh))

    slots, width, patches = SEQUENCE.slots, SEQUENCE.target_slots, SEQUENCE.patches
    memory, own = array(GROUPS, slots, DIM), array(GROUPS, width, DIM)
    region, valid, z = array(slots, dtype=jnp.int32), array(width, dtype=bool), array(dtype=bool)
    picture = array(VISION_HEADS, patches, VISION_DIM)
    calls = {
        "context": (context, [array(HEADS, slots, DIM), memory, memory, region]),
        "target": (
            target,
            [array(HEADS, width, DIM), memory, memory, own, own, region, valid, z],
        ),
        "vision": (vision, [*[picture] * 3, array(patches, dtype=jnp.int32)]),
    }
    found = {}
    for name, (call, inputs) in calls.items():
        dense, splash = (temporary(call, how, inputs, mesh) for how in ("xla", "splash"))
        found[name] = {"dense_mib": dense, "splash_mib": splash, "share": splash / dense}
        print(f"{name:>8}: dense {dense:8.1f} MiB, splash {splash:6.1f}, {splash / dense:.2%}")
    if arguments.json:
        print(json.dumps({"topology": TOPOLOGY, "rows_per_chip": ROWS, "layers": found}))


if __name__ == "__main__":
    main()
