"""Answers from a compressed memory beside answers from the whole context: bytes, speed, identity.

    python benchmarks/decode.py --json
    python benchmarks/decode.py --model runs/quickstart   # adds the agreement of real answers
    python benchmarks/decode.py --small --layers 1 --hidden 256 --batches 1 --rounds 1 --pictures 1

The shape is Qwen2-VL-2B's scaled to a CPU: its head and key/value dimensions, fewer layers and
narrower, random weights, float32, K = 16, a context of 1,430 tokens of which 1,400 are of a picture
of 980 x 1,120 pixels. Measured:
  bytes     keys and values of a row, whole and of the chorus alone
  speed     tokens a second of `generate.decoding` on batches, natively and compressed, in turns
  first     time to the first token of an answer: about a picture file (read, decoded, compressed),
            and from the memory that a library has stored (read, decoded); in turns
  answers   of a stored memory against `Model.generate(compressed=True)`, in float32 and bfloat16,
            which must be the same; with --model, on the held-out visual questions of the emoji
            scenes, also how often memories stored as bfloat16 and int8 give the same answer
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from PIL import Image
from transformers import AutoTokenizer

import crem_jax
from crem_jax.config import ModelConfig, TextConfig, VisionConfig
from crem_jax.convert.chorus import chorus_tokens
from crem_jax.data.images.decode import open_picture
from crem_jax.evaluate.emoji import scene_questions, scene_records
from crem_jax.inference import decoding
from crem_jax.inference.batches import pad_questions
from crem_jax.inference.model import Model
from crem_jax.inference.sampling import Sampling
from crem_jax.library import library as libraries
from crem_jax.library.index_source import IndexSource
from crem_jax.library.indexing import index, library_info
from crem_jax.library.memory_codec import decode_memory, encode_memory
from crem_jax.model import crem
from crem_jax.train.start import TOKENIZER_DIR
from crem_jax.types import CHORUS, CONTEXT, KV, Memory

CONTEXT_TOKENS, CHORUS_TOKENS = 1430, 16
HEIGHT, WIDTH = 980, 1120  # 35 x 40 vision tokens
QUESTION = "What is in this picture, and where?"
GREEDY = Sampling()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=768, help="a multiple of 256")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--tokens", type=int, default=32, help="said in each turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each timing")
    parser.add_argument("--pictures", type=int, default=4, help="files to time first tokens with")
    parser.add_argument("--model", help="a trained model whose real answers are compared")
    parser.add_argument("--scenes", type=int, default=64, help="held-out scenes it is asked about")
    parser.add_argument("--small", action="store_true", help="a small picture: try the script out")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    size = (HEIGHT // 7, WIDTH // 7) if args.small else (HEIGHT, WIDTH)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER_DIR)
    config = scaled(args.layers, args.hidden, tokenizer)
    params = jax.jit(lambda: crem.init(config, jax.random.key(0)))()
    model = Model(config, params, tokenizer)
    result = {"layers": args.layers, "hidden": args.hidden, "dtype": config.dtype}
    result |= sizes(config)
    for batch in map(int, args.batches.split(",")):
        result |= speed(model, batch, args.tokens, args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        result |= first_token(model, Path(folder), args.pictures, args.rounds, size)
    for dtype in ("float32", "bfloat16"):
        same = Model(config.replace(dtype=dtype), _cast(params, dtype), tokenizer)
        pictures = [_draw(seed, 140, 168) for seed in range(8)]
        asked = [(picture, QUESTION) for picture in pictures]
        result[f"same answers, random {dtype}"] = agreement(same, asked, dtype)
    if args.model:
        records = scene_records(args.scenes)
        asked = [
            (records[q.scene].query.images[0], q.question) for q in scene_questions(args.scenes)
        ]
        result["visual questions"] = len(asked)
        for dtype in ("float32", "bfloat16"):
            trained = crem_jax.load(args.model, dtype=dtype)
            for encoding in ("float32", "bfloat16", "int8")[dtype == "bfloat16" :]:
                key = f"same answers, {args.model}, {dtype} stored as {encoding}"
                result[key] = agreement(trained, asked, encoding)
    for name, value in result.items():
        print(f"{name:56}{value}")
    if args.json:
        print(json.dumps(result))


def scaled(layers: int, hidden: int, tokenizer) -> ModelConfig:
    """Qwen2-VL-2B, with fewer and narrower layers and the packaged vocabulary."""
    token = tokenizer.convert_tokens_to_ids
    chorus = token(chorus_tokens(1)[0])
    return ModelConfig(
        text=TextConfig(
            vocab_size=-(-len(tokenizer) // 128) * 128,
            hidden_size=hidden,
            intermediate_size=hidden * 35 // 6,
            num_layers=layers,
            num_heads=hidden // 128,
            num_kv_heads=2,
            mrope_section=(16, 24, 24),
        ),
        vision=VisionConfig(depth=4, embed_dim=320, num_heads=4),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        bos_token_id=token("<|endoftext|>"),
        # Never said, so that answers do not end early and all are equally long.
        eos_token_id=chorus,
        pad_token_id=chorus,
        num_chorus=CHORUS_TOKENS,
        first_chorus_id=chorus,
    )


def sizes(config: ModelConfig) -> dict:
    """Bytes of a row's keys and values."""
    whole = _random_memory(config, 1)
    native = sum(x[:, :, :, :CONTEXT_TOKENS].nbytes for x in jax.tree.leaves(whole.kv))
    chorus = sum(x.nbytes for x in jax.tree.leaves(whole.chorus_only().kv))
    return {
        "context tokens": CONTEXT_TOKENS,
        "bytes, native": native,
        "bytes, compressed": chorus,
        "bytes, compressed over native": f"{chorus / native:.2%}",
    }


def speed(model: Model, batch: int, tokens: int, rounds: int) -> dict:
    """Tokens a second after the first, of all rows together."""
    whole = jax.device_put(_random_memory(model.config, batch))
    memories = {"native": whole, "compressed": jax.device_put(whole.chorus_only())}
    asked = [model.runner.prompter.question(QUESTION)] * batch
    questions = pad_questions(asked, batch, model.config.pad_token_id)

    def say(memory: Memory, count: int) -> None:
        out = decoding.generate(model.config, model.params, memory, *questions, GREEDY, count)
        out.block_until_ready()

    spent = _in_turns(
        {
            (name, count): lambda memory=memory, count=count: say(memory, count)
            for name, memory in memories.items()
            for count in (1, 1 + tokens)
        },
        rounds,
    )
    rate = {name: batch * tokens / (spent[name, 1 + tokens] - spent[name, 1]) for name in memories}
    return {
        f"tokens/s, batch {batch}, native": round(rate["native"], 1),
        f"tokens/s, batch {batch}, compressed": round(rate["compressed"], 1),
        f"compressed over native, batch {batch}": round(rate["compressed"] / rate["native"], 2),
    }


def first_token(model: Model, folder: Path, count: int, rounds: int, size: tuple[int, int]) -> dict:
    """From a picture file, and from a library that has indexed it."""
    photos = folder / "photos"
    photos.mkdir()
    for seed in range(count):
        (photos / f"{seed}.jpg").write_bytes(_jpeg(seed, *size))
    info = library_info(model, "random", "float32", prefixes=(CHORUS_TOKENS,))
    library = libraries.create(folder / "library", info)
    index(model, library, IndexSource(str(photos)), batch=1)
    number = iter(range(10**9))

    def picture() -> None:
        path = photos / f"{next(number) % count}.jpg"
        model.generate([{"image": path, "text": QUESTION}], max_new_tokens=1)

    def stored() -> None:
        library.ask(model, [f"{next(number) % count}.jpg"], QUESTION, max_new_tokens=1)

    spent = _in_turns({"picture": picture, "stored": stored}, max(rounds, count))
    return {
        "first token, from the picture, ms": round(1000 * spent["picture"], 1),
        "first token, from the library, ms": round(1000 * spent["stored"], 1),
        "picture over library": round(spent["picture"] / spent["stored"], 1),
    }


def agreement(model: Model, asked: list, encoding: str) -> float:
    """The share of greedy answers from a stored memory that equal the fresh compressed ones."""
    same = 0
    for first in range(0, len(asked), 64):
        some = asked[first : first + 64]
        items = [{"image": picture, "text": question} for picture, question in some]
        fresh = model.generate(items, compressed=True, max_new_tokens=8)
        memory = model.compress([picture for picture, _ in some])
        restored = decode_memory(encode_memory(memory, encoding), model.config.dtype)
        stored = model.ask(restored, [question for _, question in some], max_new_tokens=8)
        same += sum(a == b for a, b in zip(fresh, stored, strict=True))
    return round(same / len(asked), 4)


def _random_memory(config: ModelConfig, batch: int) -> Memory:
    text, slots = config.text, CONTEXT_TOKENS + CHORUS_TOKENS
    shape = (text.num_layers, batch, text.num_kv_heads, slots, text.head_dim)
    rng = np.random.default_rng(0)
    keys, values = (rng.standard_normal(shape, np.float32) for _ in range(2))
    region = np.full((batch, slots), CONTEXT, np.int32)
    region[:, CONTEXT_TOKENS:] = CHORUS
    states = np.zeros((batch, CHORUS_TOKENS, text.hidden_size), np.float32)
    return Memory(KV(keys, values), region, np.full(batch, 100, np.int32), states)


def _cast(params: crem.Params, dtype: str) -> crem.Params:
    return jax.tree.map(lambda x: x.astype(dtype), params)


def _draw(seed: int, height: int, width: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (14, 16, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _jpeg(seed: int, height: int, width: int) -> bytes:
    file = io.BytesIO()
    open_picture(_draw(seed, height, width)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _in_turns(calls: dict[object, Callable[[], None]], rounds: int) -> dict[object, float]:
    """Median seconds of each, after one that does not count."""
    spent: dict[object, list[float]] = {name: [] for name in calls}
    for number in range(1 + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


if __name__ == "__main__":
    main()
