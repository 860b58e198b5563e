"""Turn a Hugging Face Qwen2-VL, Qwen2.5-VL or CREM directory into a model directory.

A plain model gets chorus tokens in spare rows of its vocabulary, ready for training. Weights are
read, converted and written piece by piece, so a model may be larger than memory; an interrupted
conversion leaves nothing behind.
"""

from __future__ import annotations

import argparse
import time

EXAMPLES = """\
  crem import Qwen2-VL-2B-Instruct models/qwen
  crem import Qwen2-VL-2B-Instruct models/qwen --chorus 8
  crem import Qwen2.5-VL-3B-Instruct models/qwen2.5
  crem import Qwen2-VL-7B-Instruct models/qwen-7b --dtype bfloat16 --verify
  crem import exported-crem models/crem"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import add_writing, non_negative_int

    parser.add_argument("source", metavar="HF_DIR", help="a directory with config.json")
    parser.add_argument("out", metavar="OUT", help="the model directory to make")
    parser.add_argument(
        "--chorus",
        type=non_negative_int,
        default=16,
        metavar="K",
        help="chorus tokens for a model without any (default 16); 0 leaves it plain",
    )
    add_writing(parser)


def run(args: argparse.Namespace) -> None:
    import jax

    from crem_jax.checkpoints.model_directory import save_model
    from crem_jax.commands.output import print_json
    from crem_jax.commands.progress import bytes_bar
    from crem_jax.convert.chorus import add_chorus
    from crem_jax.convert.huggingface import open_hf

    since = time.perf_counter()
    config, params, tokenizer = open_hf(args.source)
    had = config.num_chorus
    if args.chorus:
        config, params, tokenizer = add_chorus(config, params, tokenizer, args.chorus)
    if args.dtype:
        params = jax.tree.map(lambda leaf: leaf.astype(args.dtype), params)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    with bytes_bar("importing", total) as on_bytes:
        save_model(args.out, config, params, tokenizer, verify=args.verify, on_bytes=on_bytes)
    if args.json:
        print_json(
            {
                "model": args.out,
                "num_chorus": config.num_chorus,
                "had_chorus": bool(had),
                "bytes": total,
                "verified": args.verify,
                "seconds": round(time.perf_counter() - since, 2),
            }
        )
        return
    if had:
        chorus = f"with its {had} chorus tokens"
    elif config.num_chorus:
        chorus = f"with {config.num_chorus} new, untrained chorus tokens"
    else:
        chorus = "without chorus tokens: it tells and cannot find"
    print(f"{args.out}: imported from {args.source} {chorus}")
