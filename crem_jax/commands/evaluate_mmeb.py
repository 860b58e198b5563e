"""Measure how well a model finds, on MMEB or a part of it, from local files.

ROOT has a folder NAME for each data set with test*.parquet (or .jsonl), or a file NAME.parquet; the
pictures are in it or in ROOT/images. Each distinct text and picture is encoded once and
cached: an interrupted command resumes when run again, and later ones encode only what is new.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLES = """\
  crem eval mmeb runs/crem-2b --data MMEB-eval
  crem eval mmeb runs/crem-2b --data MMEB-eval --datasets VQA,ImageNet-1K
  crem eval mmeb runs/crem-2b --data MMEB-eval --limit 100 --out quick
  crem eval mmeb runs/crem-2b --data MMEB-eval --k 4 --out mmeb-k4 --cache embeddings
  crem eval mmeb runs/crem-2b --data MMEB-eval --distributed auto"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import add_model, add_running, positive_int

    add_model(parser)
    parser.add_argument("--data", metavar="ROOT", required=True, help="folder of the data sets")
    parser.add_argument(
        "--datasets",
        type=lambda text: [name for name in text.split(",") if name],
        metavar="NAME,…",
        help="data sets or meta-tasks (default: all 36)",
    )
    parser.add_argument("--images", metavar="DIR", help="what picture paths are relative to")
    parser.add_argument("--out", metavar="DIR", help="default: MODEL/mmeb")
    parser.add_argument(
        "--cache", metavar="DIR", help="folder of embeddings (default: DIR of --out/embeddings)"
    )
    parser.add_argument(
        "--limit", type=positive_int, metavar="N", help="only the first N rows of each data set"
    )
    parser.add_argument(
        "--k", type=positive_int, metavar="K", help="read only the first K chorus tokens"
    )
    parser.add_argument(
        "--dim",
        type=positive_int,
        metavar="D",
        help="compare only the first D numbers of embeddings",
    )
    parser.add_argument("--name", metavar="TEXT", help="of the model, in the files written")
    add_running(parser)


def run(args: argparse.Namespace) -> None:
    from crem_jax import distributed

    with distributed.job(args.distributed):
        _run(args)


def _run(args: argparse.Namespace) -> None:
    from crem_jax import distributed
    from crem_jax.commands.output import counting, print_json, print_table
    from crem_jax.evaluate.mmeb.datasets import chosen
    from crem_jax.evaluate.mmeb.evaluate import evaluate
    from crem_jax.evaluate.mmeb.summary import to_json, warnings
    from crem_jax.inference.model import load
    from crem_jax.processes import default_workers
    from crem_jax.report.mmeb import table_of_means, write_report

    datasets = chosen(args.datasets)
    model = load(args.model, args.step, dtype=args.dtype).spread()
    name = args.name or Path(args.model).resolve().name
    out = Path(args.out) if args.out else Path(args.model) / "mmeb"
    scores, about = evaluate(
        model,
        name,
        datasets,
        args.data,
        out,
        cache=args.cache or out / "embeddings",
        image_root=args.images,
        k=args.k,
        dim=args.dim,
        limit=args.limit,
        workers=args.workers or default_workers(),
        counting=counting,
    )
    if not distributed.is_main():
        return
    files = write_report(out, name, scores, about)
    if args.json:
        print_json({**to_json(scores, about), "out": str(out)})
        return
    rows = [
        (f"{100 * s.precision:.1f}", f"{100 * s.chance:.1f}", str(s.ties), s.dataset.name)
        for s in scores
    ]
    print_table(("P@1 %", "chance", "ties", "data set"), rows, title=f"{name} on MMEB")
    table = table_of_means(name, scores, args.limit)
    print_table((*table.columns[1:], "model"), [(*row[1:], row[0]) for row in table.rows])
    for warning in warnings(scores, args.limit):
        print(f"crem eval mmeb: {warning}", file=sys.stderr)
    drawn = ", ".join(file.name for file in files)
    print(f"written to {out}: scores.json, leaderboard.json, v1, v2, {drawn}")
