"""Our forward beside transformers' torch: same weights, same inputs, one after the other in turns.

    python benchmarks/forward.py            # about two minutes
    python benchmarks/forward.py --quick --json

On a CPU both sides run in float32 and in one process pinned to one core, in turns, so that
whatever else the machine does meets both alike. On a GPU both run in bfloat16 at the shape of
Qwen2-VL-2B, ours by cuDNN's flash attention. The ratio of every pair of turns is taken first, the
median of those is reported. The outputs are compared before anything is timed. Torch runs its own
scaled-dot-product attention, its faster one, and leaves the head out where we do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile

import qwen  # first: it chooses the device

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import torch

from crem_jax.config import ModelConfig
from crem_jax.model import crem
from crem_jax.types import Context

LIMIT = 3e-2 if qwen.GPU else 1e-4
"""Of the largest difference; in bfloat16 of the root mean square, relative to the outputs'."""


def difference(ours: jax.Array, theirs: torch.Tensor) -> float:
    got, expected = np.asarray(ours, np.float32), theirs.float().cpu().numpy()
    if qwen.GPU:
        return float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))
    return float(np.abs(got - expected).max())


def forward(config: ModelConfig, params: crem.Params, context: Context, logits: bool) -> jax.Array:
    """Final hidden states [B, S, D] of a whole prompt, or logits [B, S, V]."""
    # Counting every slot as chorus makes the compressor hand out all of its hidden states.
    slots = context.tokens.shape[1]
    every = config.replace(num_chorus=slots, first_chorus_id=0)
    hidden = crem.compress(every, params, context).chorus
    return crem.logits(config, params, hidden) if logits else hidden


def measure(model, config: ModelConfig, params, size: dict, batch: int, turns: int) -> list[dict]:
    """One row for hidden states, one for logits: median seconds of both, and of their ratios."""
    context, asked = qwen.inputs(config, size, batch)
    rows = []
    for part in ("hidden", "logits"):
        ours = (
            jax.jit(forward, static_argnums=(0, 3))
            .lower(config, params, context, part == "logits")
            .compile()
        )

        def run_ours(ours=ours):
            return ours(params, context).block_until_ready()

        def run_torch(part=part):
            with torch.inference_mode():
                if part == "logits":
                    return model(**asked, use_cache=False).logits
                return model.model(**asked, use_cache=False).last_hidden_state

        worst = difference(run_ours(), run_torch())
        if not worst <= LIMIT:
            sys.exit(f"{part}, batch {batch}: outputs differ by {worst:.1e}, more than {LIMIT:.0e}")
        qwen.seconds(run_torch)
        pairs = []
        for turn in range(turns):
            order = (run_ours, run_torch) if turn % 2 else (run_torch, run_ours)
            took = {run: qwen.seconds(run) for run in order}
            pairs.append((took[run_ours], took[run_torch]))
        rows.append(
            {
                "part": part,
                "batch": batch,
                "ours_ms": 1e3 * statistics.median(mine for mine, _ in pairs),
                "torch_ms": 1e3 * statistics.median(theirs for _, theirs in pairs),
                "ratio": statistics.median(mine / theirs for mine, theirs in pairs),
                "difference": worst,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, three turns")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--turns", type=int, default=None, help="pairs of runs (default 15)")
    arguments = parser.parse_args()
    size = qwen.SIZES["quick" if arguments.quick else "2b" if qwen.GPU else "full"]
    turns = arguments.turns or (3 if arguments.quick else 15)
    model = qwen.torch_model(size)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        config, params = qwen.ours_of(directory)
    if qwen.GPU:
        model, config = model.bfloat16(), config.replace(dtype="bfloat16")
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    tokens = (size["grid"] // 2) ** 2
    machine = qwen.machine()
    print(f"{tokens} vision + {size['text']} text tokens, {machine}")
    rows = []
    for batch in size["batches"]:
        for row in measure(model, config, params, size, batch, turns):
            rows.append(row)
            print(
                f"{row['part']:>7} of {batch}: ours {row['ours_ms']:7.1f} ms, torch "
                f"{row['torch_ms']:7.1f} ms, ratio {row['ratio']:.2f}, "
                f"largest difference {row['difference']:.0e}"
            )
    ratio = statistics.median(row["ratio"] for row in rows)
    print(f"median ratio ours/torch {ratio:.2f}")
    if arguments.json:
        print(json.dumps({"median_ratio": ratio, "machine": machine, "turns": turns, "rows": rows}))


if __name__ == "__main__":
    main()
