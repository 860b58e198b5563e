"""The report of `crem doctor`: index, lists of faults, and histograms of texts and pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crem_jax.data.sources.selected import write_index
from crem_jax.data.tools.doctor import Diagnosis, visual_tokens
from crem_jax.files import write_json, write_lines
from crem_jax.report.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _FAINT, _FILL = "#222222", "#8c8c8c", "#0072b2"
FILES = ("index.json", "quarantine.jsonl", "warnings.jsonl", "histograms.png", "report.json")
_SIDES = ("query", "longest candidate", "conversation")


def histograms(tokens: np.ndarray, sizes: np.ndarray, path: str | os.PathLike) -> None:
    """Draws histograms of text tokens, and of the pictures' megapixels, aspect and visual tokens.

    Args:
      tokens: int64 [m, 3], tokens of each record's query, longest candidate and conversation.
      sizes: int64 [p, 2], (width, height) of the pictures. path: the PNG file to write.
    """
    figure = new_figure(11, 6, 110)
    axes = figure.subplots(2, 3)
    for column, side in enumerate(_SIDES):
        _histogram(axes[0, column], tokens[tokens[:, column] > 0, column], f"text tokens, {side}")
    width, height = sizes[:, 0].astype(float), sizes[:, 1].astype(float)
    _histogram(axes[1, 0], width * height / 1e6, "megapixels of a picture", log=True)
    _histogram(axes[1, 1], width / np.maximum(height, 1), "width / height", log=True)
    visual = np.asarray([visual_tokens(*size) for size in sizes.tolist()], np.int64)
    _histogram(axes[1, 2], visual, "visual tokens (28 px each, 4 to 1280)")
    save_figure(figure, path)


def percentiles(values: np.ndarray, at: Sequence[int] = (50, 90, 99, 100)) -> dict[str, float]:
    """Percentiles by name, {"p50": …, …}; empty if there are no values."""
    if not len(values):
        return {}
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in at}


def _histogram(axes: Axes, values: np.ndarray, title: str, log: bool = False) -> None:
    axes.set_title(title, fontsize=10, color=_INK, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=_INK)
    if not len(values):
        axes.text(0.5, 0.5, "none", ha="center", color=_FAINT, transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    low, high = float(values.min()), float(values.max())
    if log and low < high:
        axes.set_xscale("log")
        bins = np.geomspace(low, high, 40)
    else:
        bins = np.linspace(low, max(high, low + 1), 40)
    axes.hist(values, bins=bins.tolist(), color=_FILL)
    for share, style in ((50, "-"), (99, ":")):
        axes.axvline(np.percentile(values, share), color=_INK, linewidth=1, linestyle=style)
    median, most = np.percentile(values, [50, 99])
    axes.set_xlabel(f"median {median:.3g}, 99 %: {most:.3g}, max {high:.3g}", fontsize=8)


def write_findings(
    diagnosis: Diagnosis, source: str, left_out: dict[str, int], out: Path
) -> dict[str, Any]:
    """Writes the index, the lists, the histograms and the report, and returns the report.

    Args:
      source: description of the source. left_out: reason -> number of rows it leaves out itself.
      out: the folder to write to.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_index(out / "index.json", diagnosis.good)
    for name in ("quarantine", "warnings"):
        write_lines(out / f"{name}.jsonl", getattr(diagnosis, name))
    histograms(diagnosis.tokens, diagnosis.sizes, out / "histograms.png")
    width, height = diagnosis.sizes[:, 0], diagnosis.sizes[:, 1]
    report = {
        "source": source,
        "records": len(diagnosis.good),
        "good": int(diagnosis.good.sum()),
        "faults": diagnosis.counts,
        "left_out": left_out,
        "text_tokens": {
            side: percentiles(diagnosis.tokens[diagnosis.tokens[:, i] > 0, i])
            for i, side in enumerate(_SIDES)
        },
        "pictures": len(diagnosis.sizes),
        "megapixels": percentiles(width * height / 1e6),
        "files": [str(out / name) for name in FILES],
    }
    write_json(out / "report.json", report)
    return report
