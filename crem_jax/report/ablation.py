"""Draws an ablation's table: the headline metrics of all settings, with their spread."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crem_jax.ablation.measure import columns, headlines
from crem_jax.ablation.study import Row, Study
from crem_jax.ablation.table import PUBLISHED
from crem_jax.errors import CremError
from crem_jax.report.figures import COLOURS, FAINT, INK, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Scored = tuple[Row, Mapping[str, tuple[float, float | None]]]
"""A row and its columns: (mean, standard deviation)."""

_PUBLISHED_NAMES = {column: published for published, column in PUBLISHED.items()}


def draw(study: Study, collected: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Draws one panel per headline metric; rows without scores are left out.

    Rows with an `x` are points on the curve of their series, all others are bars. The paper's
    results, of another model and other data, are hollow diamonds on the same axis, divided by 100.

    Raises:
      CremError: no row has scores yet.
    """
    pairs = zip(study.rows, collected["rows"], strict=True)
    known = [(row, line["scores"]) for row, line in pairs if line["scores"]]
    if not known:
        raise CremError(f"study {study.name} has no finished run to draw")
    places = list(dict.fromkeys(row.x or row.label for row in study.rows))
    width = max(3.4, 0.5 * len(places))
    shown, names = headlines(study), columns(study)
    figure = new_figure(len(shown) * width, 4.0, dpi=120)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, shown, strict=True):
        _draw_panel(axes, column, known, places)
        _draw_published(axes, column, study, places)
        axes.set_title(names[column], loc="left", fontsize=11, color=INK)
        turned = {"rotation": 35, "ha": "right"} if max(map(len, places)) > 4 else {}
        axes.set_xticks(range(len(places)), places, fontsize=8, **turned)
        axes.set_ylim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", labelsize=8)
        axes.grid(axis="y", alpha=0.25)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False
        )
    figure.suptitle(study.title, x=0.01, ha="left", fontsize=12, color=INK)
    save_figure(figure, path)


def _draw_panel(axes: Axes, column: str, known: Sequence[Scored], places: Sequence[str]) -> None:
    """Draws one metric: a bar per row, or a curve per series if rows have an `x`."""
    curves = any(row.x for row, _ in known)
    series = list(dict.fromkeys(row.series for row, _ in known))
    for number, name in enumerate(series):
        mine = [(row, *scores[column]) for row, scores in known if row.series == name]
        x = np.array([places.index(row.x or row.label) for row, _, _ in mine])
        means = np.array([mean for _, mean, _ in mine])
        spread = np.array([deviation or 0.0 for _, _, deviation in mine])
        if not curves:
            axes.bar(x, means, 0.7, color=COLOURS[0], alpha=0.8)
            axes.errorbar(x, means, spread, color=INK, fmt="none", capsize=3)
            continue
        x = x + 0.06 * (number - (len(series) - 1) / 2)  # so that error bars do not hide each other
        axes.errorbar(
            x,
            means,
            spread,
            color=COLOURS[number % len(COLOURS)],
            marker="o",
            markersize=4,
            capsize=2,
            label=name or None,
        )


def _draw_published(axes: Axes, column: str, study: Study, places: Sequence[str]) -> None:
    published = _PUBLISHED_NAMES.get(column)
    if published is None:
        return
    points = [
        (places.index(row.x or row.label), row.published[published] / 100)
        for row in study.rows
        if published in row.published
    ]
    if points:
        x, y = zip(*points, strict=True)
        axes.scatter(
            x, y, 30, label="published (2B)", marker="D", facecolors="none", edgecolors=FAINT
        )
