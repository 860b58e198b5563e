"""The data pipeline: pictures a second beside Hugging Face's processor, and padding by design.

    python benchmarks/data.py            # about ten minutes on two cores
    python benchmarks/data.py --quick --json
    python benchmarks/data.py --padding  # the padding alone, a minute

Speed. JPEGs of quality 85 to 95 in the sizes of `picture_sizes.csv` (1,100 real pictures) are
decoded, resized to 256 to 1,280 vision tokens, cut into patches and put into batches, with an
instruction and a caption to tokenise. Ours is a run's own path: a JSONL source, the stream, its
iterator with 0, 1 and 2 worker processes. Beside it `Qwen2VLImageProcessorPil` and the same
tokenizer, picture by picture, in one process and in two. All take turns, `--turns` times; medians
are reported. `large` are such pictures at four times the side, as phones take them. `fast` has
`data.fast_resize` and `data.fast_jpeg`; how far its pixels are from Hugging Face's is reported.

Padding. A stream over the 1,100 sizes in random order, batch by batch: pad-to-longest, and our
buckets. `waste` is the share of all patches in the step that is padding, empty rows included;
`kept` the share of the model's own number of vision tokens that is left after fitting.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from crem_jax.configs.schema.data import BatchSpec, BucketSpec
from crem_jax.configs.schema.model import ModelSection
from crem_jax.data.batches.bucket_planning import Size, best_widths, share_rows
from crem_jax.data.batches.iterator import BatchIterator
from crem_jax.data.batches.stream import Stream
from crem_jax.data.emoji.drawing import random_background
from crem_jax.data.emoji.emoji import load_emoji
from crem_jax.data.images.patches import fit_size
from crem_jax.data.inputs.prompt import Prompter
from crem_jax.data.records import Item, Record
from crem_jax.data.sources.formats.jsonl import JsonlRecords
from crem_jax.train.setup import TOKENIZER_DIR, scratch_model

SIZES = Path(__file__).with_name("picture_sizes.csv")
UNIT = 28 * 28
LEAST, MOST = 256, 1280
TEXT_SLOTS = 64
INSTRUCTION = "Find an image caption describing the given everyday image."


def picture_sizes() -> list[tuple[int, int]]:
    """(height, width) of 1,100 real pictures."""
    with SIZES.open() as file:
        return [(int(row["height"]), int(row["width"])) for row in csv.DictReader(file)]


def prompter(fast: bool = False) -> Prompter:
    """Qwen2-VL's picture rules; no weights are needed."""
    vision = dict(patch_size=14, min_pixels=LEAST * UNIT, max_pixels=MOST * UNIT)
    sides = dict(hidden_size=64, intermediate_size=64, num_layers=1, num_heads=2, num_kv_heads=2)
    text = dict(vocab_size=2048, mrope_section=(4, 6, 6), **sides)
    vision |= dict(depth=1, embed_dim=32, num_heads=2)
    model = ModelSection(text=text, vision=vision, num_chorus=16)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER_DIR)
    return Prompter(scratch_model(model, tokenizer), tokenizer, True, fast, fast)


def measured(sizes: list[tuple[int, int]]) -> list[Size]:
    """With the vision tokens by the model's own rule."""
    rule = dict(patch=14, merge=2, min_pixels=LEAST * UNIT, max_pixels=MOST * UNIT, hard_max=True)
    return [(*size, math.prod(fit_size(*size, **rule)) // UNIT) for size in sizes]


def batch_spec(widths: tuple[int, ...], shares: tuple[int, ...], keep: float) -> BatchSpec:
    """Queries of one picture each, captions as their positives."""
    rows = sum(shares)
    pictures = {
        f"picture{width}": BucketSpec(width + TEXT_SLOTS, 4 * width, share)
        for width, share in zip(widths, shares, strict=True)
    }
    return BatchSpec(
        buckets={"text": BucketSpec(96, 0, rows), **pictures},
        records={"pictures": rows},
        candidates=rows,
        keep=keep,
    )


# ------------------------------------------------------------------------------------------ padding


class Blank:
    """Blank pictures of given sizes."""

    def __init__(self, sizes: list[Size]):
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def record(self, index: int, rng: np.random.Generator | None) -> Record:
        query = Item(INSTRUCTION, (Image.new("RGB", self.sizes[index][1::-1], (index % 256,) * 3),))
        return Record(str(index), query, (Item(f"caption {index}"),))


def our_padding(pictures: list[Size], rows: int, count: int, keep: float) -> dict:
    """One epoch through the real stream in batches of `rows`."""
    widths = best_widths(pictures, count, keep)
    shares = share_rows(pictures, widths, rows, keep=keep)
    stream = Stream({"pictures": Blank(pictures)}, batch_spec(widths, shares, keep), prompter(), 0)
    batches = BatchIterator(stream, max(1, len(pictures) // rows))
    for _ in batches:
        pass
    stats = batches.stats()
    assert not stats["data_skipped"] and not stats["data_left_out"]
    return {
        "design": "buckets",
        "rows": rows,
        "shapes": count + 1,
        "widths": list(widths),
        "shares": list(shares),
        "waste": stats["data_waste_patches"],
        "waste_slots": stats["data_waste"],
        "kept": stats["data_kept"],
    }


def longest_padding(pictures: list[Size], rows: int) -> dict:
    """Every batch padded to its longest picture, as Hugging Face's collators do."""
    order = np.random.default_rng(0).permutation(len(pictures))
    batches = [order[i : i + rows] for i in range(0, len(order) // rows * rows, rows)]
    longest = [max(pictures[i][2] for i in batch) for batch in batches]
    used = sum(pictures[i][2] for batch in batches for i in batch)
    waste = 1 - used / (rows * sum(longest))
    shapes = len(set(longest))
    return {"design": "pad to longest", "rows": rows, "shapes": shapes, "waste": waste, "kept": 1.0}


def padding(quick: bool) -> list[dict]:
    pictures = measured(picture_sizes())
    found = []
    for rows in (64,) if quick else (64, 256):
        found.append(longest_padding(pictures, rows))
        for count, keep in ((4, 0.9),) if quick else ((3, 0.8), (4, 0.9), (6, 0.9), (7, 1.0)):
            found.append(our_padding(pictures, rows, count, keep) | {"keep": keep})
    for row in found:
        detail = f"widths {row['widths']} x {row['shares']}" if "widths" in row else ""
        print(
            f"{row['design']:>14}, {row['rows']:4} pictures a step: {row['shapes']:2} shapes, "
            f"waste {row['waste']:5.1%}, kept {row['kept']:6.1%}  {detail}"
        )
    return found


# -------------------------------------------------------------------------------------------- speed


def make_jpegs(folder: Path, count: int, scale: int) -> Path:
    """A JSONL of photo-like JPEGs: emoji of many sizes on soft backgrounds, with grain."""
    rng = np.random.default_rng(scale)
    sizes, emoji = picture_sizes(), load_emoji("train")
    lines = []
    for i in range(count):
        height, width = (side * scale for side in sizes[rng.integers(len(sizes))])
        ground = np.clip(random_background(rng, 64), 0, 255).astype(np.uint8)
        canvas = Image.fromarray(ground).resize((width, height), Image.Resampling.BICUBIC)
        for _ in range(12):
            side = int(min(height, width) * rng.uniform(0.1, 0.7))
            sprite = Image.fromarray(emoji[rng.integers(len(emoji))].pixels, "RGBA")
            sprite = sprite.resize((side, side), Image.Resampling.BICUBIC)
            place = tuple(int(rng.integers(-side // 3, edge)) for edge in (width, height))
            canvas.paste(sprite, place, sprite)
        grain = rng.normal(0, 6, (height, width, 1)).astype(np.float32)
        pixels = np.clip(np.asarray(canvas, np.float32) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=int(rng.integers(85, 96)))
        caption = f"a photo of things number {i}, " + " ".join(["seen from afar"] * (i % 4))
        query = {"text": INSTRUCTION, "image": f"{i}.jpg"}
        lines.append({"id": str(i), "query": query, "positives": [caption]})
    path = folder / "pictures.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@dataclasses.dataclass
class Reference:
    """Hugging Face's processor and tokenizer, picture by picture."""

    path: Path

    def __post_init__(self):
        self.processor = Qwen2VLImageProcessorPil(min_pixels=LEAST * UNIT, max_pixels=MOST * UNIT)
        self.tokenizer = AutoTokenizer.from_pretrained(TOKENIZER_DIR)
        self.rows = [json.loads(line) for line in self.path.read_text().splitlines()]

    def __call__(self, index: int) -> int:
        row = self.rows[index % len(self.rows)]
        image = Image.open(self.path.parent / row["query"]["image"]).convert("RGB")
        patches = self.processor(images=[image], return_tensors="np")
        self.tokenizer([row["query"]["text"], row["positives"][0]])
        return len(patches["pixel_values"])


def in_process(index: int) -> int:
    """One picture in a worker, whose `reference` its initialiser made."""
    return reference(index)


def start_process(path: Path) -> None:
    global reference
    reference = Reference(path)


def time_reference(path: Path, pictures: int, workers: int) -> float:
    """Pictures a second of Hugging Face's processor."""
    if not workers:
        one = Reference(path)
        one(0)
        since = time.perf_counter()
        for i in range(pictures):
            one(i)
        return pictures / (time.perf_counter() - since)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, start_process, (path,)) as pool:
        list(pool.map(in_process, range(8 * workers), chunksize=4))
        since = time.perf_counter()
        list(pool.map(in_process, range(pictures), chunksize=4))
        return pictures / (time.perf_counter() - since)


def time_ours(path: Path, pictures: int, workers: int, fast: bool, rows: int, scale: int) -> float:
    """Pictures a second of the stream, after what was loaded ahead."""
    sizes = measured([(height * scale, width * scale) for height, width in picture_sizes()])
    widths = best_widths(sizes, 4)
    spec = batch_spec(widths, share_rows(sizes, widths, rows), 0.9)
    stream = Stream({"pictures": JsonlRecords(path)}, spec, prompter(fast), 0)
    ahead, steps = 8, pictures // rows
    batches = BatchIterator(stream, steps + 2 * ahead, workers=workers)
    for _ in range(ahead):
        next(batches)
    since = time.perf_counter()
    for _ in range(steps):
        next(batches)
    took = time.perf_counter() - since
    batches.close()
    return steps * rows / took


def difference(path: Path, count: int) -> dict[str, float]:
    """How far the pixels of the fast ways are from Hugging Face's, in steps of 1/255."""
    plain, fast = prompter(), prompter(fast=True)
    images = [JsonlRecords(path).read(i).query.images[0] for i in range(count)]
    sides = [[p.patches(image)[0].astype(int) for image in images] for p in (plain, fast)]
    apart = np.concatenate([np.abs(a - b).ravel() for a, b in zip(*sides, strict=True)])
    return {
        "mean": float(apart.mean()),
        "differing": float((apart > 0).mean()),
        "p99": float(np.percentile(apart, 99)),
        "max": int(apart.max()),
    }


def speed(quick: bool, turns: int) -> dict:
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, scale, pictures, rows in (("real", 1, 1024, 16), ("large", 4, 96, 8)):
            if quick and scale > 1:
                continue
            pictures = 256 if quick else pictures
            folder = Path(directory) / name
            folder.mkdir()
            path = make_jpegs(folder, min(pictures, 128), scale)
            found[name] = compare(path, pictures, turns, rows, scale)
            print(f"{name} pictures, a second (median of {turns}):")
            for side, rate in found[name]["rates"].items():
                print(f"  {side:24} {rate:7.1f}")
            ratios = ", ".join(f"{k} {v:.2f}" for k, v in found[name]["ratios"].items())
            print(f"  best of ours over best of Hugging Face: {ratios}")
            print(f"  fast differs from Hugging Face, of 255: {found[name]['difference']}")
    return found


def compare(path: Path, pictures: int, turns: int, rows: int, scale: int) -> dict:
    """Pictures a second of every side, in turns."""
    sides: dict[str, Callable[[], float]] = {
        "HF, 1 process": lambda: time_reference(path, pictures // 2, 0),
        "HF, 2 processes": lambda: time_reference(path, pictures, 2),
    }
    for kind in ("ours", "ours, fast"):
        for workers in (0, 1, 2):
            sides[f"{kind}, {workers} workers"] = functools.partial(
                time_ours, path, pictures, workers, kind != "ours", rows, scale
            )
    rates = {side: [] for side in sides}
    for _ in range(turns):
        for side, run in sides.items():
            rates[side].append(run())
    medians = {side: statistics.median(values) for side, values in rates.items()}

    def best(start: str) -> float:
        return max(v for side, v in medians.items() if side.startswith(start))

    exact = max(v for k, v in medians.items() if k.startswith("ours, ") and "fast" not in k)
    return {
        "rates": medians,
        "ratios": {"exact": exact / best("HF"), "fast": best("ours, fast") / best("HF")},
        "difference": difference(path, 16),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few pictures, one turn")
    parser.add_argument("--padding", action="store_true", help="the padding alone")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--turns", type=int, default=None, help="default 3")
    arguments = parser.parse_args()
    result = {"load": os.getloadavg()[0], "padding": padding(arguments.quick)}
    if not arguments.padding:
        result["speed"] = speed(arguments.quick, arguments.turns or (1 if arguments.quick else 3))
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
