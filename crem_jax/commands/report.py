"""Make one HTML page of a run: metrics, curves, retrieval, answers, recipe and environment.

The page is self-contained. It shows the run in its current state, finished or not, and loads no
model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
  crem report runs/emoji
  crem report runs/emoji --out emoji.html"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="what `crem train` made or is making")
    parser.add_argument("--out", metavar="FILE", help="default: RUN/report.html")


def run(args: argparse.Namespace) -> None:
    from crem_jax.commands.output import print_json
    from crem_jax.report.page import write_page

    path = write_page(args.run, args.out or Path(args.run) / "report.html")
    if args.json:
        print_json({"page": str(path)})
        return
    print(f"written to {path}")
