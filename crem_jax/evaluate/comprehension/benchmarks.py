"""How each benchmark asks, and how its answers are scored."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from crem_jax.data.records import RecordError
from crem_jax.evaluate.comprehension.matching import option_of, yes_or_no
from crem_jax.evaluate.comprehension.tables import Question

CHOICE, CIRCULAR, MMMU, YES_NO, JUDGED = KINDS = (
    *("choice", "circular", "mmmu", "yes_no", "judged"),
)
"""Options; options in every rotation; options or open; yes or no; free text for a judge model."""

_NAMES = {"mmbench": CIRCULAR, "ccbench": CIRCULAR, "mmmu": MMMU, "hallusion": YES_NO}
_ROTATION = 1_000_000  # an index modulo this is that of the unrotated row, without "g_index"
_OTHER = "Other Answers"
_READING = {
    *("ocr", "text", "imagetext", "document", "documents", "chart", "charts"),
    *("table", "tables", "diagram", "diagrams", "map", "maps"),
}


def kind_of(name: str, questions: Sequence[Question]) -> str:
    """One of KINDS, by the name of the file and whether it has options and answers."""
    known = next((kind for start, kind in _NAMES.items() if name.lower().startswith(start)), None)
    if not any(question.answer for question in questions):
        return JUDGED
    if known or not any(question.options for question in questions):
        return known or JUDGED
    return CHOICE


def check(questions: Sequence[Question], kind: str) -> None:
    """Raises RecordError, which names the index, for a row that cannot be scored."""
    if kind == JUDGED:
        return
    for question in questions:
        where, answer = f"index {question.index!r}", question.answer
        if not answer.strip():
            raise RecordError(f"{where} has no answer, and other rows have")
        if kind == YES_NO:
            _parts(question)
            if answer not in ("Yes", "No"):
                raise RecordError(f"{where} has the answer {answer!r}; expected Yes or No")
        elif answer not in question.options and (kind != MMMU or question.options):
            letters = ", ".join(question.options) or "no options"
            raise RecordError(f"{where} has the answer {answer!r}; expected one of its {letters}")
        if kind == CIRCULAR:
            _group(question)


def first(questions: Sequence[Question], kind: str, limit: int | None) -> list[Question]:
    """The first `limit` questions that are scored, or all of the table.

    One that is asked in rotations counts once, with all of them.
    """
    if kind == MMMU and limit:
        questions = _validation(questions)
    if kind != CIRCULAR:
        return list(questions[:limit])
    groups = set(list(dict.fromkeys(map(_group, questions)))[:limit])
    return [question for question in questions if _group(question) in groups]


def prompt(question: Question, kind: str) -> str:
    """What is asked after the pictures, as VLMEvalKit asks it."""
    text = question.columns["question"]
    if kind in (YES_NO, JUDGED) and not question.options:
        return text
    hint = question.columns.get("hint", "").strip()
    lines = [f"Hint: {hint}"] if hint else []
    lines.append(f"Question: {text}")
    if question.options:
        lines.append("Options:")
        lines += [f"{letter}. {option}" for letter, option in question.options.items()]
        lines.append("Please select the correct answer from the options above. ")
    return "\n".join(lines) + "\n"


def understood(question: Question, kind: str, answer: str) -> str | None:
    """What an answer says: a letter, Yes or No, or None if it is not clear."""
    if kind == YES_NO:
        verdict = yes_or_no(answer)
        return verdict if verdict in ("Yes", "No") else None
    return option_of(answer, _options(question, kind))


def score(
    name: str, questions: Sequence[Question], kind: str, answers: Mapping[str, str]
) -> dict[str, Any]:
    """Scores as shares: "overall", what it is made of, categories, and what has to be read.

    Args:
      name: of the benchmark. questions: that `check` accepts.
      answers: by index, one for each question.
    """
    if kind == MMMU:
        questions = _validation(questions)
    hits = {q.index: understood(q, kind, answers[q.index]) == _truth(q, kind) for q in questions}
    units = (
        _rotated(questions, hits) if kind == CIRCULAR else [(q, hits[q.index]) for q in questions]
    )
    out: dict[str, Any] = {"overall": _mean(hit for _, hit in units)}
    if kind == YES_NO:
        out |= _figures_and_questions(units)
    if kind == MMMU:
        out["with options"] = _mean(hit for q, hit in units if q.options)
    out["questions"] = len(units)
    out["unclear answers"] = sum(understood(q, kind, answers[q.index]) is None for q in questions)
    out["reading"] = _mean(hit for q, hit in units if reads(name, q))
    out["not reading"] = _mean(hit for q, hit in units if not reads(name, q))
    for column in ("l2-category", "category"):
        groups: dict[str, list[bool]] = defaultdict(list)
        for question, hit in units:
            if question.columns.get(column):
                groups[question.columns[column]].append(hit)
        out[column] = {group: _mean(found) for group, found in sorted(groups.items())}
    return out


def reads(name: str, question: Question) -> bool:
    """Whether a question is about written or drawn signs, by its categories; all of AI2D's are."""
    categories = f"{question.columns.get('category', '')} {question.columns.get('l2-category', '')}"
    words = set(re.findall(r"[a-z]+", categories.lower()))
    return name.lower().startswith("ai2d") or bool(words & _READING)


def _validation(questions: Sequence[Question]) -> Sequence[Question]:
    """MMMU's rows of the split validation, which are those that count, if there are any."""
    return [q for q in questions if q.columns.get("split") == "validation"] or questions


def _options(question: Question, kind: str) -> Mapping[str, str]:
    if kind == MMMU and not question.options:
        return {"A": question.answer, "B": _OTHER}
    return question.options


def _truth(question: Question, kind: str) -> str:
    return "A" if kind == MMMU and not question.options else question.answer


def _rotated(
    questions: Sequence[Question], hits: Mapping[str, bool]
) -> list[tuple[Question, bool]]:
    """A hit is a question that is right in every rotation."""
    groups: dict[int, list[bool]] = defaultdict(list)
    for question in questions:
        groups[_group(question)].append(hits[question.index])
    return [(q, all(groups[_group(q)])) for q in questions if _number(q.index) == _group(q)]


def _group(question: Question) -> int:
    """The index of the unrotated row."""
    own = question.columns.get("g_index")
    return _number(own) if own else _number(question.index) % _ROTATION


def _number(index: str) -> int:
    if not index.isdecimal():
        raise RecordError(f"index {index!r} is not a whole number, as rotations need")
    return int(index)


def _figures_and_questions(units: Sequence[tuple[Question, bool]]) -> dict[str, float]:
    """HallusionBench: by answer, by figure and by question, and the mean of the three."""
    figures: dict[tuple, list[bool]] = defaultdict(list)
    asked: dict[tuple, list[bool]] = defaultdict(list)
    for question, hit in units:
        parts = _parts(question)
        kind = question.columns.get("l2-category", "")
        figures[kind, parts[3], parts[4]].append(hit)
        asked[kind, parts[3], parts[5]].append(hit)
    found = {
        "aAcc": _mean(hit for _, hit in units),
        "fAcc": _mean(all(hits) for hits in figures.values()),
        "qAcc": _mean(all(hits) for hits in asked.values()),
    }
    return {"overall": float(np.mean(list(found.values()))), **found}


def _parts(question: Question) -> list[str]:
    """Of a HallusionBench index: category, subcategory, whether there is a picture, set, figure,
    question."""
    parts = question.index.split("_")
    if len(parts) < 6:
        raise RecordError(
            f"index {question.index!r} is not of HallusionBench: expected six parts with _"
        )
    return parts


def _mean(hits: Iterable[bool]) -> float | None:
    values = list(hits)
    return float(np.mean(values)) if values else None
