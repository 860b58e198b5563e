"""Ask about a picture. The answer is printed as it is generated.

By default the answer attends to the whole picture; with --compressed it is generated from the
chorus tokens alone, the same few vectors that `crem find` searches with. With --in LIBRARY --id X
it is generated from the chorus tokens that `crem index` stored, without the picture.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from crem_jax.errors import CremError

EXAMPLES = """\
  crem tell runs/emoji photo.jpg
  crem tell runs/emoji photo.jpg "How many tigers are there?"
  crem tell runs/emoji photo.jpg --compressed --k 4
  crem tell runs/emoji photo.jpg --temperature 0.7 --top_p 0.9 --seed 1
  crem tell runs/emoji "How many tigers are there?" --in photos.crem --id zoo/3.jpg"""

QUESTION = "What is this?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import (
        add_model,
        add_weights,
        non_negative_float,
        non_negative_int,
        positive_fraction,
        positive_int,
    )

    add_model(parser)
    add_weights(parser)
    parser.add_argument(
        "image", metavar="IMAGE", nargs="?", help="a picture, of any size and kind; not with --in"
    )
    parser.add_argument("question", metavar="QUESTION", nargs="?", help=f"default: {QUESTION}")
    parser.add_argument("--in", dest="library", metavar="LIBRARY", help="what `crem index` made")
    parser.add_argument("--id", metavar="X", help="of an entry there, as `crem find` shows it")
    parser.add_argument("--compressed", action="store_true", help="answer from the chorus alone")
    parser.add_argument(
        "--k",
        type=positive_int,
        metavar="K",
        help="with --compressed or --in, from its first K tokens",
    )
    parser.add_argument(
        "--sinks",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="with --compressed, keep the first N slots of the context too (default 0)",
    )
    parser.add_argument(
        "--temperature",
        type=non_negative_float,
        default=0.0,
        metavar="T",
        help="0 is greedy (default)",
    )
    parser.add_argument(
        "--top_p",
        type=positive_fraction,
        default=1.0,
        metavar="P",
        help="nucleus, with a temperature",
    )
    parser.add_argument("--max_new_tokens", type=positive_int, default=64, metavar="N")
    parser.add_argument("--seed", type=non_negative_int, default=0, metavar="S")


def run(args: argparse.Namespace) -> None:
    if args.library:
        return _from_library(args)
    if args.id is not None:
        raise CremError(f"--id {args.id!r} needs --in LIBRARY")
    if args.image is None:
        raise CremError("expected IMAGE, or --in LIBRARY --id X")
    args.question = QUESTION if args.question is None else args.question
    if args.k and not args.compressed:
        raise CremError(f"--k {args.k} needs --compressed: a native answer sees everything")
    if args.sinks and not args.compressed:
        raise CremError(f"--sinks {args.sinks} needs --compressed: a native answer sees everything")

    from crem_jax.commands.output import print_json
    from crem_jax.inference.model import load

    model = load(args.model, args.step, weights=args.weights)
    pieces = model.stream(
        {"image": Path(args.image), "text": args.question},
        compressed=args.compressed,
        k=args.k,
        sinks=args.sinks,
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
                "sinks": args.sinks if args.compressed else None,
            }
        )
        return
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()


def _from_library(args: argparse.Namespace) -> None:
    if args.id is None:
        raise CremError(f"--in {args.library} needs --id X; `crem find` shows ids")
    if args.question is not None:
        raise CremError(f"IMAGE {args.image!r} is not used with --in; give the question alone")
    if args.sinks:
        raise CremError(f"--sinks {args.sinks}: a library keeps the chorus alone")
    question = QUESTION if args.image is None else args.image

    from crem_jax.library.library import open as open_library

    library = open_library(args.library)
    from crem_jax.commands.output import print_json
    from crem_jax.inference.model import load

    model = load(args.model, args.step, weights=args.weights)
    (answer,) = library.ask(
        model,
        [args.id],
        question,
        args.k,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    )
    if args.json:
        k = args.k or library.info.memory_k
        where = {"library": args.library, "id": args.id}
        print_json({"answer": answer, **where, "question": question, "compressed": True, "k": k})
    else:
        print(answer)
