"""A study's table from the summaries of its runs: means over the seeds, and what they say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from crem_jax.ablation.measure import COLUMNS, HEADLINES, columns, headlines
from crem_jax.ablation.runs import Run
from crem_jax.ablation.study import Study

Cell = tuple[float, float | None]
"""Mean, and standard deviation over the seeds."""

PUBLISHED = {"mmeb": "find", "native": "native", "compressed": "compressed", "cache": "cache"}
"""The paper's figure: the one of ours that it stands beside."""


def collect(study: Study, runs: Sequence[Run]) -> dict[str, Any]:
    """Everything about a study as JSON holds it.

    Returns:
      {"study", "title", "rows"}; a row has its label, setting, series, x, k, sinks and published
      figures, "by_seed" (seed -> column -> value), and "scores" (column -> mean and spread), which
      is empty as long as no run has answered it.
    """
    summaries = {(run.setting, run.seed): run.summary().get("scores", {}) for run in runs}
    names = columns(study)
    rows = []
    for row in study.rows:
        by_seed = {
            str(seed): scores[row.score_key]
            for (setting, seed), scores in summaries.items()
            if setting == row.setting and set(names) <= set(scores.get(row.score_key, ()))
        }
        about = {name: getattr(row, name) for name in ("label", "series", "x", "k", "sinks")}
        rows.append(
            {
                **about,
                "setting": row.setting.name,
                "published": dict(row.published),
                "by_seed": by_seed,
                "scores": {c: _cell([s[c] for s in by_seed.values()]) for c in names if by_seed},
            }
        )
    return {"study": study.name, "title": study.title, "rows": rows}


def markdown(study: Study, collected: Mapping[str, Any], steps: int) -> str:
    """The table, what is best, and what it is measured on."""
    rows = collected["rows"]
    names = columns(study)
    published = [p for p in PUBLISHED if any(p in row["published"] for row in rows)]
    head = ["", *names.values(), *(f"published {p}" for p in published)]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        cells = [shown(row["scores"].get(c), c) for c in names]
        theirs = [_percent(row["published"].get(p)) for p in published]
        lines.append(_line([row["label"], *cells, *theirs]))
    most = max((len(row["by_seed"]) for row in rows), default=0)
    note = [
        f"{steps} steps, mean ± standard deviation over {most} seed{'s' * (most != 1)}; "
        "find = mean of name P@5 and scene P@1; tell = mean of VQA and caption tokens."
    ]
    if published:
        note.append("Published: the paper's own figures of Qwen2-VL-2B on MMEB and six sets, in %.")
    return (
        "\n".join([f"### {study.title}", "", *lines, "", *note, "", *verdict(study, collected)])
        + "\n"
    )


def verdict(study: Study, collected: Mapping[str, Any]) -> list[str]:
    """Sentences: what is best by each headline, what is within spread of it, the paper's order.

    Two means are within spread if they differ by no more than the root of their summed squared
    deviations. Of a single seed no spread is known, and every difference counts.
    """
    rows = [row for row in collected["rows"] if row["scores"]]
    series: dict[str, list[Mapping]] = {}
    for row in rows:
        series.setdefault(row["series"], []).append(row)
    lines, names = [], columns(study)
    for column in headlines(study):
        if study.judged == "series":
            places = _shared_places(series.values())
            means = {name: _mean_over(mine, places, column) for name, mine in series.items()}
            lines += _best(f"{names[column]}, mean over {', '.join(places)}", means)
            lines += _apart(series, places, column)
            continue
        groups = series if study.judged == "within series" else {"": rows}
        for name, mine in groups.items():
            what = names[column] + (f" ({name})" if name else "")
            lines += _best(what, {row["label"]: row["scores"][column] for row in mine})
    return lines + order(collected)


def _best(what: str, known: Mapping[str, Cell | None]) -> list[str]:
    cells = {name: cell for name, cell in known.items() if cell is not None}
    if len(cells) < 2:
        return []
    best = max(cells, key=lambda name: cells[name][0])
    near = [name for name in cells if name != best and within(cells[best], cells[name])]
    if cells[best][1] is None:
        end = "one seed, so its spread is not known"
    else:
        end = f"within spread: {', '.join(near) or 'none'}"
    return [f"- {what}: best is {best} ({shown(cells[best])}); {end}"]


def _shared_places(series: Iterable[Sequence[Mapping]]) -> list[str]:
    """The places that all series have, in the order of the first."""
    groups = [[row["x"] for row in rows] for rows in series]
    return [x for x in groups[0] if all(x in group for group in groups)] if groups else []


def _mean_over(rows: Sequence[Mapping], places: Sequence[str], column: str) -> Cell | None:
    """Of each seed the mean over the places, and of those mean and spread."""
    chosen = [row["by_seed"] for row in rows if row["x"] in places]
    seeds = set.intersection(*map(set, chosen)) if chosen else set()
    return _cell([np.mean([s[seed][column] for s in chosen]) for seed in seeds]) if seeds else None


def _apart(series: Mapping[str, Sequence[Mapping]], places: Sequence[str], column: str):
    """Of two series: how far the second is above the first at each place, over the seeds."""
    if len(series) != 2 or not places:
        return []
    first, second = ({r["x"]: r["by_seed"] for r in rows} for rows in series.values())
    parts = []
    for x in places:
        seeds = first[x].keys() & second[x].keys()
        if seeds:
            mean, spread = _cell([second[x][s][column] - first[x][s][column] for s in seeds])
            about = f" ± {100 * spread:.1f}" if spread is not None else ""
            parts.append(f"{x}: {100 * mean:+.1f}{about}")
    if not parts:
        return []
    one, other = series
    return [f"- {COLUMNS[column]}, {other} against {one}, in points: {', '.join(parts)}"]


def order(collected: Mapping[str, Any]) -> list[str]:
    """Of the pairs of rows that the paper sets apart, how many are in the same order here."""
    lines = []
    for theirs, ours in PUBLISHED.items():
        if ours not in HEADLINES:
            continue
        rows = [r for r in collected["rows"] if theirs in r["published"] and r["scores"]]
        same: list[str] = []
        apart: list[str] = []
        for a, b in itertools.combinations(rows, 2):
            published = a["published"][theirs] - b["published"][theirs]
            if not published:
                continue
            x, y = a["scores"][ours], b["scores"][ours]
            if within(x, y):
                continue
            agrees = (x[0] > y[0]) == (published > 0)
            (same if agrees else apart).append(f"{a['label']} / {b['label']}")
        total = math.comb(len(rows), 2)
        if not total:
            continue
        line = f"- the paper's order by {theirs}: {len(same)} of {total} pairs the same"
        line += f", {total - len(same) - len(apart)} within spread or equal"
        lines.append(line + (f", against it: {'; '.join(apart)}" if apart else ", none against it"))
    return lines


def within(one: Cell, other: Cell) -> bool:
    """Whether two means differ by less than their joint spread; one seed has none."""
    if one[1] is None or other[1] is None:
        return one[0] == other[0]
    return abs(one[0] - other[0]) <= math.hypot(one[1], other[1])


def shown(cell: Cell | None, column: str = "") -> str:
    """ ".453 ± .012"; a cache share in percent."""
    if cell is None:
        return "–"
    mean, spread = cell
    if column == "cache":
        return f"{100 * mean:.1f} %"
    return f"{mean:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")


def _cell(values: Sequence[float]) -> Cell:
    """Mean over the seeds and their standard deviation (n - 1); None for a single seed."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), spread


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
