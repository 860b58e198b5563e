"""A Hugging Face checkpoint of a true Qwen2-VL shape with random weights, written shard by shard.

    python benchmarks/make_checkpoint.py 2b /tmp/qwen2-vl-2b                    # 4.4 GB, bfloat16
    python benchmarks/make_checkpoint.py 7b /tmp/qwen2-vl-7b --dtype float32 --json

It has the packaged tokenizer, so it can be imported, trained, asked and exported; its answers are
noise. Memory stays below a gigabyte whatever the size.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import zlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax.numpy as jnp
import numpy as np
from transformers import AutoTokenizer

from crem_jax import trees
from crem_jax.commands.progress import bytes_bar
from crem_jax.config import DTYPES, ModelConfig
from crem_jax.configs.qwen2_vl import TEXT, VISION
from crem_jax.configs.schema.model import ModelSection
from crem_jax.convert import table
from crem_jax.convert.huggingface import export_hf
from crem_jax.lazy_array import Index, LazyArray
from crem_jax.train.setup import TOKENIZER_DIR, scratch_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=sorted(TEXT))
    parser.add_argument("out", help="the directory to make")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    since = time.perf_counter()
    config = model_config(args.size)
    params = random_params(config, args.dtype, args.seed)
    total = sum(leaf.nbytes for leaf in trees.flatten(params).values())
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER_DIR)
    with bytes_bar("writing", total) as on_bytes:
        export_hf(config, params, tokenizer, args.out, dtype=args.dtype, on_bytes=on_bytes)
    seconds = time.perf_counter() - since
    print(f"{args.out}: {total / 1e9:.1f} GB of random {args.dtype} weights in {seconds:.0f} s")
    if args.json:
        print(json.dumps({"directory": args.out, "bytes": total, "seconds": round(seconds, 1)}))


def model_config(size: str) -> ModelConfig:
    """Qwen2-VL of a size, without chorus tokens, for the packaged tokenizer."""
    section = ModelSection(text=TEXT[size], vision=VISION, num_chorus=0)
    return scratch_model(section, AutoTokenizer.from_pretrained(TOKENIZER_DIR))


def random_params(config: ModelConfig, dtype: str, seed: int) -> dict:
    """LazyArrays of noise: kernels of unit gain, scales near one, small biases."""

    def noise(path: str, shape: tuple[int, ...]) -> LazyArray:
        name = path.rpartition("/")[2]
        stacked = "/layers/" in path or "/blocks/" in path
        inputs = math.prod(shape[1:3] if "/o/" in path or "/proj/" in path else shape[stacked:][:1])
        width = {"scale": 0.1, "bias": 0.1, "embedding": 0.02, "head": 0.02}.get(
            name, math.sqrt(3 / inputs)
        )

        def read(index: Index) -> np.ndarray:
            places = [seed, zlib.crc32(path.encode()), *(s.start for s in index)]
            box = [s.stop - s.start for s in index]
            values = np.random.default_rng(places).random(box, np.float32)
            values = (2 * width) * (values - 0.5) + (name == "scale")
            return values.astype(jnp.dtype(dtype))

        return LazyArray(shape, jnp.dtype(dtype), read)

    shapes = table.crem_shapes(config)
    return trees.unflatten({path: noise(path, shape) for path, shape in shapes.items()})


if __name__ == "__main__":
    main()
