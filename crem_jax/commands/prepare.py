"""Write a source of training records as a sharded tensorflow-datasets data set (ArrayRecord).

SOURCE is a path (a folder of pictures, a .jsonl, ShareGPT .json or .parquet file, a folder of MMEB
subsets, a tfds directory) or KIND:PATH,KEY=VALUE,… with the arguments that docs/data.md lists.
Records that cannot be used are skipped and listed in OUT/skipped.jsonl. An interrupted
command resumes when run again; the result is the same byte for byte.
"""

from __future__ import annotations

import argparse

from crem_jax.errors import CremError

EXAMPLES = """\
  crem prepare pairs.jsonl data/pairs
  crem prepare photos data/photos --max_pixels 1003520
  crem prepare mmeb:MMEB-train,subset=MSCOCO_i2t,limit=100000 data/coco
  crem prepare jsonl:pairs.jsonl,index=checked/index.json data/pairs"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import fraction, positive_int

    parser.add_argument("source", metavar="SOURCE", help="PATH, or KIND:PATH,KEY=VALUE,…")
    parser.add_argument("out", metavar="OUT", help="the directory to make")
    parser.add_argument(
        "--max_pixels",
        type=positive_int,
        metavar="N",
        help="shrink larger pictures (default: keep every file as it is)",
    )
    parser.add_argument("--split", default="train", metavar="NAME", help="default: train")
    parser.add_argument(
        "--shard_records", type=positive_int, default=1000, metavar="N", help="default: 1000"
    )
    parser.add_argument(
        "--max_bad",
        type=fraction,
        default=0.1,
        metavar="SHARE",
        help="fail if more than this share of the records is skipped (default: 0.1)",
    )
    parser.add_argument(
        "--workers", type=positive_int, metavar="N", help="processes (default: cores)"
    )


def run(args: argparse.Namespace) -> None:
    from crem_jax.commands.output import counting, print_json
    from crem_jax.data.sources.command_line import describe, parse_source, stamp
    from crem_jax.data.sources.registry import make_source
    from crem_jax.data.tools.prepare import SKIPPED_FILE, Plan, prepare
    from crem_jax.processes import default_workers

    if not args.split.isidentifier():
        raise CremError(f"--split {args.split!r} is no name; expected letters, digits and _")
    kind, arguments = parse_source(args.source)
    source = make_source(kind, arguments, args.source)
    plan = Plan(
        describe(kind, arguments), len(source), args.split, args.shard_records, args.max_pixels
    )
    workers = args.workers or default_workers()
    with counting(plan.records, "preparing") as progress:
        done = prepare(source, plan, args.out, workers, args.max_bad, stamp(arguments), progress)
    left_out = dict(getattr(source, "left_out", {}))
    if args.json:
        print_json(
            {
                "data": args.out,
                "records": done.written,
                "skipped": len(done.skipped),
                "left_out": left_out,
                "shards": plan.shards,
                "bytes": done.bytes,
            }
        )
        return
    print(f"{args.out}: {done.written} records in {plan.shards} shards, {done.bytes / 1e6:.1f} MB")
    if done.skipped:
        print(f"skipped {len(done.skipped)} records, listed in {args.out}/{SKIPPED_FILE}")
    for reason, count in left_out.items():
        print(f"left out {count} rows: {reason}")
