"""The engine: one thread that owns the model and batches queued jobs.

In turn it embeds one batch, starts answers while there is room, and generates one token of every
answer, so neither long answers nor many embeddings block the others for long.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from crem_jax.data.inputs.padding import ContextRow
from crem_jax.inference.runner import Runner
from crem_jax.serve.engine.answer_batch import AnswerBatch, start_answers
from crem_jax.serve.engine.compiled_shapes import CompiledShapes
from crem_jax.serve.engine.jobs import Answer, AnswerGroup, Embed, Job
from crem_jax.serve.errors import ApiError, answer_for
from crem_jax.serve.metrics import Metrics

_DECAY = 0.9
"""Decay of the moving average of a job's time."""


class Engine:
    """Runs jobs in its own thread; its owner closes it.

    Args:
      rows: largest number of embeddings in a batch, and of answers generated at a time.
    """

    def __init__(self, runner: Runner, rows: int, metrics: Metrics):
        self._runner, self._rows, self._metrics = runner, rows, metrics
        self._embeds: deque[Embed] = deque()
        self._answers: deque[Answer] = deque()
        self._active: list[AnswerBatch] = []
        self._changed = threading.Condition()
        self._closed = False
        self._shapes = CompiledShapes()
        self.job_seconds = 0.05
        self._thread = threading.Thread(target=self._run, name="crem-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Queues a job.

        Raises:
          ApiError: 503, the engine is closed.
        """
        with self._changed:
            if self._closed:
                raise ApiError(503, "the server is shutting down")
            (self._embeds if isinstance(job, Embed) else self._answers).append(job)
            self._count()
            self._changed.notify()

    def close(self) -> None:
        """Finishes all jobs and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # in the engine itself, not in a batch: it cannot go on
            with self._changed:
                self._closed = True
                made = [job for batch in self._active for job in batch.jobs]
                _fail([*self._embeds, *self._answers, *made], error)

    def _work(self) -> None:
        while self._wait():
            self._embed(self._take_embeds())
            self._begin(self._take_answers())
            for batch in self._active:
                self._advance(batch)
            self._active = [batch for batch in self._active if not batch.over]
            self._metrics.answering.set(sum(batch.size for batch in self._active))

    def _wait(self) -> bool:
        """Waits for work; False if the engine is closed and has none left."""
        with self._changed:
            while not (self._embeds or self._answers or self._active):
                if self._closed:
                    return False
                self._changed.wait()
            return True

    def _take_embeds(self) -> list[Embed]:
        taken, rows = [], 0
        with self._changed:
            while self._embeds and rows + len(self._embeds[0].rows) <= self._rows:
                job = self._embeds.popleft()
                if job.wanted:
                    taken.append(job)
                    rows += len(job.rows)
            self._count()
        return taken

    def _take_answers(self) -> list[Answer]:
        taken: list[Answer] = []
        room = self._rows - sum(batch.size for batch in self._active)
        with self._changed:
            while self._answers and len(taken) < room:
                job = self._answers.popleft()
                if job.wanted:
                    taken.append(job)
            self._count()
        return taken

    def _embed(self, jobs: Sequence[Embed]) -> None:
        if not jobs:
            return
        began = time.monotonic()
        rows = [row for job in jobs for row in job.rows]
        try:
            states = self._states(rows)
        except Exception as error:
            return _fail(jobs, error)
        self._metrics.batch_rows.labels("embeddings").observe(len(rows))
        self._metrics.batch_seconds.labels("embeddings").observe(time.monotonic() - began)
        first = 0
        for job in jobs:
            job.send(states[first : first + len(job.rows)])
            first += len(job.rows)
        self._update_mean(time.monotonic() - began, len(jobs))

    def _states(self, rows: Sequence[ContextRow]) -> np.ndarray:
        """Chorus states, float32 [N, K, D]."""
        config = self._runner.config
        states = np.zeros((len(rows), config.num_chorus, config.text.hidden_size), np.float32)
        for chosen, context in self._shapes.batches(rows, config):
            states[chosen] = self._runner.chorus_states(context)[: len(chosen)]
        return states

    def _begin(self, jobs: Sequence[Answer]) -> None:
        groups: dict[AnswerGroup, list[Answer]] = {}
        for job in jobs:
            groups.setdefault(job.group, []).append(job)
        for group, members in groups.items():
            try:
                for batch in start_answers(self._runner, self._shapes, group, members):
                    self._metrics.batch_rows.labels("answers").observe(batch.size)
                    self._active.append(batch)
            except Exception as error:
                _fail(members, error)

    def _advance(self, batch: AnswerBatch) -> None:
        began = time.monotonic()
        try:
            made = batch.advance()
        except Exception as error:
            batch.drop()
            return _fail(batch.jobs, error)
        self._metrics.batch_seconds.labels("answers").observe(time.monotonic() - began)
        self._metrics.tokens.inc(made)
        for job in batch.jobs:
            if not job.begun:
                waited = time.monotonic() - job.arrived
                self._metrics.first_token.labels(job.group.source).observe(waited)
                job.begun = True
        if batch.over:
            self._update_mean(batch.seconds, batch.size)

    def _update_mean(self, seconds: float, jobs: int) -> None:
        self.job_seconds = _DECAY * self.job_seconds + (1 - _DECAY) * seconds / jobs

    def _count(self) -> None:
        self._metrics.waiting.set(len(self._embeds) + len(self._answers))


def _fail(jobs: Sequence[Job], error: Exception) -> None:
    answer = answer_for(error)  # one log number for the whole batch
    for job in jobs:
        job.send(answer)
