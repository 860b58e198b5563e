"""An evaluation on MMEB's format, beside the straightforward way to do it; then the same again.

    python benchmarks/evaluate.py --json

The data are emoji in MMEB's format (`crem_jax.evaluate.mmeb.emoji_data`), a quarter of its data
sets, in the sizes of real pictures (`picture_sizes.csv`), a third of them so that a CPU is done in
minutes. The model has random weights, and its language-model head the share of the arithmetic that
Qwen2-VL-2B's has. Both ways read the same files and run the same jitted layers on the same machine
in float32, once to compile and once to be timed.

Straightforward, as public evaluations do it: each data set by itself, its distinct queries and
candidates in their order, batches of 16 padded to their longest, the language-model head on every
token, and a loop over rows that stacks their candidates. Ours: `crem_jax.evaluate.mmeb`. Embeddings
of one data set are compared first, and the scores of all at the end. Last, ours runs again on what
it has kept.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from transformers import AutoTokenizer

from crem_jax.config import ModelConfig, TextConfig, VisionConfig
from crem_jax.convert.chorus import chorus_tokens
from crem_jax.data.inputs.padding import pad_contexts
from crem_jax.data.records import Item
from crem_jax.evaluate.mmeb.cases import read_cases
from crem_jax.evaluate.mmeb.datasets import Dataset, chosen
from crem_jax.evaluate.mmeb.emoji_data import write
from crem_jax.evaluate.mmeb.evaluate import evaluate
from crem_jax.inference.model import Model
from crem_jax.model.crem import Crem, init
from crem_jax.model.mask import context_mask
from crem_jax.model.pooling import pool
from crem_jax.train.start import TOKENIZER_DIR

NAMES = (
    *("ImageNet-1K", "ImageNet-A", "OK-VQA", "GQA", "VisDial", "WebQA"),
    *("MSCOCO_t2i", "MSCOCO_i2t", "RefCOCO"),
)
SIZES = Path(__file__).with_name("picture_sizes.csv")
BATCH = 16  # of public evaluations
WORKERS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=12, help="of a data set")
    parser.add_argument("--candidates", type=int, default=16, help="of a query")
    parser.add_argument("--quick", action="store_true", help="a small model and little data")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    queries, candidates = (4, 6) if args.quick else (args.queries, args.candidates)
    datasets = chosen(NAMES)
    model = make_model(args.quick)
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder) / "mmeb", datasets, queries, candidates, picture_sizes())
        result = compare(model, datasets, root, Path(folder))
    for name, value in result.items():
        print(f"{name:42}{value:.6g}" if isinstance(value, float) else f"{name:42}{value}")
    if args.json:
        print(json.dumps(result))


def picture_sizes() -> list[tuple[int, int]]:
    """(width, height) of real pictures, a third of their own."""
    with open(SIZES) as file:
        return [(int(r["width"]) // 3, int(r["height"]) // 3) for r in csv.DictReader(file)]


def compare(model: Model, datasets: Sequence[Dataset], root: Path, folder: Path) -> dict:
    def ours():
        return evaluate(
            *(model, "model", datasets, root, folder / "out"),
            cache=folder / "cache",
            workers=WORKERS,
        )

    def fresh():
        shutil.rmtree(folder / "cache", ignore_errors=True)
        return ours()

    items = read_cases(datasets[0], root).items
    difference = float(np.abs(encode_in_order(model, items) - model.encode(items)).max())
    if difference > 1e-4:
        raise SystemExit(f"the embeddings differ by {difference}")
    plain_seconds, (counts, plain) = twice(lambda: straightforward(model, datasets, root))
    first_seconds, (scores, about) = twice(fresh)
    again_seconds, (repeated, _) = twice(ours)
    precision = {one.dataset.name: one.precision for one in scores}
    assert precision == {one.dataset.name: one.precision for one in repeated}
    if plain != precision:
        raise SystemExit(f"the scores differ: {plain} and {precision}")
    queries = sum(one.queries for one in scores)
    return {
        "greatest difference of embeddings": difference,
        "items encoded, straightforward": counts,
        "items encoded, ours": about["items"],
        "seconds, straightforward": plain_seconds,
        "seconds, ours": first_seconds,
        "seconds, ours again": again_seconds,
        "queries a second, straightforward": queries / plain_seconds,
        "queries a second, ours": queries / first_seconds,
        "times as fast": plain_seconds / first_seconds,
        "times as fast again": first_seconds / again_seconds,
    }


def twice(call: Callable) -> tuple[float, tuple]:
    """Seconds of the second call, and what it returns."""
    call()
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def straightforward(
    model: Model, datasets: Sequence[Dataset], root: Path
) -> tuple[int, dict[str, float]]:
    """(items encoded, Precision@1 by data set)."""
    count, precision = 0, {}
    for dataset in datasets:
        cases = read_cases(dataset, root)
        sides = [list(dict.fromkeys(cases.queries.tolist()))]
        sides.append(list(dict.fromkeys(i for row in cases.candidates for i in row.tolist())))
        vectors: list[dict[int, np.ndarray]] = []
        for side in sides:
            encoded = encode_in_order(model, [cases.items[i] for i in side])
            vectors.append(dict(zip(side, encoded, strict=True)))
            count += len(side)
        correct = 0
        for query, row in zip(cases.queries.tolist(), cases.candidates, strict=True):
            stacked = np.stack([vectors[1][i] for i in row.tolist()])
            correct += int(np.argmax(stacked @ vectors[0][query]) == 0)
        precision[dataset.name] = correct / len(cases.queries)
    return count, precision


def encode_in_order(model: Model, items: Sequence[Item]) -> np.ndarray:
    out = []
    with ThreadPoolExecutor(WORKERS) as threads:
        for first in range(0, len(items), BATCH):
            rows = list(threads.map(model.runner.prepare, items[first : first + BATCH]))
            slots = max(len(row.tokens) for row in rows) + model.config.num_chorus
            patches = max(len(row.picture) for row in rows)
            states, logits = forward(
                model.config, model.params, pad_contexts(rows, model.config, slots, patches)
            )
            jax.block_until_ready(logits)
            out.append(pool(np.asarray(states)))
    return np.concatenate(out)


@functools.partial(jax.jit, static_argnames="config")
def forward(config: ModelConfig, params, context):
    """Chorus states and the logits of every token."""

    def run(module: Crem, context):
        x = module.backbone.embed(context.tokens)
        if context.patches is not None:
            x = module.compressor._insert(x, context.tokens, module.vision(context.patches))
        hidden, _ = module.backbone(x, context.position, context_mask(context.region))
        return hidden[:, -config.num_chorus :], module.backbone.logits(hidden)

    return Crem(config).apply({"params": params}, context, method=run)


def make_model(quick: bool) -> Model:
    """Random weights."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER_DIR)
    token = tokenizer.convert_tokens_to_ids
    width, layers = (64, 2) if quick else (384, 8)
    config = ModelConfig(
        text=TextConfig(
            vocab_size=-(-len(tokenizer) // 128) * 128,
            hidden_size=width,
            intermediate_size=4 * width,
            num_layers=layers,
            num_heads=width // 32,
            num_kv_heads=2,
            mrope_section=(4, 6, 6),
            max_positions=2048,
        ),
        vision=VisionConfig(
            depth=layers // 2, embed_dim=width // 2, num_heads=2, patch_size=8, min_pixels=1024
        ),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        bos_token_id=token("<|endoftext|>"),
        eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|endoftext|>"),
        num_chorus=16,
        first_chorus_id=token(chorus_tokens(1)[0]),
        system_prompt="",
    )
    params = jax.jit(functools.partial(init, config))(jax.random.key(0))
    return Model(config, params, tokenizer)


if __name__ == "__main__":
    main()
