"""Train and measure the paper's ablation in the embedded world, or study one setting.

Every run is a directory WORKDIR/SETTING/SEED; it is done when its ablation.json is there. The same
command goes on where a killed one stopped. After every run WORKDIR/table-NAME.md, .json and .png
are rewritten from the runs finished so far.

The first start times a few steps and estimates the total time; with --minutes it chooses the
number of steps that fits. All runs of a WORKDIR have that number.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crem_jax.ablation.studies import STUDIES, TABLES
from crem_jax.ablation.study import Setting, Study
from crem_jax.commands.options import add_recipe, positive_float, positive_int, take_overrides
from crem_jax.errors import CremError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from crem_jax.ablation.pace import Cost, Pace
    from crem_jax.ablation.runs import Run

EXAMPLES = f"""\
  crem ablate --config=emoji --minutes 60                  # Table 3, three seeds
  crem ablate --config=emoji --table 4 --steps 350 --workdir=runs/table-4
  crem ablate --config=emoji --study temperature --study qa
  crem ablate --config=emoji --table 3 --config.optim.lr=2e-3 --workdir=runs/slower

studies: {", ".join(STUDIES)}"""

STEPS = 350


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "crem ablate --config=RECIPE[:OPTION] [--table 3|4|all] [--study NAME …] "
        "[--minutes M | --steps N] [--config.KEY=VALUE …]"
    )
    add_recipe(parser)  # one with the options of `emoji`
    parser.add_argument("--workdir", default="runs/ablation", metavar="DIR", help="of all runs")
    parser.add_argument(
        "--table",
        choices=(*TABLES, "all"),
        help="of the paper (default: 3, unless --study is given)",
    )
    parser.add_argument(
        "--study", action="append", default=[], choices=tuple(STUDIES), metavar="NAME"
    )
    parser.add_argument("--seeds", type=positive_int, default=3, metavar="N", help="default 3")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=positive_int, metavar="N", help=f"of every run (default {STEPS})"
    )
    length.add_argument(
        "--minutes", type=positive_float, metavar="M", help="as many steps as fit in M minutes"
    )
    parser.add_argument(
        "--scenes",
        type=positive_int,
        metavar="N",
        help="held-out scenes that are asked about; fewer are quicker, less certain (default 256)",
    )


take_rest = take_overrides


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    from crem_jax.ablation import runs as all_runs
    from crem_jax.ablation.pace import Cost, step_flops
    from crem_jax.commands.output import print_json
    from crem_jax.commands.recipe import read_recipe
    from crem_jax.train.run.faults import PREEMPTED, Preempted

    workdir, studies = Path(args.workdir), _studies(args)
    _share_compiled_code(workdir)
    file, _, option = args.config.partition(":")

    def config_of(setting: Setting) -> ConfigDict:
        options = ",".join(filter(None, (option, setting.option)))
        return read_recipe(f"{file}:{options}", (*args.overrides, *setting.flags))

    runs = all_runs.runs_of(studies, workdir, args.seeds)
    configs = {run.setting: config_of(run.setting) for run in runs}
    for study in studies:
        study.check(config_of(Setting()))
    rows = {s: sum(len(study.rows_of(s)) * (1 + study.signs) for study in studies) for s in configs}

    def cost(run: Run) -> Cost:
        return Cost(run.setting, step_flops(configs[run.setting]), rows[run.setting])

    pace = _pace(args, workdir, [cost(run) for run in runs], configs, started)
    all_runs.check(runs, config_of, pace.steps)
    left = all_runs.pending(runs, studies)
    estimates = pace.seconds([cost(run) for run in left])
    _say(
        f"{len(runs)} runs of {pace.steps} steps in {workdir}, {len(runs) - len(left)} done; "
        f"{pace.step_seconds:.2f} s a step, {pace.evaluation_seconds:.0f} s an evaluation: "
        f"about {_clock(sum(estimates))} to go"
    )
    tables = {study.name: _write(study, runs, workdir, pace.steps) for study in studies}
    try:
        began = time.perf_counter()
        finished = all_runs.finish(left, studies, config_of, pace.steps, pace.scenes)
        for done, run in enumerate(finished, 1):
            tables = {study.name: _write(study, runs, workdir, pace.steps) for study in studies}
            # Remaining estimates are scaled by how the earlier ones compared with reality.
            ratio = (time.perf_counter() - began) / max(sum(estimates[:done]), 1e-9)
            _say(f"{run.name} done; about {_clock(sum(estimates[done:]) * ratio)} to go")
    except Preempted as saved:
        _say(f"crem ablate: {saved}")
        return PREEMPTED
    if args.json:
        values = [json.loads((workdir / f"table-{name}.json").read_text()) for name in tables]
        print_json({"workdir": str(workdir), "steps": pace.steps, "tables": values})
    else:
        print("\n".join(tables.values()))
        print(f"see {', '.join(f'table-{name}.md, .json, .png' for name in tables)} in {workdir}")
    return 0


def _studies(args: argparse.Namespace) -> tuple[Study, ...]:
    table = args.table or ("" if args.study else "3")
    names = tuple(TABLES) if table == "all" else tuple(filter(None, [table]))
    return (*(TABLES[name] for name in names), *(STUDIES[name] for name in args.study))


def _share_compiled_code(workdir: Path) -> None:
    """Sets a compilation cache in the workdir: seeds of a setting compile the same programs."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _pace(
    args: argparse.Namespace,
    workdir: Path,
    costs: Sequence[Cost],
    configs: Mapping[Setting, ConfigDict],
    started: float,
) -> Pace:
    """The pace of all runs: the one stored in the workdir, or a new one."""
    from crem_jax.ablation.pace import Pace, choose_steps, time_setting
    from crem_jax.evaluate.emoji import SCENES

    pace = Pace.read(workdir)
    if pace is not None:
        for name in ("steps", "scenes"):
            asked, there = getattr(args, name), getattr(pace, name)
            if asked not in (None, there):
                raise CremError(
                    f"--{name} {asked}: the runs in {workdir} have {there}; give another --workdir"
                )
        if args.minutes:
            _say(f"--minutes {args.minutes:g} is not used: the runs in {workdir} have their steps")
        return pace
    for config in configs.values():
        if config.get("evaluate") != "emoji":
            raise CremError(
                f"config.evaluate is {config.get('evaluate')!r}; what is measured here is 'emoji'"
            )
    _say("timing a few steps and an evaluation")
    dearest = max(costs, key=lambda cost: cost.flops)
    pace = time_setting(configs[dearest.setting], args.scenes or SCENES)
    steps = args.steps or STEPS
    if args.minutes:
        left = 60 * args.minutes - (time.perf_counter() - started)
        steps = choose_steps(pace, costs, left)
    pace = dataclasses.replace(pace, steps=steps)
    pace.write(workdir)
    return pace


def _write(study: Study, runs: Sequence, workdir: Path, steps: int) -> str:
    """Writes a study's table from the finished runs; returns its Markdown."""
    from crem_jax.ablation.table import collect, markdown
    from crem_jax.files import write_json, write_text
    from crem_jax.report.ablation import draw

    collected = collect(study, runs)
    text = markdown(study, collected, steps)
    base = workdir / f"table-{study.name}"
    write_text(base.with_suffix(".md"), text)
    write_json(base.with_suffix(".json"), {**collected, "steps": steps})
    if any(row["scores"] for row in collected["rows"]):
        draw(study, collected, base.with_suffix(".png"))
    return text


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
