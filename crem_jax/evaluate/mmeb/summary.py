"""Summarises MMEB results: a score for each data set, their means, and warnings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from crem_jax.evaluate.mmeb.cases import Cases
from crem_jax.evaluate.mmeb.datasets import DATASETS, TASKS, Dataset
from crem_jax.evaluate.mmeb.scoring import Ranked, measures

HEADLINE = "precision@1"
MEANS = ("overall", *TASKS, "IND", "OOD")
_DOUBT = 3.0  # standard errors above chance


@dataclasses.dataclass(frozen=True)
class Score:
    """A data set's result.

    Attributes:
      measures: see `scoring.measures`. queries: number of ranked queries.
      rows: number of rows in the file.
      ties: number of queries whose target ties with another candidate, which counts as a miss.
      chance: Precision@1 of random embeddings. left_out: reason -> number of unusable rows.
    """

    dataset: Dataset
    measures: Mapping[str, float]
    queries: int
    rows: int
    ties: int
    chance: float
    left_out: Mapping[str, int]

    @property
    def precision(self) -> float:
        return self.measures[HEADLINE]

    @property
    def near_chance(self) -> bool:
        """Whether Precision@1 is within three standard errors of chance, or below."""
        spread = math.sqrt(self.chance * (1 - self.chance) / self.queries)
        return self.precision <= self.chance + _DOUBT * spread


def score(cases: Cases, ranked: Ranked) -> Score:
    return Score(
        dataset=cases.dataset,
        measures=measures(ranked.rank),
        queries=len(ranked.rank),
        rows=cases.rows,
        ties=int(np.sum(ranked.ties > 0)),
        chance=float(np.mean(1 / ranked.distinct)),
        left_out=cases.left_out,
    )


def means(scores: Sequence[Score]) -> dict[str, float | None]:
    """Mean Precision@1: over all data sets, by meta-task, and in and out of distribution.

    A mean over no data set is None.
    """

    def mean(chosen: Iterable[Score]) -> float | None:
        precisions = [score.precision for score in chosen]
        return float(np.mean(precisions)) if precisions else None

    return {
        "overall": mean(scores),
        **{task: mean(s for s in scores if s.dataset.task == task) for task in TASKS},
        "IND": mean(s for s in scores if s.dataset.in_distribution),
        "OOD": mean(s for s in scores if not s.dataset.in_distribution),
    }


def warnings(scores: Sequence[Score], limit: int | None = None) -> list[str]:
    """Caveats for readers of the scores.

    Args:
      limit: number of rows that were read of each data set; None is all.
    """
    out = []
    if limit:
        out.append(
            f"only the first {limit} rows of each data set: not to be compared with published "
            "figures"
        )
    if len(scores) < len(DATASETS):
        out.append(
            f"{len(scores)} of MMEB's {len(DATASETS)} data sets: these means are of those alone, "
            "and not to be compared with means over all"
        )
    near = [f"{s.dataset.name} {s.precision:.3f} ({s.chance:.3f})" for s in scores if s.near_chance]
    if near:
        out.append(f"Precision@1 (chance) is near chance in {len(near)}: {', '.join(near)}")
    tied = [f"{s.dataset.name} {s.ties} of {s.queries}" for s in scores if s.ties]
    if tied:
        out.append(f"targets tie with another candidate, which is a miss: {', '.join(tied)}")
    for one in scores:
        for reason, count in one.left_out.items():
            out.append(f"{one.dataset.name}: left out {count}, {reason}")
    return out


def from_json(found: Mapping[str, Any]) -> list[Score]:
    """Inverse of `to_json`: the scores."""
    known = {dataset.name: dataset for dataset in DATASETS}
    scores = []
    for name, one in found["datasets"].items():
        scores.append(
            Score(
                dataset=known[name],
                measures={key: value for key, value in one.items() if "@" in key},
                queries=one["num_pred"],
                rows=one["num_data"],
                ties=one["ties"],
                chance=one["chance"],
                left_out=one["left_out"],
            )
        )
    return scores


def to_json(scores: Sequence[Score], about: Mapping[str, Any]) -> dict[str, Any]:
    """The scores, their means and warnings, and the conditions, as one JSON object."""
    return {
        **about,
        "datasets_evaluated": len(scores),
        "means": means(scores),
        "datasets": {
            one.dataset.name: {
                "task": one.dataset.task,
                "distribution": "IND" if one.dataset.in_distribution else "OOD",
                **one.measures,
                "num_pred": one.queries,
                "num_data": one.rows,
                "ties": one.ties,
                "chance": one.chance,
                "left_out": dict(one.left_out),
            }
            for one in scores
        },
        "warnings": warnings(scores, about["limit"]),
    }
