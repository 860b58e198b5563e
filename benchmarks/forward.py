"""Our forward beside transformers' torch on one pinned core: same weights, same inputs, float32.

    python benchmarks/forward.py            # about two minutes
    python benchmarks/forward.py --quick --json

Both sides run in one process pinned to one core, in turns, so that whatever else the machine does
meets both alike. The ratio of every pair of turns is taken first, the median of those is reported.
The outputs are compared before anything is timed. Torch runs its own scaled-dot-product attention,
its faster one, and leaves the head out where we do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CORE = max(os.sched_getaffinity(0))
os.sched_setaffinity(0, {CORE})  # Before the libraries start their threads.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration  # noqa: E402

from crem_jax import lazy  # noqa: E402
from crem_jax.config import ModelConfig  # noqa: E402
from crem_jax.convert import config_json, table  # noqa: E402
from crem_jax.convert.safetensors_io import Weights  # noqa: E402
from crem_jax.model import crem  # noqa: E402
from crem_jax.types import CONTEXT, Context, Patches  # noqa: E402

torch.set_num_threads(1)
LIMIT = 1e-4
VOCAB, IMAGE = 2048, 2000
SIZES = {
    "full": dict(hidden=512, layers=8, vision=256, depth=4, grid=32, text=64, batches=(1, 4)),
    "quick": dict(hidden=128, layers=2, vision=64, depth=2, grid=8, text=16, batches=(1,)),
}


def torch_model(size: dict) -> Qwen2VLForConditionalGeneration:
    """A Qwen2-VL with heads of 64, two key/value heads and random weights of unit gain."""
    torch.manual_seed(0)
    hidden = size["hidden"]
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "num_hidden_layers": size["layers"],
            "num_attention_heads": hidden // 64,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [8, 12, 12],
            },
            "tie_word_embeddings": True,
            "bos_token_id": IMAGE + 4,
            "eos_token_id": IMAGE + 5,
            "pad_token_id": IMAGE + 4,
        },
        vision_config={
            "depth": size["depth"],
            "embed_dim": size["vision"],
            "hidden_size": hidden,
            "num_heads": size["vision"] // 64,
            "mlp_ratio": 4,
            "patch_size": 14,
        },
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        vision_start_token_id=IMAGE + 2,
        vision_end_token_id=IMAGE + 3,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    model = Qwen2VLForConditionalGeneration(config).eval().requires_grad_(False)
    for tensor in model.parameters():
        if tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
    return model


def ours_of(directory: str) -> tuple[ModelConfig, crem.Params]:
    """The saved model as ours."""
    config = config_json.from_hf(json.loads((Path(directory) / "config.json").read_text()))
    weights = Weights(Path(directory))
    params = lazy.materialise(table.from_hf(config, weights, source=directory), np.float32)
    return config, jax.tree.map(jnp.array, params)


def inputs(config: ModelConfig, size: dict, batch: int) -> tuple[Context, dict[str, torch.Tensor]]:
    """The same prompts for both: one square picture each, then text."""
    rng = np.random.default_rng(batch)
    grid, merge = size["grid"], config.vision.merge_size
    side = grid // merge
    vision = side * side
    row = [config.vision_start_token_id, *[IMAGE] * vision, config.vision_end_token_id]
    text = rng.integers(0, IMAGE, (batch, size["text"]))
    tokens = np.concatenate([np.tile(row, (batch, 1)), text], axis=1).astype(np.int32)
    corner = np.indices((1, side, side)).reshape(3, -1).T + 1
    after = np.arange(side + 1, side + 2 + size["text"])[:, None].repeat(3, axis=1)
    position = np.concatenate([np.zeros((1, 3), int), corner, after]).astype(np.int32)
    blocks = np.indices((side, side, merge, merge)).reshape(4, -1)
    places = np.stack([merge * blocks[0] + blocks[2], merge * blocks[1] + blocks[3]], axis=-1)
    pixels = rng.integers(0, 256, (batch, grid * grid, config.vision.patch_values), dtype=np.uint8)
    context = Context(
        tokens=tokens,
        position=np.tile(position, (batch, 1, 1)),
        region=np.full(tokens.shape, CONTEXT, np.int32),
        patches=Patches(
            pixels=pixels,
            position=np.tile(places.astype(np.int32), (batch, 1, 1)),
            picture=np.ones((batch, grid * grid), np.int32),
        ),
    )
    mean, std = (
        np.reshape(values, (3, 1, 1)).astype(np.float32)
        for values in (config.vision.image_mean, config.vision.image_std)
    )
    values = (pixels.reshape(-1, 3, 1, config.vision.patch_size**2) / np.float32(255) - mean) / std
    twice = np.repeat(values, config.vision.temporal_patch_size, axis=2)
    ids = torch.from_numpy(tokens).long()
    return jax.device_put(context), {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.from_numpy(twice.reshape(len(twice), -1)),
        "image_grid_thw": torch.tensor([[1, grid, grid]] * batch),
    }


def forward(config: ModelConfig, params: crem.Params, context: Context, logits: bool) -> jax.Array:
    """Final hidden states [B, S, D] of a whole prompt, or logits [B, S, V]."""
    # Counting every slot as chorus makes the compressor hand out all of its hidden states.
    slots = context.tokens.shape[1]
    every = config.replace(num_chorus=slots, first_chorus_id=0)
    hidden = crem.compress(every, params, context).chorus
    return crem.logits(config, params, hidden) if logits else hidden


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(model, config: ModelConfig, params, size: dict, batch: int, turns: int) -> list[dict]:
    """One row for hidden states, one for logits: median seconds of both, and of their ratios."""
    context, asked = inputs(config, size, batch)
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

        worst = float(np.abs(np.asarray(run_ours()) - run_torch().numpy()).max())
        if not worst <= LIMIT:
            sys.exit(f"{part}, batch {batch}: outputs differ by {worst:.1e}, more than {LIMIT:.0e}")
        seconds(run_torch)
        pairs = []
        for turn in range(turns):
            order = (run_ours, run_torch) if turn % 2 else (run_torch, run_ours)
            took = {run: seconds(run) for run in order}
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
    size = SIZES["quick" if arguments.quick else "full"]
    turns = arguments.turns or (3 if arguments.quick else 15)
    model = torch_model(size)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        config, params = ours_of(directory)
    tokens = (size["grid"] // 2) ** 2
    load = os.getloadavg()[0]
    print(f"{tokens} vision + {size['text']} text tokens, core {CORE}, load {load:.1f}")
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
        print(json.dumps({"median_ratio": ratio, "load": load, "turns": turns, "rows": rows}))


if __name__ == "__main__":
    main()
