"""bfloat16 against float32 at a true Qwen2-VL shape, ours and transformers' torch.

    python benchmarks/precision.py 2b --json      # 10 GB of memory and 9 GB of disk, 15 minutes

A checkpoint of random weights gets a chorus. The same samples (a picture, a text, the chorus, an
answer) then pass through our float32 model, our bfloat16 model and torch's bfloat16 model, one
after the other. Reported: the cosine of our bfloat16 embeddings to the float32 ones, and how far
either library's bfloat16 logits are from our float32 logits (root mean square, over their standard
deviation).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import Qwen2VLForConditionalGeneration

from crem_jax.convert.chorus import add_chorus
from crem_jax.convert.huggingface import export_hf, open_hf
from crem_jax.data.inputs.padding import pad_contexts, pad_targets
from crem_jax.data.records import Item
from crem_jax.inference import model as api
from crem_jax.model import crem
from crem_jax.model.pooling import pool_traced
from crem_jax.types import PAD

MAKE = Path(__file__).with_name("make_checkpoint.py")
TEXTS = ("Represent the given image.", "Find a tiger like this one, but asleep:")
ANSWER = ("What is this?", "A tiger, or a part of one.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=("2b", "7b"))
    parser.add_argument(
        "--root", help="where the files go (default: the system's temporary folder)"
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.root, prefix="crem-precision-") as folder:
        result = measure(args.size, Path(folder))
    for name, value in result.items():
        print(f"{name:32}{value}")
    if args.json:
        print(json.dumps(result))


def measure(size: str, root: Path) -> dict:
    subprocess.run([sys.executable, str(MAKE), size, str(root / "plain")], check=True)
    config, params, tokenizer = add_chorus(*open_hf(root / "plain"), 16)
    directory = root / "chorus"
    export_hf(config, params, tokenizer, directory)
    exact, exact_logits = ours(directory, "float32")
    half, half_logits = ours(directory, "bfloat16")
    torch_logits = theirs(directory)
    return {
        "size": size,
        "samples": len(exact),
        "cosine_bf16_to_f32": float(np.min(np.sum(exact * half, axis=-1))),
        "logits_ours_bf16": distance(half_logits, exact_logits),
        "logits_torch_bf16": distance(torch_logits, exact_logits),
    }


def samples(model: api.Model):
    """One batch: pictures of noise with a text each, and an answer."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (len(TEXTS), 448, 448, 3), dtype=np.uint8)
    rows = [
        model.runner.prepare(Item(text, (image,)))
        for text, image in zip(TEXTS, pixels, strict=True)
    ]
    slots = max(len(row.tokens) for row in rows) + model.config.num_chorus
    target = model.runner.prompter.target([ANSWER])
    context = pad_contexts(rows, model.config, slots, len(rows[0].picture))
    width = len(target.tokens)
    return rows, context, pad_targets([target] * len(rows), model.config, width, width)


def ours(directory: Path, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [B, D] and the answers' logits [B, T, V]."""
    model = api.load(directory, dtype=dtype)
    _, context, target = samples(model)

    @jax.jit
    def run(params):
        memory = crem.compress(model.config, params, context)
        z = jnp.zeros(memory.next_position.shape, bool)
        hidden, _ = crem.decode(model.config, params, memory, target, z)
        return pool_traced(memory.chorus), crem.logits(model.config, params, hidden)

    return jax.device_get(run(model.params))


def theirs(directory: Path) -> np.ndarray:
    """The answers' logits of transformers' torch in bfloat16, one sample at a time."""
    model = api.Model(*config_and_tokenizer(directory))
    rows, context, target = samples(model)
    vision, logits = model.config.vision, []
    mean, std = (
        np.reshape(v, (3, 1, 1)).astype(np.float32) for v in (vision.image_mean, vision.image_std)
    )
    net = Qwen2VLForConditionalGeneration.from_pretrained(directory, dtype=torch.bfloat16).eval()
    for i, row in enumerate(rows):
        kept = context.region[i] != PAD
        row_tokens = np.concatenate([context.tokens[i][kept], target.tokens[i]])
        tokens = torch.from_numpy(row_tokens[None]).long()
        values = row.pixels.reshape(len(row.pixels), 3, 1, -1).astype(np.float32) / 255
        values = np.repeat((values - mean) / std, vision.temporal_patch_size, axis=2)
        grid = (row.patch_position.max(axis=0) + 1).tolist()
        with torch.no_grad():
            out = net(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                mm_token_type_ids=(tokens == model.config.image_token_id).int(),
                pixel_values=torch.from_numpy(values.reshape(len(values), -1)),
                image_grid_thw=torch.tensor([[1, *grid]]),
            )
        logits.append(out.logits[0, -target.tokens.shape[1] :].float().numpy())
    return np.stack(logits)


def config_and_tokenizer(directory: Path):
    config, _, tokenizer = open_hf(directory)
    return config, None, tokenizer


def distance(got: np.ndarray, exact: np.ndarray) -> float:
    gc.collect()
    return float(np.sqrt(np.mean(np.square(got - exact))) / np.std(exact))


if __name__ == "__main__":
    main()
