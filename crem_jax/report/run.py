"""The figures of a run: training curves, and retrieval and answers in its world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crem_jax.report import emoji
from crem_jax.report.figures import training_curves
from crem_jax.train.run.metrics import read_metrics

if TYPE_CHECKING:
    from crem_jax.inference.model import Model

SHOWS = {"emoji": emoji.show}
"""World (`config.evaluate`) -> function that draws its figures into a run directory."""

_LOSSES = {
    "retrieval": "retrieval loss",
    "generation_native": "generation loss, native",
    "generation_compressed": "generation loss, compressed",
}


def write_report(workdir: str | Path, model: Model, world: str = "") -> list[Path]:
    """Draws all figures of a run, and returns the files and folders written.

    Args:
      workdir: the run directory. model: its model.
      world: a key of SHOWS; any other value draws the curves only.
    """
    workdir, written = Path(workdir), []
    metrics = read_metrics(workdir / "metrics.jsonl")
    if metrics:
        draw_curves(metrics, workdir / "curves.png")
        written.append(workdir / "curves.png")
    return written + (SHOWS[world](workdir, model) if world in SHOWS else [])


def draw_curves(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws a run's metrics with `training_curves`, under readable names of the losses."""
    rows = [{_LOSSES.get(key, key): value for key, value in row.items()} for row in metrics]
    training_curves(rows, path)
