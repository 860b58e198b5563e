"""Evaluate comprehension on VLMEvalKit's tables, natively and from the chorus tokens alone.

A table is a TSV file called like its benchmark: MMBench_DEV_EN.tsv, AI2D_TEST.tsv, MMStar.tsv,
MMMU_DEV_VAL.tsv, HallusionBench.tsv, … Answers are matched by VLMEvalKit's rules without a judge
model; MMVet, which needs one, is answered and not scored. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from crem_jax.errors import CremError

EXAMPLES = """\
  crem eval comprehension runs/crem-2b --tsv LMUData/MMBench_DEV_EN.tsv LMUData/AI2D_TEST.tsv
  crem eval comprehension runs/crem-2b --tsv LMUData/*.tsv --k 4 --xlsx
  crem eval comprehension runs/crem-2b --tsv LMUData/MMVet.tsv --max_new_tokens 512"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import add_model, add_precision, positive_int

    add_model(parser)
    parser.add_argument("--tsv", metavar="FILE", nargs="+", required=True, help="tables")
    parser.add_argument("--out", metavar="DIR", help="default: MODEL/comprehension")
    parser.add_argument(
        "--modes",
        type=lambda text: text.split(","),
        default=["native", "compressed"],
        metavar="MODE,…",
        help="native, compressed (default: both)",
    )
    parser.add_argument(
        "--k", type=positive_int, metavar="K", help="compressed: from the first K chorus tokens"
    )
    parser.add_argument("--max_new_tokens", type=positive_int, default=128, metavar="N")
    parser.add_argument(
        "--limit", type=positive_int, metavar="N", help="only the first N questions of each table"
    )
    parser.add_argument("--xlsx", action="store_true", help="write predictions as xlsx too")
    parser.add_argument("--name", metavar="TEXT", help="of the model, in file names")
    add_precision(parser)


def run(args: argparse.Namespace) -> None:
    from crem_jax.commands.output import counting, print_json, print_table
    from crem_jax.evaluate.comprehension.answering import MODES
    from crem_jax.evaluate.comprehension.evaluate import evaluate
    from crem_jax.inference.model import load
    from crem_jax.processes import default_workers
    from crem_jax.report.comprehension import table_of_scores, write_report

    for mode in args.modes:
        if mode not in MODES:
            raise CremError(f"--modes {mode!r} is not one of {', '.join(MODES)}")
    modes = [mode for mode in MODES if mode in args.modes]
    model = load(args.model, args.step, dtype=args.dtype)
    name = args.name or Path(args.model).resolve().name
    out = Path(args.out) if args.out else Path(args.model) / "comprehension"
    result = evaluate(
        model,
        name,
        args.tsv,
        out,
        modes=modes,
        k=args.k,
        max_new_tokens=args.max_new_tokens,
        limit=args.limit,
        excel=args.xlsx,
        workers=args.workers or default_workers(),
        counting=counting,
    )
    pages = write_report(out, result)
    if args.json:
        print_json({**result, "out": str(out)})
        return
    table = table_of_scores(result)
    rows = [(*row[1:], row[0]) for row in table.rows]
    print_table((*table.columns[1:], "benchmark"), rows, title=f"{name}, in percent")
    drawn = ", ".join(page.name for page in pages)
    print(f"written to {out}: scores.json, {drawn}, and predictions in a folder for each table")
