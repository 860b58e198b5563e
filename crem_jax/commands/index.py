"""Index pictures and texts once; then find them in milliseconds and ask them without the pictures.

SOURCE is a folder of pictures, a .jsonl file, a tfds or prepared data set, or KIND:PATH,KEY=VALUE,…
as for `crem prepare`. Only new and changed items are encoded. An interrupted command
resumes when run again. What cannot be read is named on stderr and left out.
"""

from __future__ import annotations

import argparse
import sys

from crem_jax.library.entry import ENCODINGS

EXAMPLES = """\
  crem index runs/emoji photos --library photos.crem
  crem index runs/emoji photos --library photos.crem --delete
  crem index runs/emoji shop.jsonl --library s3://bucket/shop.crem --memory int8
  crem index runs/emoji emoji --library emoji.crem --shard 0/4"""

_HOURS = 24 * 7  # that a process waits for the others when its share is done


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import add_model, add_running, positive_int

    add_model(parser)
    parser.add_argument("source", metavar="SOURCE", help="PATH, or KIND:PATH,KEY=VALUE,…")
    parser.add_argument(
        "--library", metavar="DIR", required=True, help="a new directory or URI, or one to update"
    )
    parser.add_argument(
        "--delete", action="store_true", help="remove what the source no longer has"
    )
    parser.add_argument("--prefix", default="", metavar="TEXT", help="put before every id")
    parser.add_argument(
        "--memory",
        choices=ENCODINGS,
        help="how memories are stored (default: bfloat16, or as the library is)",
    )
    parser.add_argument(
        "--memory_k",
        type=positive_int,
        metavar="K",
        help="chorus tokens stored per memory (default: all)",
    )
    parser.add_argument(
        "--ks",
        type=_numbers,
        metavar="K,K,…",
        help="numbers of chorus tokens to search by (default: K and its halves)",
    )
    parser.add_argument(
        "--milvus",
        metavar="URI",
        help="keep the vectors on a Milvus server, or in a Milvus Lite file",
    )
    parser.add_argument(
        "--shard", type=_shard, metavar="I/N", help="do part I of N (0/4 … 3/4), each a process"
    )
    parser.add_argument(
        "--batch",
        type=positive_int,
        default=128,
        metavar="N",
        help="items stored together (default 128)",
    )
    add_running(parser)


def run(args: argparse.Namespace) -> None:
    from crem_jax import distributed

    with distributed.job(args.distributed):
        _run(args)


def _run(args: argparse.Namespace) -> None:
    from crem_jax import distributed
    from crem_jax.commands.output import counting, print_json
    from crem_jax.inference.model import load
    from crem_jax.library.index_source import IndexSource
    from crem_jax.library.indexing import index, library_info
    from crem_jax.library.library import create, is_library
    from crem_jax.library.library import open as open_library
    from crem_jax.processes import default_workers

    shard = args.shard or distributed.share()
    source = IndexSource(args.source, args.prefix)
    options = {"memory": args.memory, "memory_k": args.memory_k, "prefixes": args.ks}
    if is_library(args.library):
        old = open_library(args.library).info
        options = {name: value or getattr(old, name) for name, value in options.items()}
        args.milvus = args.milvus or old.vectors
    options["memory"] = options["memory"] or "bfloat16"
    model = load(args.model, args.step, dtype=args.dtype)
    info = library_info(model, str(args.model), **options, vectors=args.milvus or "")
    library = create(args.library, info)
    total = len(range(shard[0], len(source), shard[1]))
    with counting(total, "indexing") as progress:
        done = index(
            model,
            library,
            source,
            shard=shard,
            delete=args.delete,
            batch=args.batch,
            workers=args.workers or default_workers(),
            progress=progress,
        )
    for where, reason in done.skipped:
        named = reason if where in reason else f"{where}: {reason}"
        print(f"crem index: skipped {named}", file=sys.stderr)
    distributed.meet(hours=_HOURS)
    if distributed.is_main():
        library.tidy()
    if args.json:
        print_json(
            {
                "library": args.library,
                "entries": len(library),
                "encoded": done.encoded,
                "unchanged": done.unchanged,
                "deleted": done.deleted,
                "skipped": [{"where": w, "reason": r} for w, r in done.skipped],
            }
        )
        return
    print(
        f"{args.library}: {len(library)} entries; encoded {done.encoded}, unchanged "
        f"{done.unchanged}, deleted {done.deleted}, skipped {len(done.skipped)}"
    )


def _shard(text: str) -> tuple[int, int]:
    first, slash, count = text.partition("/")
    if slash and first.isdecimal() and count.isdecimal() and int(first) < int(count):
        return int(first), int(count)
    raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I of 0..N-1")


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if all(part.isdecimal() and int(part) > 0 for part in parts):
        return tuple(int(part) for part in parts)
    raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 16,4")
