"""Generates a model's native and compressed answers to a table, encoding each picture once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crem_jax.data.records import Item
from crem_jax.errors import CremError
from crem_jax.evaluate.comprehension.benchmarks import prompt
from crem_jax.evaluate.comprehension.tables import Question
from crem_jax.evaluate.encoding import LocatedItem, prepared, shapes_of
from crem_jax.files import JsonLinesLog, read_lines
from crem_jax.inference.batches import fill_batch, plan_batches

if TYPE_CHECKING:
    from crem_jax.inference.model import Model

NATIVE, COMPRESSED = MODES = ("native", "compressed")
_AT_ONCE = 32  # sets of pictures, and questions, whose whole memories are on the device


class Answers:
    """Answers in a JSON-lines file, {"index", mode: answer, …}, which survive a killed run.

    Args:
      path: an existing file is read; an incomplete last line is dropped.
      conditions: the run's conditions, stored with the answers.

    Raises:
      CremError: the file has answers of other conditions, or is damaged.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]):
        first = {"conditions": dict(conditions)}
        read = list(read_lines(path))
        if read and read[0] != first:
            raise CremError(
                f"{path} has answers of other conditions, {read[0].get('conditions')}; expected "
                f"{first['conditions']}: give another --out, or delete it"
            )
        self.found = {line["index"]: line for line in read[1:]}
        self._log = JsonLinesLog(path, fsync=True)
        if not read:
            self._log.append([first])

    def __contains__(self, index: str) -> bool:
        return index in self.found

    def of(self, mode: str) -> dict[str, str]:
        """Index of the question -> answer, for one mode."""
        return {index: line[mode] for index, line in self.found.items()}

    def add(self, lines: Sequence[dict[str, str]]) -> None:
        self._log.append(lines)
        self.found |= {line["index"]: line for line in lines}

    def close(self) -> None:
        self._log.close()


def answer_all(
    model: Model,
    questions: Sequence[Question],
    kind: str,
    answers: Answers,
    *,
    modes: Sequence[str] = MODES,
    k: int | None = None,
    max_new_tokens: int = 128,
    workers: int = 2,
    progress: Callable[[int], None] = lambda count: None,
) -> int:
    """Answers, greedily, the questions that have no answer yet; returns their number.

    Args:
      kind: the benchmark's kind. modes: among MODES.
      k: number of chorus tokens of compressed answers; None is all.
      max_new_tokens: largest number of tokens of an answer.
      workers: number of threads that decode pictures.
      progress: called with the number of questions answered since the last call.

    Raises:
      CremError: a picture or a question cannot be used; all are checked before any is answered,
        except for damage inside a picture file. The message names the index.
    """
    missing = [question for question in questions if question.index not in answers]
    groups: dict[tuple[str, ...], list[Question]] = {}
    for question in missing:
        groups.setdefault(question.pictures, []).append(question)
    num_visible_chorus = [
        None if mode == NATIVE else k or model.config.num_chorus for mode in modes
    ]
    members = list(groups.values())
    work = [LocatedItem(_pictures(group[0]), f"index {group[0].index}") for group in members]
    with ThreadPoolExecutor(workers) as pool:
        shapes = shapes_of(pool, model.runner, work)
        for group, one in zip(members, work, strict=True):
            _check(model, one, group, kind)
        batches = plan_batches(shapes, model.runner.row_multiple, _AT_ONCE)
        for chosen, size, rows in prepared(pool, model.runner, work, batches):
            context = fill_batch(rows, size, model.config)
            memories = model.runner.compress_each(context, num_visible_chorus)
            pairs = [(row, q) for row, number in enumerate(chosen) for q in members[number]]
            for batch in _batches(pairs, kind):
                numbers = [row for row, _ in batch]
                texts = [prompt(question, kind) for _, question in batch]
                by_mode = [
                    model.ask(memory.take(numbers), texts, max_new_tokens=max_new_tokens)
                    for memory in memories
                ]
                answers.add(
                    [
                        {"index": question.index, **dict(zip(modes, own, strict=True))}
                        for (_, question), *own in zip(batch, *by_mode, strict=True)
                    ]
                )
                progress(len(batch))
    return len(missing)


def _pictures(question: Question) -> Item | None:
    pictures = question.images()
    return Item(images=pictures) if pictures else None


def _check(model: Model, work: LocatedItem, group: Sequence[Question], kind: str) -> None:
    """Raises CremError for a question that is empty or does not fit the model."""
    draft = model.runner.prompter.draft(work.item)
    before, limit = draft.fixed + draft.visual, model.config.text.max_positions
    for question in group:
        try:
            tokens = model.runner.prompter.question(prompt(question, kind))
        except CremError as error:
            raise CremError(f"index {question.index}: {error}") from error
        needed = before + len(tokens) + model.config.num_chorus
        if needed > limit:
            raise CremError(
                f"index {question.index}: the question needs {needed} tokens with its pictures; "
                f"the model has {limit} positions"
            )


def _batches(
    pairs: Sequence[tuple[int, Question]], kind: str
) -> Iterator[list[tuple[int, Question]]]:
    """Yields batches of (row, question) with questions of similar length."""
    ordered = sorted(pairs, key=lambda pair: len(prompt(pair[1], kind)))
    for first in range(0, len(ordered), _AT_ONCE):
        yield ordered[first : first + _AT_ONCE]
