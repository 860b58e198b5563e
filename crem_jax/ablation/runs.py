"""The runs of a study, WORKDIR/SETTING/SEED: trained and evaluated until ablation.json is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from crem_jax.ablation.measure import ModelScores
from crem_jax.ablation.study import Row, Setting, Study
from crem_jax.configs.schema import TrainConfig
from crem_jax.files import read_json, write_json
from crem_jax.inference.model import load
from crem_jax.train.loop import train
from crem_jax.train.run import recipe

SUMMARY = "ablation.json"
"""In a run's directory; `crem eval` writes its summary.json beside it."""
_SAVES = 5  # checkpoints in a run: what a kill can lose is a fifth of it


@dataclasses.dataclass(frozen=True)
class Run:
    """One setting with one seed."""

    setting: Setting
    seed: int
    directory: Path

    @property
    def name(self) -> str:
        return f"{self.setting.name}/{self.seed}"

    def summary(self) -> dict:
        """What is known of it: {} before it is trained."""
        try:
            return read_json(self.directory / SUMMARY)
        except FileNotFoundError:
            return {}

    def missing(self, study: Study) -> tuple[Row, ...]:
        """Rows of the study that it has no scores for yet."""
        known = self.summary().get("scores", {})
        rows = {row.score_key: row for row in study.rows_of(self.setting)}
        wanted = [row for row in rows.values() if row.score_key not in known]
        if study.signs:
            wanted = [r for r in rows.values() if "sign_native" not in known.get(r.score_key, {})]
        return tuple(wanted)


ConfigOf = Callable[[Setting], ConfigDict]
"""The user's config for a setting."""


def runs_of(studies: Iterable[Study], workdir: Path, seeds: int) -> list[Run]:
    """Every run once; the first seed of all settings comes before the second."""
    settings = dict.fromkeys(s for study in studies for s in study.settings)
    return [
        Run(setting, seed, workdir / setting.name / str(seed))
        for seed in range(seeds)
        for setting in settings
    ]


def pending(runs: Sequence[Run], studies: Sequence[Study]) -> list[Run]:
    """The runs that some study still wants something of."""
    return [run for run in runs if any(run.missing(study) for study in studies)]


def config_of_run(run: Run, config_of: ConfigOf, steps: int) -> ConfigDict:
    """What the run trains. There is nothing to choose a checkpoint by: the last one counts."""
    config = config_of(run.setting)
    config.seed, config.steps, config.best_metric = run.seed, steps, ""
    config.eval_every = steps
    config.checkpoint_every = max(1, -(-steps // _SAVES))
    return config


def check(runs: Iterable[Run], config_of: ConfigOf, steps: int) -> None:
    """Raises CremError if a run that is there was begun with another config."""
    for run in runs:
        wanted = TrainConfig.of(config_of_run(run, config_of, steps))
        recipe.refuse_another(run.directory, wanted.to_dict())


def finish(
    runs: Iterable[Run], studies: Sequence[Study], config_of: ConfigOf, steps: int, scenes: int
) -> Iterator[Run]:
    """Trains and asks what is missing; yields a run when its summary is written.

    A run that was cut off goes on from its last checkpoint.

    Args:
      steps: of every run. scenes: held-out scenes that it is shown.
    """
    for run in runs:
        rows = [(row, study.signs) for study in studies for row in run.missing(study)]
        if not rows:
            continue
        summary = run.summary()
        if summary:
            model = load(run.directory, "last")
        else:
            model = train(config_of_run(run, config_of, steps), run.directory)
        scorer, scores = ModelScores(model, scenes), summary.get("scores", {})
        for row, signs in rows:
            scores[row.score_key] = scores.get(row.score_key, {}) | scorer.scores(row, signs)
        setting = dataclasses.asdict(run.setting)
        about = {"setting": setting, "seed": run.seed, "steps": steps, "scenes": scenes}
        write_json(run.directory / SUMMARY, {**about, "scores": scores})
        yield run
