"""A run as one HTML page: metrics, curves, retrieval, answers, recipe and environment."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crem_jax.ablation.runs import SUMMARY as ABLATION
from crem_jax.errors import CremError
from crem_jax.files import read_json, write_text
from crem_jax.report.comprehension import table_of_scores
from crem_jax.report.document import Figure, Section, Table, html
from crem_jax.report.mmeb import CHART
from crem_jax.report.run import draw_curves
from crem_jax.train.run.metrics import read_metrics

_MADE_WITH = "made_with"
_PICTURES = (
    ("What it finds", "retrieval.png", "Queries, and the best matches of each"),
    (
        "What it says",
        "answers.png",
        "Pictures with their truth, and the native and compressed answers",
    ),
)


def write_page(workdir: str | Path, out: str | Path) -> Path:
    """Writes the page of a run in its current state, finished or not, and returns its path.

    Raises:
      CremError: `workdir` is not a run.
    """
    workdir, out = Path(workdir), Path(out)
    recipe = _read(workdir / "recipe.json")
    metrics = read_metrics(workdir / "metrics.jsonl")
    if recipe is None and not metrics:
        raise CremError(
            f"{workdir} is no run: it has neither recipe.json nor metrics.jsonl (see `crem train`)"
        )
    with tempfile.TemporaryDirectory() as folder:
        sections = list(_sections(workdir, recipe or {}, metrics, Path(folder)))
        write_text(out, html(f"Run {workdir.resolve().name}", sections))
    return out


def _sections(
    workdir: Path, recipe: Mapping[str, Any], metrics: Sequence[Mapping], folder: Path
) -> Iterator[Section]:
    for name, command in (("summary.json", "eval"), (ABLATION, "ablate")):
        if summary := _read(workdir / name):
            yield Section("Figures", [f"Measured by crem {command}."], [_values(summary)])
    if metrics:
        draw_curves(metrics, folder / "curves.png")
        yield Section("Curves", [], [], [Figure(folder / "curves.png", "Curves")])
    for title, name, caption in _PICTURES:
        if (workdir / name).is_file():
            yield Section(title, [], [], [Figure(workdir / name, caption)])
    if scores := _read(workdir / "mmeb" / "scores.json"):
        chart = workdir / "mmeb" / CHART
        figures = [Figure(chart, "Precision@1")] if chart.is_file() else []
        tables = [_values(scores["means"]), _datasets(scores["datasets"])]
        yield Section("MMEB", ["Measured by crem eval mmeb.", *scores["warnings"]], tables, figures)
    if scores := _read(workdir / "comprehension" / "scores.json"):
        yield Section(
            "Comprehension", ["Measured by crem eval comprehension."], [table_of_scores(scores)]
        )
    if metrics:
        yield Section("Latest metrics", [], [_last(metrics)])
    starts = recipe.get(_MADE_WITH, [])
    if starts:
        rows = [[str(s.get(key, "")) for key in ("from_step", "devices", "git")] for s in starts]
        latest = starts[-1]
        yield Section(
            "Surroundings",
            [],
            [
                Table(("from step", "devices", "commit"), rows, "Starts of the run."),
                _values(latest.get("versions", {})),
                _values(latest.get("data", {})),
            ],
        )
    config = {key: value for key, value in recipe.items() if key != _MADE_WITH}
    if config:
        yield Section("Recipe", code=json.dumps(config, indent=1))


def _datasets(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """The data sets of `crem eval mmeb`."""
    keys = ("precision@1", "chance", "ties", "num_pred")
    rows = [(name, *(_shown(one[key]) for key in keys)) for name, one in found.items()]
    return Table(("data set", "Precision@1", "chance", "ties", "queries"), rows)


def _last(metrics: Sequence[Mapping[str, Any]]) -> Table:
    """The latest value of each logged metric."""
    latest: dict[str, Any] = {}
    for row in metrics:
        latest |= row
    return _values(latest)


def _values(values: Mapping[str, Any], ahead: str = "") -> Table:
    rows: list[Sequence[str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _values(value, f"{ahead}{key} / ").rows
        else:
            rows.append((f"{ahead}{key}", _shown(value)))
    return Table(("what", "value"), rows)


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None
