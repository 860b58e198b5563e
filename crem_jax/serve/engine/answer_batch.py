"""Batches of answers that are generated together, of one group and one shape."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from crem_jax.inference.batches import step_up
from crem_jax.inference.runner import Runner
from crem_jax.inference.streaming import AnswerStream
from crem_jax.serve.engine.compiled_shapes import CompiledShapes
from crem_jax.serve.engine.jobs import Answer, AnswerChunk, AnswerGroup
from crem_jax.types import PAD, Memory, join_memories


class AnswerBatch:
    """Answers being generated, and their jobs, by row."""

    def __init__(self, jobs: Sequence[Answer], stream: AnswerStream, memory: Memory):
        self.jobs, self._stream = list(jobs), stream
        self._began, self._dropped = time.monotonic(), False
        slots = memory.region.shape[0] * memory.region.shape[1]
        slot_bytes = sum(x.nbytes for x in jax.tree.leaves(memory.kv)) // slots
        read = np.sum(np.asarray(memory.region) != PAD, axis=1)
        self._bytes = [int(count) * slot_bytes for count in read[: len(jobs)]]

    @property
    def size(self) -> int:
        return len(self.jobs)

    @property
    def over(self) -> bool:
        """Whether no job of the batch wants more tokens."""
        pairs = zip(self.jobs, self._stream.ended, strict=True)
        return self._dropped or all(ended or not job.wanted for job, ended in pairs)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def drop(self) -> None:
        """Stops generating."""
        self._dropped = True

    def advance(self) -> int:
        """Generates and sends a token of every answer; returns the number of tokens generated."""
        open_rows = [row for row, ended in enumerate(self._stream.ended) if not ended]
        pieces = self._stream.advance()
        counts = self._stream.counts
        for row in open_rows:
            chunk = AnswerChunk(pieces[row], self._stream.ended[row], counts[row], self._bytes[row])
            self.jobs[row].send(chunk)
        return len(open_rows)


def start_answers(
    runner: Runner, shapes: CompiledShapes, group: AnswerGroup, jobs: Sequence[Answer]
) -> Iterator[AnswerBatch]:
    """Yields batches of jobs of one group, with their contexts compressed."""
    sampling = group.sampling.for_batch()
    for members, memory in _memories(runner, shapes, group, jobs):
        if group.source != "native":
            missing = len(memory.region) - len(members)
            ks = [job.k or memory.num_chorus for job in members]
            memory = memory.truncate(np.asarray(ks + ks[:1] * missing, np.int32))
        questions, limits = [job.question for job in members], [job.limit for job in members]
        sizes = (step_up(max(map(len, questions))), max(limits))
        width, room = shapes.fit(("answers", *memory.region.shape), *sizes)
        stream = runner.answer_stream(memory, questions, sampling, limits, width=width, room=room)
        yield AnswerBatch(members, stream, memory)


def _memories(
    runner: Runner, shapes: CompiledShapes, group: AnswerGroup, jobs: Sequence[Answer]
) -> Iterator[tuple[list[Answer], Memory]]:
    """Yields (jobs, their memories) by shape; memory rows beyond the jobs are padding."""
    if group.source == "stored":
        memory = join_memories([job.context for job in jobs])
        size = shapes.rows(len(jobs), memory.region.shape[1])
        rows = np.minimum(np.arange(size), len(jobs) - 1)
        yield list(jobs), jax.device_put(memory.take(rows))
        return
    num_visible_chorus = runner.config.num_chorus if group.source == "compressed" else None
    rows = [job.context for job in jobs]
    for chosen, context in shapes.batches(rows, runner.config):
        yield [jobs[i] for i in chosen], runner.compress(context, num_visible_chorus)
