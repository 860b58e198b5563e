"""The prompts and the scoring rules of each benchmark."""

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
"""Multiple choice; the same in all rotations of the options; multiple choice or open; yes or no;
free text for a judge model."""

_NAMES = {"mmbench": CIRCULAR, "ccbench": CIRCULAR, "mmmu": MMMU, "hallusion": YES_NO}
_ROTATION = 1_000_000  # without "g_index", an index modulo this is the unrotated row's
_OTHER = "Other Answers"
_READING = {
    *("ocr", "text", "imagetext", "document", "documents", "chart", "charts"),
    *("table", "tables", "diagram", "diagrams", "map", "maps"),
}


def kind_of(name: str, questions: Sequence[Question]) -> str:
    """A benchmark's kind, one of KINDS, from its name and whether it has options and answers."""
    known = next((kind for start, kind in _NAMES.items() if name.lower().startswith(start)), None)
    if not any(question.answer for question in questions):
        return JUDGED
    if known or not any(question.options for question in questions):
        return known or JUDGED
    return CHOICE


def check(questions: Sequence[Question], kind: str) -> None:
    """Raises RecordError, which names the index, if a row cannot be scored."""
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
    """The first `limit` questions that are scored; None is the whole table.

    A question with several rotations counts once, with all of them.
    """
    if kind == MMMU and limit:
        questions = _validation(questions)
    if kind != CIRCULAR:
        return list(questions[:limit])
    groups = set(list(dict.fromkeys(map(_group, questions)))[:limit])
    return [question for question in questions if _group(question) in groups]


def prompt(question: Question, kind: str) -> str:
    """The text prompt after the pictures, as in VLMEvalKit."""
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


def parsed(question: Question, kind: str, answer: str) -> str | None:
    """The parsed answer: an option's letter, Yes or No, or None if it is unclear."""
    if kind == YES_NO:
        verdict = yes_or_no(answer)
        return verdict if verdict in ("Yes", "No") else None
    return option_of(answer, _options(question, kind))


def score(
    name: str, questions: Sequence[Question], kind: str, answers: Mapping[str, str]
) -> dict[str, Any]:
    """Scores from 0 to 1: "overall", its parts, by category, and of questions about text.

    Args:
      name: the benchmark's. questions: questions that `check` accepts.
      answers: index -> answer, one for each question.
    """
    if kind == MMMU:
        questions = _validation(questions)
    hits = {q.index: parsed(q, kind, answers[q.index]) == _truth(q, kind) for q in questions}
    units = (
        _rotated(questions, hits) if kind == CIRCULAR else [(q, hits[q.index]) for q in questions]
    )
    out: dict[str, Any] = {"overall": _mean(hit for _, hit in units)}
    if kind == YES_NO:
        out |= _figures_and_questions(units)
    if kind == MMMU:
        out["with options"] = _mean(hit for q, hit in units if q.options)
    out["questions"] = len(units)
    out["unclear answers"] = sum(parsed(q, kind, answers[q.index]) is None for q in questions)
    out["reading"] = _mean(hit for q, hit in units if is_about_text(name, q))
    out["not reading"] = _mean(hit for q, hit in units if not is_about_text(name, q))
    for column in ("l2-category", "category"):
        groups: dict[str, list[bool]] = defaultdict(list)
        for question, hit in units:
            if question.columns.get(column):
                groups[question.columns[column]].append(hit)
        out[column] = {group: _mean(found) for group, found in sorted(groups.items())}
    return out


def is_about_text(name: str, question: Question) -> bool:
    """Whether a question is about text or diagrams, by its categories; all of AI2D's are."""
    categories = f"{question.columns.get('category', '')} {question.columns.get('l2-category', '')}"
    words = set(re.findall(r"[a-z]+", categories.lower()))
    return name.lower().startswith("ai2d") or bool(words & _READING)


def _validation(questions: Sequence[Question]) -> Sequence[Question]:
    """MMMU's rows of the validation split, if there are any, else all rows."""
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
    """(first row, whether the answer is right in every rotation) of each question."""
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


def _figures_and_questions(units: Sequence[tuple[Question, bool]]) -> dict[str, float | None]:
    """HallusionBench's accuracies by answer, by figure and by question, and their mean."""
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
    return {"overall": _mean(one for one in found.values() if one is not None), **found}


def _parts(question: Question) -> list[str]:
    """The parts of a HallusionBench index: category, subcategory, whether there is a picture, set,
    figure, question.
    """
    parts = question.index.split("_")
    if len(parts) < 6:
        raise RecordError(
            f"index {question.index!r} is not of HallusionBench: expected six parts with _"
        )
    return parts


def _mean(hits: Iterable[float]) -> float | None:
    values = list(hits)
    return float(np.mean(values)) if values else None
