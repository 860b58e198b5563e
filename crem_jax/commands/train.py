"""Train a model from a config. The same command again resumes the run where its last checkpoint is.

On SIGTERM the run saves and ends with exit code 75: the same command goes on. Exit code 2 says that
the same command would not help: something it was given cannot be used, or training diverged.

At the end the run's pictures are drawn beside its checkpoints: curves.png, retrieval.png,
answers.png and a folder of pictures to try `crem find` and `crem tell` on.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from crem_jax.commands.options import add_recipe, non_negative_int, take_overrides
from crem_jax.errors import CremError

EXAMPLES = """\
  crem train --config=emoji --workdir=runs/emoji
  crem train --config=emoji:smoke --workdir=runs/smoke
  crem train --config=configs/own.py --workdir=runs/slow --config.optim.lr=1e-4
  crem train --config=emoji --print_config
  bash launch/local_multiprocess.sh 2 --config=emoji:smoke --workdir=runs/two"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "crem train --config=RECIPE[:OPTION] --workdir=DIR [--config.KEY=VALUE …] [--json]"
    )
    add_recipe(parser)
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="where the run lives: a directory that all processes share, or gs://BUCKET/RUN",
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="print every key of the config (docs/config.md says what they mean) and end",
    )
    parser.add_argument(
        "--distributed",
        default="auto",
        metavar="auto|off|HOST:PORT,N,I",
        help="how this process joins others: as SLURM, GKE, Open MPI or a TPU VM say (auto, the "
        "default), not at all, or as process I of N with process 0 listening at HOST:PORT",
    )
    parser.add_argument(
        "--log",
        default="",
        metavar="NAMES",
        help="where metrics go beside metrics.jsonl: tensorboard, wandb, or both with a comma",
    )
    parser.add_argument(
        "--profile",
        type=non_negative_int,
        default=0,
        metavar="STEPS",
        help="trace STEPS steps, after compilation, to DIR/profile (xprof)",
    )


def take_rest(parser: argparse.ArgumentParser, args: argparse.Namespace, rest: list[str]) -> None:
    """Keeps the overrides of config keys in `args`; other arguments are usage errors."""
    take_overrides(parser, args, rest)
    if not args.workdir and not args.print_config:
        parser.error("the following arguments are required: --workdir")


def run(args: argparse.Namespace) -> int:
    if args.print_config:
        _print_config(args)
        return 0
    from crem_jax import distributed

    with distributed.job(args.distributed):
        from crem_jax.train.run.faults import PREEMPTED, Preempted

        try:
            _train(args)
        except Preempted as saved:
            print(f"crem train: {saved}", file=sys.stderr)
            return PREEMPTED
    return 0


def _print_config(args: argparse.Namespace) -> None:
    from crem_jax.commands.output import print_json
    from crem_jax.commands.recipe import read_recipe
    from crem_jax.configs.document import listing
    from crem_jax.configs.schema import TrainConfig

    config = TrainConfig.of(read_recipe(args.config, args.overrides))
    if args.json:
        print_json(config.to_dict())
    else:
        print(listing(config))


def _train(args: argparse.Namespace) -> None:
    from crem_jax import distributed
    from crem_jax.commands.output import print_json
    from crem_jax.commands.recipe import read_recipe
    from crem_jax.commands.timing import TrainingClock, read_timing
    from crem_jax.configs.schema import TrainConfig
    from crem_jax.train.run.metrics import WRITERS

    names = [name for name in args.log.split(",") if name]
    unknown = [name for name in names if name not in WRITERS]
    if unknown:
        raise CremError(f"--log {unknown[0]!r} is not one of {', '.join(WRITERS)}")
    config = TrainConfig.of(read_recipe(args.config, args.overrides))

    import jax

    from crem_jax.evaluate.registry import evaluator
    from crem_jax.inference.model import load
    from crem_jax.report.run import write_report
    from crem_jax.train.loop import train
    from crem_jax.train.run.metrics import read_metrics
    from crem_jax.train.run.workdir import RunDirectory

    name = config.evaluate
    measure = evaluator(name).quick if name else None
    place = RunDirectory.open(args.workdir)
    done = (place.checkpoints / str(config.steps)).is_dir()
    main = distributed.is_main()
    with contextlib.nullcontext() if done or not main else TrainingClock(place.local):
        model = train(config, place, measure, log_to=names, profile=args.profile)
    if main:
        print("drawing the pictures of the run", file=sys.stderr)
    if place.is_local and jax.process_count() == 1:
        model = load(place.local)  # the best checkpoint, on one device
    # All processes run the model together; figures drawn by others than process 0 are discarded.
    with _drawing_board(place.local) as directory:
        written = write_report(directory, model, name)
    place.push()
    if not main:
        return
    timing = read_timing(place.local)
    if args.json:
        scores: dict[str, float] = {}
        for row in read_metrics(place.local / "metrics.jsonl"):
            scores |= {k: v for k, v in row.items() if k.startswith("eval/")}
        files = [str(path) for path in written]
        print_json(
            {"workdir": place.name, "steps": config.steps, **timing, **scores, "files": files}
        )
        return
    what = "was trained already" if done else f"trained for {timing['train_seconds']:.0f} s"
    print(f"{place.name} {what}; see {', '.join(path.name for path in written)} there.")


@contextlib.contextmanager
def _drawing_board(run: Path) -> Iterator[Path]:
    """The directory to draw into: the run's on process 0, elsewhere a temporary one."""
    from crem_jax import distributed

    if distributed.is_main():
        yield run
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
