"""Rank a folder of pictures, or a library: the best matches as a table and as a picture.

The query is words, a picture (--image), or both: words about the picture. Pictures of a folder that
cannot be read are named on stderr and left out. A library (see `crem index`) answers at once, from
what it has stored: --where chooses among its entries by a condition on id, uri, text, width,
height, source or metadata, --exact compares with all of them rather than ask an index, and --ask
asks each match a question.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from crem_jax.errors import CremError

EXAMPLES = """\
  crem find runs/emoji "a tiger" --in photos
  crem find runs/emoji --image query.jpg --in photos --top 10 --out grid.png
  crem find runs/emoji "the same in red" --image query.jpg --in photos
  crem find runs/emoji "a tiger" --in photos.crem --where "width > 640 AND id LIKE 'zoo/%'"
  crem find runs/emoji "a tiger" --in photos.crem --ask "How many are there?" --top 3"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import add_model, add_weights, positive_int

    add_model(parser)
    add_weights(parser)
    parser.add_argument("words", metavar="WORDS", nargs="?", help="what to find")
    parser.add_argument("--image", metavar="FILE", help="a picture to find the like of")
    parser.add_argument(
        "--in",
        dest="folder",
        metavar="FOLDER|LIBRARY",
        required=True,
        help="a folder, subfolders included, or what `crem index` made",
    )
    parser.add_argument("--where", metavar="SQL", help="a condition on the entries of a library")
    parser.add_argument(
        "--exact",
        action="store_true",
        help="compare with every entry of a library, on accelerators where there are any",
    )
    parser.add_argument("--ask", metavar="QUESTION", help="ask each match, of a library")
    parser.add_argument(
        "--top", type=positive_int, default=5, metavar="N", help="how many (default 5)"
    )
    parser.add_argument(
        "--k", type=positive_int, metavar="K", help="read only the first K chorus tokens"
    )
    parser.add_argument(
        "--dim",
        type=positive_int,
        metavar="D",
        help="compare only the first D numbers of embeddings, of a folder",
    )
    parser.add_argument(
        "--out",
        default="find.png",
        metavar="FILE",
        help="where the best matches are drawn (default: ./find.png)",
    )


def run(args: argparse.Namespace) -> None:
    if args.words is None and not args.image:
        raise CremError("nothing to find; expected words, --image FILE, or both")
    from crem_jax.data.images.folders import pictures_in
    from crem_jax.library.library import is_library

    if is_library(args.folder):
        if args.dim is not None:
            raise CremError(f"--dim {args.dim} needs a folder; {args.folder} is a library")
        from crem_jax.commands.find_library import run as run_library

        return run_library(args)
    for name in ("where", "ask"):
        if getattr(args, name) is not None:
            raise CremError(f"--{name} needs a library; {args.folder} is none")
    if args.exact:
        raise CremError(f"--exact needs a library; {args.folder} is none: all of it is compared")
    paths = pictures_in(args.folder)

    from crem_jax.commands.output import print_json, print_table
    from crem_jax.data.records import Item
    from crem_jax.inference.folder_search import rank_pictures
    from crem_jax.inference.model import load
    from crem_jax.report.figures import retrieval_grid

    model = load(args.model, args.step, weights=args.weights)
    image = Path(args.image) if args.image else None
    query = Item(text=args.words or "", images=(image,) if image else ())
    ranking = rank_pictures(model, query, paths, args.k, args.dim)
    best = ranking.hits[: args.top]
    hits = [(hit.path, f"{hit.score:.3f} {hit.path.name}", None) for hit in best]
    retrieval_grid([(image or args.words, hits)], args.out, top=args.top)
    for path, reason in ranking.skipped:
        print(f"crem find: skipped {_named(path, reason)}", file=sys.stderr)
    if args.json:
        print_json(
            {
                "query": {"text": args.words, "image": args.image},
                "k": args.k or model.config.num_chorus,
                "dim": args.dim or model.config.text.hidden_size,
                "results": [
                    {"rank": rank, "score": round(hit.score, 6), "file": str(hit.path)}
                    for rank, hit in enumerate(best, 1)
                ],
                "skipped": [{"file": str(p), "reason": r} for p, r in ranking.skipped],
                "grid": args.out,
            }
        )
        return
    rows = [(str(rank), f"{hit.score:.3f}", str(hit.path)) for rank, hit in enumerate(best, 1)]
    sought = " and ".join(part for part in (args.words, args.image) if part)
    print_table(("rank", "score", "file"), rows, f"{sought} in {args.folder}")
    print(f"drawn in {args.out}")


def _named(path: Path, reason: str) -> str:
    return reason if str(path) in reason else f"{path}: {reason}"
