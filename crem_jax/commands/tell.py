"""Ask about a picture. The answer appears as it is made.

By default the answer may look at everything in the picture; with --compressed it is made from the
chorus tokens alone, the same few vectors that `crem find` searches with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLES = """\
  crem tell runs/emoji photo.jpg
  crem tell runs/emoji photo.jpg "How many tigers are there?"
  crem tell runs/emoji photo.jpg --compressed --k 4
  crem tell runs/emoji photo.jpg --temperature 0.7 --top_p 0.9 --seed 1"""

QUESTION = "What is this?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import (
        add_model,
        add_weights,
        positive,
        share,
        temperature,
        whole,
    )

    add_model(parser)
    add_weights(parser)
    parser.add_argument("image", metavar="IMAGE", help="a picture, of any size and kind")
    parser.add_argument(
        "question", metavar="QUESTION", nargs="?", default=QUESTION, help=f"default: {QUESTION}"
    )
    parser.add_argument("--compressed", action="store_true", help="answer from the chorus alone")
    parser.add_argument(
        "--k", type=positive, metavar="K", help="with --compressed, from its first K tokens"
    )
    parser.add_argument(
        "--temperature", type=temperature, default=0.0, metavar="T", help="0 is greedy (default)"
    )
    parser.add_argument(
        "--top_p", type=share, default=1.0, metavar="P", help="nucleus, with a temperature"
    )
    parser.add_argument("--max_new_tokens", type=positive, default=64, metavar="N")
    parser.add_argument("--seed", type=whole, default=0, metavar="S")


def run(args: argparse.Namespace) -> None:
    if args.k and not args.compressed:
        raise ValueError(f"--k {args.k} needs --compressed: a native answer sees everything")

    from crem_jax.api import load
    from crem_jax.commands.output import print_json

    model = load(args.model, args.step, weights=args.weights)
    pieces = model.stream(
        {"image": Path(args.image), "text": args.question},
        compressed=args.compressed,
        k=args.k,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    )
    if args.json:
        print_json(
            {
                "answer": "".join(pieces),
                "image": args.image,
                "question": args.question,
                "compressed": args.compressed,
                "k": (args.k or model.config.num_chorus) if args.compressed else None,
            }
        )
        return
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()
