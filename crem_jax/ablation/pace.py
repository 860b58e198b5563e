"""How many steps fit in the time there is, from the measured time of a step and of an evaluation.

One setting is timed; a step of another is taken to cost in proportion to its FLOPs.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from crem_jax.ablation.measure import ModelScores
from crem_jax.ablation.study import Row, Setting
from crem_jax.configs.schema import TrainConfig
from crem_jax.errors import CremError
from crem_jax.files import read_json, write_json
from crem_jax.flops import model_flops
from crem_jax.train.loop import train
from crem_jax.train.run.metrics import read_metrics
from crem_jax.train.setup import make_objective

FILE = "pace.json"
_TIMED = 6  # steps, after as many that compile and warm up


class Cost(NamedTuple):
    """What a run trains, the FLOPs of one of its steps, and the number of its evaluations."""

    setting: Setting
    flops: float
    rows: int = 1


@dataclasses.dataclass(frozen=True)
class Pace:
    """Properties common to all runs of a workdir, and measured durations: WORKDIR/pace.json.

    Attributes:
      steps: of every run. scenes: number of held-out scenes in an evaluation.
      step_seconds, evaluation_seconds: of the timed setting, for one step and one evaluation; 0 if
        nothing was timed.
      start_seconds: start-up time of a run, before its first step.
      compile_seconds: additional time of the first run of a setting.
      flops: FLOPs of a step of the timed setting.
    """

    steps: int
    scenes: int
    step_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    start_seconds: float = 0.0
    compile_seconds: float = 0.0
    flops: float = 0.0

    def seconds(self, costs: Sequence[Cost]) -> list[float]:
        """Estimates for runs in this order, evaluation included."""
        if not self.flops:
            return [0.0] * len(costs)
        estimates, compiled = [], set()
        for setting, flops, rows in costs:
            start = self.start_seconds + self.compile_seconds * (setting not in compiled)
            training = flops / self.flops * self.steps * self.step_seconds
            estimates.append(start + training + rows * self.evaluation_seconds)
            compiled.add(setting)
        return estimates

    @staticmethod
    def read(workdir: Path) -> Pace | None:
        path = workdir / FILE
        if not path.exists():
            return None
        try:
            return Pace(**read_json(path))
        except TypeError as error:
            raise CremError(f"{path} is none that `crem ablate` wrote: {error}") from error

    def write(self, workdir: Path) -> None:
        write_json(workdir / FILE, dataclasses.asdict(self))


def step_flops(config: ConfigDict) -> float:
    """Of one training step of a config; what only a loss without weight needs is not computed."""
    checked = TrainConfig.of(config)
    objective, buckets = make_objective(checked), list(checked.data.buckets.values())
    if not objective.loss.generation:
        buckets = [dataclasses.replace(b, target_slots=0, answers=0) for b in buckets]
    if not objective.loss.retrieval:
        buckets = [bucket for bucket in buckets if bucket.target_slots]
    return model_flops(objective.model, buckets).training()


def time_setting(config: ConfigDict, scenes: int) -> Pace:
    """Trains a few steps of a config and evaluates them, twice, and discards the results.

    The first round compiles; the second uses the compiled code, as further seeds of a setting do.
    """
    rounds = []
    for seed in range(2):
        config = config.copy_and_resolve_references()
        config.seed, config.steps, config.log_every = seed, 2 * _TIMED, _TIMED
        config.eval_every = config.checkpoint_every = config.steps
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            model = train(config, folder)
            took = time.perf_counter() - started
            *_, timed = read_metrics(Path(folder) / "metrics.jsonl")
        step = sum(config.data.records.values()) / timed["samples_per_second"]
        started = time.perf_counter()
        ModelScores(model, scenes).scores(Row(""))
        rounds.append((step, time.perf_counter() - started, max(took - 2 * _TIMED * step, 0.0)))
    (_, cold_evaluation, cold_start), (step, evaluation, start) = rounds
    compiling = max(cold_evaluation - evaluation, 0.0) + max(cold_start - start, 0.0)
    return Pace(0, scenes, step, evaluation, start, compiling, step_flops(config))


def choose_steps(timed: Pace, costs: Sequence[Cost], seconds: float) -> int:
    """The steps that let these runs end in time; at least 1.

    Raises:
      CremError: not even the evaluations fit.
    """
    fixed = sum(dataclasses.replace(timed, steps=0).seconds(costs))
    each = sum(cost.flops for cost in costs) / timed.flops * timed.step_seconds
    steps = int((seconds - fixed) / each)
    if steps < 1:
        raise CremError(
            f"--minutes {seconds / 60:.0f} is too short for {len(costs)} runs: starting and "
            f"evaluating them alone takes {fixed / 60:.0f}; expected more minutes or fewer --seeds"
        )
    return steps
