"""Train a model from a config. The same command again resumes the run where its last checkpoint is.

At the end the run's pictures are drawn beside its checkpoints: curves.png, retrieval.png,
answers.png and a folder of pictures to try `crem find` and `crem tell` on.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

EXAMPLES = """\
  crem train --config=configs/emoji.py --workdir=runs/emoji
  crem train --config=configs/emoji.py:smoke --workdir=runs/smoke
  crem train --config=configs/emoji.py --workdir=runs/slow --config.optim.lr=1e-4"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "crem train --config=FILE.py[:OPTION] --workdir=DIR [--config.KEY=VALUE …] [--json]"
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:OPTION]",
        help="a config file and an option of it; --config.KEY=VALUE changes one of its keys",
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where the run lives")


def take_rest(parser: argparse.ArgumentParser, args: argparse.Namespace, rest: list[str]) -> None:
    """Keeps the overrides of config keys; anything else is an error."""
    for text in rest:
        if text.startswith("-") and not text.lstrip("-").startswith("config."):
            parser.error(f"unknown argument {text}")
    args.overrides = rest


def run(args: argparse.Namespace) -> None:
    from crem_jax.commands.output import print_json
    from crem_jax.commands.recipe import read_recipe
    from crem_jax.commands.timing import TrainingClock, read_timing

    config = read_recipe(args.config, args.overrides)
    workdir = Path(args.workdir)

    from crem_jax.api import load
    from crem_jax.evaluate.registry import evaluator
    from crem_jax.report.run import write_report
    from crem_jax.train.loop import train
    from crem_jax.train.metrics import read_metrics

    name = config.get("evaluate", "emoji")
    measure = evaluator(name).quick if name else None
    done = (workdir / "checkpoints" / str(config.steps)).is_dir()
    with contextlib.nullcontext() if done else TrainingClock(workdir):
        train(config, workdir, measure)
    print("drawing the pictures of the run", file=sys.stderr)
    written = write_report(workdir, load(workdir), name)
    timing = read_timing(workdir)
    if args.json:
        scores = {}
        for row in read_metrics(workdir / "metrics.jsonl"):
            scores |= {k: v for k, v in row.items() if k.startswith("eval/")}
        files = [str(path) for path in written]
        print_json(
            {"workdir": str(workdir), "steps": config.steps, **timing, **scores, "files": files}
        )
        return
    what = "was trained already" if done else f"trained for {timing['train_seconds']:.0f} s"
    print(f"{workdir} {what}; see {', '.join(path.name for path in written)} there.")
