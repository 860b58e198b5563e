"""Measure how well a model finds and tells, and write the figures to MODEL/summary.json.

A run is measured in the world its config names (`evaluate`), any other model in the embedded one.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from crem_jax.errors import CremError

EXAMPLES = """\
  crem eval runs/emoji
  crem eval runs/emoji --step last --out last.json
  crem eval runs/emoji --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import add_model

    add_model(parser)
    parser.add_argument("--out", metavar="FILE", help="instead of MODEL/summary.json")


def run(args: argparse.Namespace) -> None:
    since = time.perf_counter()
    from crem_jax.commands.output import print_json, print_table
    from crem_jax.evaluate.registry import evaluator
    from crem_jax.files import write_json
    from crem_jax.inference.model import load

    model = load(args.model, args.step)
    directory = Path(args.model)
    name = _world(directory)
    if not name:
        raise CremError(f"{directory} was trained without an evaluation (config.evaluate is '')")
    scores = evaluator(name).evaluate(model)
    summary = scores | costs(directory, time.perf_counter() - since)
    out = Path(args.out) if args.out else directory / "summary.json"
    write_json(out, summary)
    if args.json:
        print_json(summary)
        return
    rows = ((_shown(value), key) for key, value in summary.items())
    print_table(("value", "measure"), rows, title=f"{directory} ({name})")
    print(f"written to {out}")


def costs(directory: Path, eval_seconds: float) -> dict[str, float | None]:
    """Seconds and memory of training and evaluation; None for training if it was not a local run.

    The total counts from CREM_START (seconds since the epoch) where that is set, and is never less
    than what training and evaluation took.
    """
    from crem_jax.commands.timing import read_timing
    from crem_jax.train.run.meter import peak_rss_mb

    timing = read_timing(directory)
    total = timing.get("train_seconds", 0.0) + eval_seconds
    if start := os.environ.get("CREM_START"):
        try:
            total = max(total, time.time() - float(start))
        except ValueError as error:
            raise CremError(f"CREM_START {start!r} is no number of seconds") from error
    return {
        "train_seconds": timing.get("train_seconds"),
        "total_seconds": round(total, 1),
        "peak_rss_mb": round(max(timing.get("peak_rss_mb", 0.0), peak_rss_mb()), 1),
    }


def _world(directory: Path) -> str:
    from crem_jax.files import read_json

    recipe = directory / "recipe.json"
    return read_json(recipe).get("evaluate", "emoji") if recipe.exists() else "emoji"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key}: {_shown(entry)}" for key, entry in value.items())
    return "–" if value is None else f"{value:.3f}" if value <= 1 else f"{value:.0f}"
