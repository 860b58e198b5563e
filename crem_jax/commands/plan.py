"""What a training step of a config needs of a TPU pod, before the pod is rented.

Compiles the real step for the topology on this machine, without a TPU and without allocating
anything; it takes some minutes. --per_chip_batch counts packed sequences a chip: contexts of 1,024
vision tokens with text and chorus in 1,280 slots, and 256 target slots, 128 of them answers, all of
them queries, candidates and conversations at once. Without it, the config's own buckets are taken.
"""

from __future__ import annotations

import argparse
from typing import Any

from crem_jax.commands.options import add_recipe, non_negative_int, take_overrides

EXAMPLES = """\
  crem plan --config=qwen2_vl_2b --topology=v5e:16x16 --per_chip_batch=4
  crem plan --config=qwen2_vl_7b --topology=v5p:4x8x8 --per_chip_batch=8 --json
  crem plan --config=qwen2_vl_7b --topology=v6e:16x16 --sweep"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "crem plan --config=RECIPE[:OPTION] --topology=KIND:SIZE [--per_chip_batch=N] [--chunk=N] "
        "[--sweep] "
        "[--config.KEY=VALUE …] [--json]"
    )
    add_recipe(parser)
    parser.add_argument(
        "--topology",
        required=True,
        metavar="KIND:SIZE",
        help="kind (v4, v5e, v5p, v6e, tpu7x) and chips along each axis: v5e:16x16, v5p:4x8x8",
    )
    parser.add_argument(
        "--per_chip_batch",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="packed sequences a chip (default: the config's own buckets)",
    )
    parser.add_argument(
        "--chunk",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="of --per_chip_batch, sequences in memory at a time (GradCache; default: all)",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="compile for 1, 2, 4 … sequences a chip and several meshes, and say what fits",
    )


take_rest = take_overrides


def run(args: argparse.Namespace) -> None:
    from crem_jax.plan import stay_on_host

    stay_on_host()
    from crem_jax.commands.output import print_json
    from crem_jax.commands.recipe import read_recipe
    from crem_jax.plan import report
    from crem_jax.plan.compile import plan
    from crem_jax.plan.pods import find_pod
    from crem_jax.plan.sweep import sweep

    config = read_recipe(args.config, args.overrides)
    pod = find_pod(args.topology)
    print(report.heading(args.config, pod), flush=True)
    if args.sweep:
        rows: list[dict[str, Any]] = []
        for found in sweep(config, pod, args.per_chip_batch or 1, args.chunk):
            print(report.line(found, pod), flush=True)
            rows.append(report.figures(found, pod))
        result: dict[str, Any] = {"topology": pod.topology, "sweep": rows}
    else:
        found = plan(config, pod, args.per_chip_batch, args.chunk)
        print(report.text(found, pod))
        result = report.figures(found, pod)
    if args.json:
        print_json(result)
