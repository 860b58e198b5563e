"""Figures of a run as PNG files: training curves, retrieval results, and answers.

matplotlib is imported on first use, so that importing crem_jax stays quick; pyplot and its global
state are not used.
"""

from __future__ import annotations

import io
import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from crem_jax.data.images.decode import open_picture
from crem_jax.data.records import Picture
from crem_jax.errors import CremError
from crem_jax.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Hit = tuple[Picture | str, str, bool | None]
"""(content, label, whether it is right or None if unknown); a str is text, a Path is a picture."""

_RIGHT, _WRONG, INK, FAINT = "#1a7f37", "#c62828", "#222222", "#8c8c8c"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f5fc4", "#555555")
_PANELS = {  # title -> pattern of its metrics; a metric belongs to the first panel that matches
    "evaluation": re.compile(r"^eval/"),
    "learning rate": re.compile(r"(^|/)(lr|learning_rate)$"),
    "loss": re.compile(r"loss"),
    "in-batch P@1": re.compile(r"(^|[/_])p@?1$"),
    "gradient norm": re.compile(r"^grad_norm$"),
    "samples a second": re.compile(r"^samples_per_second$"),
    "waiting, waste, utilisation": re.compile(r"^(data_wait|data_waste(_patches)?|utilisation)$"),
}
_ORDER = (
    *("loss", "in-batch P@1", "evaluation", "learning rate", "gradient norm"),
    *("samples a second", "waiting, waste, utilisation"),
)
_SHARES = ("in-batch P@1", "evaluation", "waiting, waste, utilisation")
_THUMBNAIL = 320  # pixels; more would not be seen


def training_curves(metrics: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Draws logged metrics against the step, one panel per kind of metric.

    Args:
      metrics: one mapping per logged step, with "step" and any of: names containing "loss"; names
        ending in "p1" or "p@1" (in-batch precision); "lr" or "learning_rate"; names starting with
        "eval/"; the gradient norm and the measures of speed, waste and waiting. Other names and
        values that are not finite numbers are left out; of two rows of the same step the later one
        counts, as after a resumed run.
      path: the PNG file to write.

    Raises:
      CremError: there is nothing to draw.
    """
    panels = _curves(metrics)
    if not panels:
        raise CremError(
            f"no curve to draw in {len(metrics)} rows of metrics; expected 'step' and numbers "
            "named *loss*, *p1, lr or eval/*"
        )
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(5.6 * columns, 3.4 * rows, dpi=120)
    for index, (title, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        for order, (name, points) in enumerate(sorted(curves.items())):
            smooth = title != "learning rate" and len(points) >= 60
            _draw_curve(axes, name, points, COLOURS[order % len(COLOURS)], smooth)
        axes.set_title(title, loc="left", fontsize=11, color=INK)
        axes.set_xlabel("step", fontsize=9, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        if title in _SHARES and axes.get_ylim()[1] <= 1.1:
            axes.set_ylim(0, 1.02)
        if len(curves) > 1 or title == "evaluation":
            axes.legend(fontsize=8, frameon=False, ncols=2 if len(curves) > 4 else 1)
    save_figure(figure, path)


def retrieval_grid(
    rows: Sequence[tuple[str | Picture, Sequence[Hit]]], path: str | os.PathLike, *, top: int = 5
) -> None:
    """Draws one line per query: the query, then its first `top` hits, best first.

    Hits known to be right have a green frame, wrong ones a red one.

    Args:
      rows: (query, hits); a str is text, a Path is a picture file.
      path: the PNG file to write.
      top: number of hits to show.

    Raises:
      CremError: no rows.
    """
    if not rows:
        raise CremError("no query to draw in the retrieval grid; expected at least one")
    columns = 1 + max(1, min(top, max(len(hits) for _, hits in rows)))
    figure = new_figure(1.75 * columns, 2.0 * len(rows) + 0.3, dpi=110)
    cells = figure.subplots(len(rows), columns, squeeze=False)
    for line, (query, hits) in zip(cells, rows, strict=True):
        _draw_cell(line[0], query, "", None, weight="bold")
        for cell, hit in zip(line[1:], hits, strict=False):
            _draw_cell(cell, *hit)
        for cell in line[1 + len(hits) :]:
            cell.axis("off")
    titles = ["query", *(f"{rank}." for rank in range(1, columns))]
    for cell, title in zip(cells[0], titles, strict=True):
        cell.set_title(title, fontsize=9, color=FAINT)
    save_figure(figure, path)


def answers_sheet(
    rows: Sequence[tuple[Picture, str, str, str]], path: str | os.PathLike, *, columns: int = 2
) -> None:
    """Draws pictures, each with the truth and the native and the compressed answer.

    An answer equal to the truth up to case and white space is green with a tick; any other is red
    with a cross.

    Args:
      rows: (picture, truth, native answer, compressed answer).
      path: the PNG file to write.
      columns: number of pictures side by side.

    Raises:
      CremError: no rows.
    """
    if not rows:
        raise CremError("no answer to draw in the answers sheet; expected at least one")
    columns = min(columns, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = new_figure(5.4 * columns, 1.85 * lines, dpi=110)
    cells = figure.subplots(lines, 2 * columns, squeeze=False, width_ratios=[1, 2] * columns)
    for cell in cells.flat:
        cell.axis("off")
    for index, (picture, truth, native, compressed) in enumerate(rows):
        line, column = divmod(index, columns)
        image, text = cells[line, 2 * column : 2 * column + 2]
        image.imshow(thumbnail(picture), interpolation="bicubic")
        _draw_answer(text, 0.98, "truth", truth, INK, "")
        for top, name, answer in ((0.65, "native", native), (0.32, "compressed", compressed)):
            right = _same(answer, truth)
            colour, mark = (_RIGHT, " ✓") if right else (_WRONG, " ✗")
            _draw_answer(text, top, name, answer, colour, mark)
    save_figure(figure, path)


def _curves(
    metrics: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, dict[float, float]]]:
    """{panel title: {curve name: {step: value}}}, panels in the order they are drawn."""
    panels: dict[str, dict[str, dict[float, float]]] = {title: {} for title in _ORDER}
    for row in metrics:
        step = _number(row.get("step"))
        if step is None:
            continue
        for name, raw in row.items():
            value = _number(raw)
            title = next((t for t, pattern in _PANELS.items() if pattern.search(name)), None)
            if value is not None and title is not None:
                curve = panels[title].setdefault(name.removeprefix("eval/"), {})
                curve[step] = value
    return {title: curves for title, curves in panels.items() if curves}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(value) else None


def _draw_curve(
    axes: Axes, name: str, points: Mapping[float, float], colour: str, smooth: bool
) -> None:
    """Draws a curve; with `smooth` faintly, with its running mean on top."""
    steps = np.array(sorted(points))
    values = np.array([points[step] for step in steps])
    if not smooth:
        marker = "o" if len(steps) < 60 else ""
        axes.plot(steps, values, color=colour, label=name, marker=marker, markersize=3)
        return
    width = max(3, len(steps) // 40) | 1
    padded = np.pad(values, width // 2, mode="edge")
    means = np.convolve(padded, np.ones(width) / width, mode="valid")
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
    axes.plot(steps, means, color=colour, label=name, linewidth=1.5)


def _draw_cell(
    axes: Axes, content: str | Picture, label: str, right: bool | None, weight: str = "normal"
) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    if isinstance(content, str):
        text = _wrapped(content, 17, 6)
        axes.text(
            0.5,
            0.5,
            text,
            ha="center",
            va="center",
            transform=axes.transAxes,
            fontsize=9,
            color=INK,
            weight=weight,
            parse_math=False,
        )
        axes.set_box_aspect(1)
    else:
        image = thumbnail(content)
        side = max(image.size)
        axes.imshow(image, interpolation="bicubic")
        # Every cell is square, with the picture in its middle.
        axes.set_xlim((image.width - side) / 2 - 0.5, (image.width + side) / 2 - 0.5)
        axes.set_ylim((image.height + side) / 2 - 0.5, (image.height - side) / 2 - 0.5)
    colour = {None: "#d8d8d8", True: _RIGHT, False: _WRONG}[right]
    axes.spines[:].set(color=colour, linewidth=0.8 if right is None else 2.2)
    ink = INK if right is None else colour
    axes.set_xlabel(_wrapped(label, 24, 2), fontsize=8, parse_math=False, color=ink)


def _draw_answer(axes: Axes, top: float, name: str, text: str, colour: str, mark: str) -> None:
    shown = _wrapped(text.strip() or "(nothing)", 48, 2) + mark
    at = axes.transAxes
    for y, line, size, ink in ((top, name, 7, FAINT), (top - 0.1, shown, 9, colour)):
        axes.text(0, y, line, fontsize=size, color=ink, transform=at, va="top", parse_math=False)


def _same(answer: str, truth: str) -> bool:
    return answer.casefold().split() == truth.casefold().split()


def _wrapped(text: str, width: int, lines: int) -> str:
    return textwrap.fill(text, width, max_lines=lines, placeholder=" …")


def thumbnail(picture: Picture) -> Image.Image:
    """A small copy of a picture."""
    image = open_picture(picture)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BICUBIC)
    return image


def new_figure(width: float, height: float, dpi: int) -> Figure:
    """An empty white figure.

    Args:
      width, height: in inches. dpi: pixels per inch.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png")
    write_bytes(Path(path), out.getvalue())
