"""The report of a comprehension evaluation, as Markdown and HTML."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crem_jax.files import write_text
from crem_jax.report.document import Section, Table, html, markdown

PAGES = ("report.md", "report.html")

PUBLISHED = {
    "Qwen2-VL-2B": (53.5, None),
    "Qwen2-VL-2B trained to find alone": (43.4, None),
    "CREM-2B": (53.1, 44.2),
}
"""Model -> mean over MMBench, MMVet, AI2D, HallusionBench, MMMU and MMStar (native, compressed), in
percent, from the CREM paper (arXiv 2602.19091)."""

_READING = (
    "Questions about written or drawn signs (text, charts, tables, maps, diagrams), by their "
    "categories: what a fixed number of chorus tokens keeps worst."
)
_JUDGED = (
    "has no score here: it takes a judge model, or its answers are hidden. Its predictions are "
    "written"
)


def write_report(out: str | os.PathLike, result: Mapping[str, Any]) -> list[Path]:
    """Writes both pages and returns their paths.

    Args:
      result: what `evaluate.comprehension.evaluate.evaluate` returns.
    """
    out, title = Path(out), f"{result['model']} on comprehension"
    parts = ("overall", "aAcc", "fAcc", "qAcc", "with options", "questions", "unclear answers")
    about = [(key, str(v)) for key, v in result.items() if key != "benchmarks"]
    sections = [
        Section("Scores", _notes(result), [table_of_scores(result), _published()]),
        Section("What has to be read", [_READING], [_reading(result)]),
    ]
    for name, one in result["benchmarks"].items():
        if not any(one["scores"].values()):
            sections.append(Section(name, [f"{name} {_JUDGED}."]))
            continue
        rows = [(part, *_row(one, part)) for part in parts if _has(one, part)]
        for column in ("l2-category", "category"):
            groups = {group: None for s in one["scores"].values() for group in s[column]}
            rows += [(f"{column}: {group}", *_row(one, group, column)) for group in groups]
        sections.append(Section(name, [], [Table(("part", *one["scores"]), rows)]))
    sections.append(Section("Conditions", [], [Table(("what", "value"), about)]))
    write_text(out / PAGES[0], markdown(title, sections, out))
    write_text(out / PAGES[1], html(title, sections))
    return [out / page for page in PAGES]


def table_of_scores(result: Mapping[str, Any]) -> Table:
    """Scores by benchmark and mode, and their means."""
    modes, found = result["modes"], result["benchmarks"]
    rows = [(name, *_row(one, "overall")) for name, one in found.items()]
    scored = [_overall(one) for one in found.values() if None not in _overall(one)]
    if len(scored) > 1:
        means = (sum(own) / len(own) for own in zip(*scored, strict=True))
        rows.append((f"mean of {len(scored)}", *map(_percent, means)))
    return Table(("benchmark", *modes), rows, "In percent.")


def _overall(one: Mapping[str, Any]) -> list[float | None]:
    """Overall scores by mode; None where there is none."""
    return [scores and scores["overall"] for scores in one["scores"].values()]


def _published() -> Table:
    rows = [(f"{name} (published)", *map(_number, pair)) for name, pair in PUBLISHED.items()]
    caption = "Means over six benchmarks, MMVet by a judge model among them; not measured here."
    return Table(("model", "native", "compressed"), rows, caption)


def _reading(result: Mapping[str, Any]) -> Table:
    columns = [f"{mode}, {what}" for mode in result["modes"] for what in ("reading", "the rest")]
    rows = []
    for name, one in result["benchmarks"].items():
        if any(one["scores"].values()):
            pairs = [(s["reading"], s["not reading"]) for s in one["scores"].values()]
            rows.append((name, *(_percent(share) for pair in pairs for share in pair)))
    return Table(("benchmark", *columns), rows, "In percent.")


def _notes(result: Mapping[str, Any]) -> list[str]:
    found = result["benchmarks"].items()
    judged = [name for name, one in found if not any(one["scores"].values())]
    notes = [f"{', '.join(judged)} {_JUDGED}."] if judged else []
    if result["limit"]:
        notes.append(
            f"Only the first {result['limit']} questions of each table were asked: not to be "
            "compared with published figures."
        )
    return notes


def _has(one: Mapping[str, Any], part: str) -> bool:
    return all(part in scores for scores in one["scores"].values())


def _row(one: Mapping[str, Any], part: str, column: str = "") -> list[str]:
    cells = []
    for scores in one["scores"].values():
        value = None if scores is None else (scores[column] if column else scores).get(part)
        cells.append(str(value) if isinstance(value, int) else _percent(value))
    return cells


def _percent(share: float | None) -> str:
    return _number(None if share is None else 100 * share)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
