"""Writes results in the layouts of VLM2Vec's evaluation, for the leaderboard and other tools.

OUT/v1/NAME_score.json                 {"acc", "num_correct", "num_pred"}
OUT/v2/image/NAME_score.json           all measures at 1, 5 and 10
OUT/v2/image/NAME_pred.jsonl           the ten best candidates and the target of each query
OUT/leaderboard.json                   {"metadata": …, "metrics": {"image": {NAME: measures}}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crem_jax.evaluate.mmeb.cases import Cases
from crem_jax.evaluate.mmeb.scoring import Ranked
from crem_jax.evaluate.mmeb.summary import Score
from crem_jax.files import write_json, write_lines


def write_score(out: Path, score: Score, cases: Cases, ranked: Ranked) -> None:
    """Writes one data set's files of both layouts."""
    name, correct = score.dataset.name, int((ranked.rank == 0).sum())
    first = {"acc": correct / score.queries, "num_correct": correct, "num_pred": score.queries}
    write_json(out / "v1" / f"{name}_score.json", first)
    write_json(out / "v2" / "image" / f"{name}_score.json", second_layout(score))
    lines = [
        {
            "prediction": [cases.names[i] for i in best],
            "label": cases.names[row[0]],
            "rel_scores": None,
        }
        for best, row in zip(ranked.best, cases.candidates, strict=True)
    ]
    write_lines(out / "v2" / "image" / f"{name}_pred.jsonl", lines)


def write_leaderboard(out: Path, scores: Sequence[Score], metadata: Mapping[str, Any]) -> None:
    """Writes leaderboard.json."""
    metrics = {one.dataset.name: second_layout(one) for one in scores}
    write_json(
        out / "leaderboard.json", {"metadata": dict(metadata), "metrics": {"image": metrics}}
    )


def second_layout(score: Score) -> dict[str, float]:
    """The measures of the v2 layout."""
    return {**score.measures, "num_pred": score.queries, "num_data": score.rows}
