"""Evaluates comprehension: from benchmark tables to scores and predictions."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crem_jax.data.records import RecordError
from crem_jax.errors import CremError
from crem_jax.evaluate.comprehension.answering import COMPRESSED, Answers, answer_all
from crem_jax.evaluate.comprehension.benchmarks import JUDGED, check, first, kind_of, score
from crem_jax.evaluate.comprehension.exports import check_excel, write_predictions
from crem_jax.evaluate.comprehension.tables import Question, read_table
from crem_jax.evaluate.progress import Counting, quiet
from crem_jax.files import file_digest, write_json

if TYPE_CHECKING:
    from crem_jax.inference.model import Model


def evaluate(
    model: Model,
    name: str,
    tables: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    modes: Sequence[str],
    k: int | None = None,
    max_new_tokens: int = 128,
    limit: int | None = None,
    excel: bool = False,
    workers: int = 2,
    counting: Counting = quiet,
) -> dict[str, Any]:
    """Answers and scores benchmarks; results go to `out`, where interrupted runs resume.

    Args:
      name: the model's name in file names. tables: TSV files named after their benchmarks.
      modes: among "native" and "compressed".
      k: number of chorus tokens of compressed answers; None is all.
      max_new_tokens: largest number of tokens of an answer.
      limit: number of questions per table (`benchmarks.first`); None is all.
      excel: also write predictions as xlsx. workers: number of threads that decode pictures.

    Returns:
      The contents of scores.json: the conditions, and for each benchmark its kind, its number of
      questions and its scores by mode (None if only a judge model can score it).

    Raises:
      CremError, OSError: a table cannot be used, or the model does not support a mode or k.
    """
    out = Path(out)
    if k is not None and COMPRESSED not in modes:
        raise CremError(f"k = {k} is of compressed answers; the modes are {', '.join(modes)}")
    for mode in modes:
        model.runner.validate_generate(mode == COMPRESSED, k if mode == COMPRESSED else None)
    k = k or model.config.num_chorus
    if excel:
        check_excel()
    conditions = {
        "fingerprint": model.fingerprint,
        "dtype": model.config.dtype,
        "modes": list(modes),
        "k": k if COMPRESSED in modes else None,
        "max_new_tokens": max_new_tokens,
    }
    read = {Path(table).stem: _read(Path(table)) for table in tables}
    digests = {Path(table).stem: file_digest(table).hex() for table in tables}
    if len(read) < len(tables):
        raise RecordError("two tables have the same name; a table is called like its benchmark")
    found: dict[str, Any] = {}
    for benchmark, (kind, questions) in read.items():
        questions = first(questions, kind, limit)
        answers = Answers(
            out / benchmark / "answers.jsonl", {**conditions, "table": digests[benchmark]}
        )
        with contextlib.closing(answers), counting(len(questions), benchmark) as progress:
            progress(sum(question.index in answers for question in questions))
            answer_all(
                model,
                questions,
                kind,
                answers,
                modes=modes,
                k=k,
                max_new_tokens=max_new_tokens,
                workers=workers,
                progress=progress,
            )
        scores = {}
        for mode in modes:
            own = answers.of(mode)
            stem = out / benchmark / f"{name.replace('/', '_')}-{mode}_{benchmark}"
            write_predictions(stem, questions, own, excel)
            scores[mode] = None if kind == JUDGED else score(benchmark, questions, kind, own)
        found[benchmark] = {"kind": kind, "questions": len(questions), "scores": scores}
    result = {"model": name, **conditions, "limit": limit, "benchmarks": found}
    write_json(out / "scores.json", result)
    return result


def _read(table: Path) -> tuple[str, list[Question]]:
    """A table's kind and its questions."""
    questions = read_table(table)
    kind = kind_of(table.stem, questions)
    try:
        check(questions, kind)
    except RecordError as error:
        raise RecordError(f"{table}: {error}") from error
    return kind, questions
