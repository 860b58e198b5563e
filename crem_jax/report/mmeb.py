"""The report of an MMEB evaluation: Markdown, HTML, and a chart."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crem_jax.evaluate.mmeb.datasets import DATASETS, TASKS
from crem_jax.evaluate.mmeb.published import PUBLISHED
from crem_jax.evaluate.mmeb.summary import MEANS, Score, means, warnings
from crem_jax.files import write_text
from crem_jax.report.document import Figure, Section, Table, html, markdown
from crem_jax.report.figures import COLOURS, INK, new_figure, save_figure

CHART, PAGES = "mmeb.png", ("report.md", "report.html")
_AT = ("precision@1", "hit@5", "hit@10", "ndcg_linear@5", "ndcg_linear@10", "mrr@10")


def write_report(
    out: str | os.PathLike, name: str, scores: Sequence[Score], about: Mapping[str, Any]
) -> list[Path]:
    """Writes the chart and both pages, and returns their paths.

    Args:
      name: the model's name. about: further conditions of the evaluation, by name.
    """
    out = Path(out)
    chart(scores, out / CHART)
    title = f"{name} on MMEB"
    doubts = warnings(scores, about["limit"])
    sections = [
        Section("Means", [_ABOUT], [table_of_means(name, scores, about["limit"])]),
        Section("Data sets", [], [_table(scores)], [Figure(out / CHART, "Precision@1")]),
        Section("Warnings", doubts or ["none"]),
        Section(
            "Conditions", [], [Table(("what", "value"), [(k, str(v)) for k, v in about.items()])]
        ),
    ]
    write_text(out / PAGES[0], markdown(title, sections, out))
    write_text(out / PAGES[1], html(title, sections))
    return [out / CHART, *(out / page for page in PAGES)]


_ABOUT = (
    "Mean Precision@1 over data sets, in percent. A query is right only if its target scores "
    "higher than every other candidate of its row: a tie is a miss. Rows marked as published are "
    "figures from the CREM paper (arXiv 2602.19091, Table 1), not measured here."
)


def table_of_means(name: str, scores: Sequence[Score], limit: int | None = None) -> Table:
    """The measured means above published ones.

    Args:
      limit: number of rows that were read of each data set; None is all.
    """
    measured, part = means(scores), []
    if len(scores) < len(DATASETS):
        part.append(f"{len(scores)} of {len(DATASETS)} data sets")
    if limit:
        part.append(f"first {limit} rows")
    label = f"{name} ({', '.join(part)})" if part else name
    rows = [(label, *(_percent(measured[key]) for key in MEANS))]
    for model, figures in PUBLISHED.items():
        cells = (f"{figures[key]:.1f}" if key in figures else "–" for key in MEANS)
        rows.append((f"{model} (published)", *cells))
    return Table(("model", *MEANS), rows)


def chart(scores: Sequence[Score], path: Path) -> None:
    """Draws the Precision@1 of each data set as a bar, with its chance level."""
    figure = new_figure(8, 1.2 + 0.24 * len(scores), dpi=120)
    axes = figure.add_subplot()
    places = range(len(scores))
    colours = dict(zip(TASKS, COLOURS, strict=False))
    for task in TASKS:
        own = [i for i in places if scores[i].dataset.task == task]
        if own:
            values = [100 * scores[i].precision for i in own]
            axes.barh(own, values, color=colours[task], label=task)
    chances = [100 * one.chance for one in scores]
    axes.scatter(chances, list(places), marker="|", s=60, color=INK, label="chance", zorder=3)
    labels = [f"{s.dataset.name}{'' if s.dataset.in_distribution else ' (OOD)'}" for s in scores]
    axes.set_yticks(list(places), labels, fontsize=8)
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("Precision@1, %", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=5, loc="lower left", bbox_to_anchor=(0, 1))
    save_figure(figure, path)


def _table(scores: Sequence[Score]) -> Table:
    columns = ("data set", "task", "", *(at.replace("ndcg_linear", "ndcg") for at in _AT))
    rows = [
        (
            one.dataset.name,
            one.dataset.task,
            "IND" if one.dataset.in_distribution else "OOD",
            *(_percent(one.measures[at]) for at in _AT),
            _percent(one.chance),
            str(one.ties),
            str(one.queries),
        )
        for one in scores
    ]
    caption = "In percent; chance is the Precision@1 of random embeddings."
    return Table((*columns, "chance", "ties", "queries"), rows, caption)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
