"""Int8 weights of the decoder against the same model without: bytes, quality and speed.

    python benchmarks/int8.py runs/quickstart --json
    python benchmarks/int8.py CREM_2B --dtype bfloat16 --pictures 16 --answers 8

Both models compute in --dtype and run in turns. Reported: bytes of all weights; the cosine of the
int8 embeddings to the others, over emoji that were not trained on and over their names; the share
of greedy answers about those pictures that are the same, native and compressed; and the medians of
the time to embed a picture and to say a token to one and to --batch listeners.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time

import jax
import numpy as np

import crem_jax
from crem_jax.config import DTYPES
from crem_jax.data.emoji.emoji import WHAT, EmojiPictures
from crem_jax.inference import decoding
from crem_jax.inference.batches import context_batches, pad_questions
from crem_jax.inference.model import Model
from crem_jax.inference.sampling import Sampling
from crem_jax.model import crem

GREEDY = Sampling()
ROOM = 16  # slots for an answer while a step is timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model directory with chorus tokens")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the arithmetic")
    parser.add_argument("--pictures", type=int, default=128, help="how many are embedded")
    parser.add_argument("--answers", type=int, default=64, help="how many are asked about")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20, help="turns of each timing")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    models = {
        args.dtype: crem_jax.load(args.model, dtype=args.dtype),
        "int8": crem_jax.load(args.model, dtype=args.dtype, weights="int8"),
    }
    result = {"model": args.model, "dtype": args.dtype}
    for name, model in models.items():
        result[f"megabytes {name}"] = sum(x.nbytes for x in jax.tree.leaves(model.params)) / 1e6
    result |= quality(*models.values(), args.pictures, args.answers)
    timed = {
        "embed a picture": embed,
        "say a token": functools.partial(say, batch=1),
        f"say a token, {args.batch} answers": functools.partial(say, batch=args.batch),
    }
    for what, prepare in timed.items():
        times = in_turns({name: prepare(model) for name, model in models.items()}, args.rounds)
        result |= {f"milliseconds to {what}, {name}": ms for name, ms in times.items()}
    for name, value in result.items():
        print(f"{name:48}{value:.6g}" if isinstance(value, float) else f"{name:48}{value}")
    if args.json:
        print(json.dumps(result))


def quality(exact: Model, rounded: Model, pictures: int, answers: int) -> dict[str, float]:
    emoji = EmojiPictures("heldout")
    chosen = np.linspace(0, len(emoji) - 1, pictures).astype(int)
    drawn = [emoji.draw(i) for i in chosen]
    result = {}
    for kind, items in (("pictures", drawn), ("names", [emoji[i].name for i in chosen])):
        cosine = np.sum(exact.encode(items) * rounded.encode(items), axis=-1)
        result |= {f"cosine of {kind}, least": float(cosine.min())}
        result |= {f"cosine of {kind}, mean": float(cosine.mean())}
    asked = [{"image": picture, "text": WHAT} for picture in drawn[:answers]]
    for kind, compressed in (("native", False), ("compressed", True)):
        said, other = (m.generate(asked, compressed, max_new_tokens=24) for m in (exact, rounded))
        same = np.mean([a == b for a, b in zip(said, other, strict=True)])
        result[f"same answers, {kind}"] = float(same)
    return result


def memory_of(model: Model, batch: int):
    """A function that compresses `batch` pictures."""
    emoji = EmojiPictures("heldout")
    rows = [model.runner.prepare(emoji.draw(0))] * batch
    ((_, context),) = context_batches(rows, model.config)
    compress = jax.jit(functools.partial(crem.compress, model.config))
    return lambda: compress(model.params, context)


def embed(model: Model):
    run = memory_of(model, 1)
    return lambda: jax.block_until_ready(run().chorus)


def say(model: Model, batch: int):
    memory = memory_of(model, batch)()
    questions = [model.runner.prompter.question(WHAT)] * batch
    tokens, valid = pad_questions(questions, len(memory.region), model.config.pad_token_id)
    state = decoding.start(model.config, model.params, memory, tokens, valid, GREEDY, ROOM)

    def run():
        step = decoding.step(model.config, model.params, memory, state, GREEDY)
        return jax.block_until_ready(step.token)

    return run


def in_turns(runs: dict, rounds: int) -> dict[str, float]:
    """Median milliseconds of each, run in turns after one warm-up."""
    times = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_:
                times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
