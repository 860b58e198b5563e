"""The operations of the server, used by its HTTP routes and its page."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from crem_jax.inference.model import Model
from crem_jax.inference.sampling import GREEDY, Sampling
from crem_jax.library.entry import Entry, Hit, UnknownIdError
from crem_jax.library.library import Library
from crem_jax.model.pooling import pool
from crem_jax.serve.admission import Admission, deadline, in_thread
from crem_jax.serve.conditions import check_condition
from crem_jax.serve.engine.engine import Engine
from crem_jax.serve.engine.jobs import Answer, AnswerChunk, AnswerGroup, Embed
from crem_jax.serve.errors import ApiError
from crem_jax.serve.inputs.reader import Pictures, Reader
from crem_jax.serve.inputs.remote import Fetcher
from crem_jax.serve.limits import Limits
from crem_jax.serve.metrics import Metrics

ANSWER_TOKENS = 64
"""Default for the largest number of tokens of an answer."""


_SEARCHERS = 4  # threads for library calls


class Service:
    """A model, optionally with a library, for many concurrent callers.

    Its coroutines must run within `admission.admitted()`.

    Args:
      name: the model's name. library: a library made with this model, or None.
      limits: None is the default Limits. fetcher: fetches remote pictures; None refuses them.

    Raises:
      LibraryError: the library belongs to another model.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        library: Library | None = None,
        limits: Limits | None = None,
        fetcher: Fetcher | None = None,
    ):
        self.model, self.name, self.library = model, name, library
        self.runner = model.runner
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.drains = asyncio.Event()
        if library is not None:
            library.check_model(model)
        self._reader = Reader(model.config, model.tokenizer, self.limits, fetcher, self.metrics)
        self._engine = Engine(self.runner, self.limits.rows, self.metrics)
        self._searching = ThreadPoolExecutor(_SEARCHERS, "crem-library")
        self.admission = Admission(self.limits, self.metrics, lambda: self._engine.job_seconds)
        self._alone = itertools.count(1)

    @property
    def draining(self) -> bool:
        """Whether the server is shutting down and admits no more requests."""
        return self.drains.is_set()

    @property
    def status(self) -> str:
        """ "ok", or why requests are not answered: "draining", "failed" (the model's thread has
        ended), "stuck" (no process can decode pictures)."""
        if self.draining:
            return "draining"
        if not self._engine.alive:
            return "failed"
        return "ok" if self._reader.healthy else "stuck"

    def close(self) -> None:
        """Waits for running jobs, except for pictures that are still being decoded."""
        self._reader.close()
        self._engine.close()
        self._searching.shutdown()

    async def embed(
        self,
        items: Sequence[tuple[str, Pictures]],
        k: int | None = None,
        dim: int | None = None,
    ) -> tuple[np.ndarray, int]:
        """Embeds items: (float32 [N, D or dim], number of input tokens).

        Args:
          items: N pairs (text, pictures). k, dim: as for `Model.encode`.
        """
        self.runner.validate_encode(k, dim)
        rows = await asyncio.gather(*(self._reader.row(*item) for item in items))
        step = self.limits.rows
        jobs = [Embed(deadline(), rows[i : i + step]) for i in range(0, len(rows), step)]
        states = await self._finished(jobs)
        tokens = sum(len(row.tokens) for row in rows)
        return pool(np.concatenate(states), k, dim), tokens

    async def answer(
        self,
        text: str,
        pictures: Pictures = (),
        turns: Sequence[tuple[str, str]] = (),
        compressed: bool = False,
        k: int | None = None,
        limit: int | None = None,
        sampling: Sampling = GREEDY,
    ) -> tuple[AsyncIterator[AnswerChunk], int]:
        """Starts an answer: (its chunks, number of input tokens).

        Args:
          text: the question. turns: earlier (question, answer) pairs.
          compressed, k: as for `Model.generate`. limit: largest number of answer tokens.
        """
        self.runner.validate_generate(compressed, k)
        limit = self._limit(limit)
        row, question = await self._reader.conversation(text, pictures, turns)
        group = self._group("compressed" if compressed else "native", sampling)
        job = Answer(deadline(), row, question, group, k, limit)
        return self._answer_chunks(job), len(row.tokens) + len(question)

    async def ask(
        self,
        ids: Sequence[str],
        question: str,
        k: int | None = None,
        limit: int | None = None,
        sampling: Sampling = GREEDY,
    ) -> list[AsyncIterator[AnswerChunk]]:
        """Starts answers from the stored memories of library entries, one for each id."""
        library = self._library()
        limit = self._limit(limit)
        if k is not None and k > library.info.memory_k:
            raise ApiError(400, f"k = {k} is not in 1..{library.info.memory_k}: as stored", "k")
        tokens = await self._reader.question(question)
        try:
            dtype = self.model.config.dtype
            memory = await in_thread(self._searching, library.memories, list(ids), dtype)
        except UnknownIdError as error:
            raise ApiError(404, str(error), "ids", "unknown_id") from error
        self.runner.validate_positions(memory, [tokens])
        group = self._group("stored", sampling)
        memories = [memory.take([row]) for row in range(len(ids))]
        jobs = [Answer(deadline(), one, tokens, group, k, limit) for one in memories]
        return [self._answer_chunks(job) for job in jobs]

    async def search(
        self,
        text: str,
        pictures: Pictures = (),
        k: int | None = None,
        top: int = 10,
        where: str | None = None,
    ) -> list[Hit]:
        """Library entries nearest to text, pictures, or both, best first; see `Library.search`."""
        library = self._library()
        library.info.column(k)
        if top > self.limits.top:
            raise ApiError(400, f"top {top} is not in 1..{self.limits.top}", "top")
        if where is not None:
            check_condition(where, milvus=bool(library.info.vectors))
        vectors, _ = await self.embed([(text, pictures)], k)
        # A thread that waits for the database is free again in time, whoever waits for it or not.
        seconds = min(self.limits.condition_seconds, deadline() - time.monotonic())
        search = functools.partial(library.search, seconds=seconds)
        return await in_thread(self._searching, search, vectors[0], k, top, where)

    async def entry(self, name: str) -> Entry:
        """An entry of the library.

        Raises:
          ApiError: 404, there is no entry with this id.
        """
        (entry,) = await in_thread(self._searching, self._library().get, [name])
        if entry is None:
            raise ApiError(404, f"the library has no {name!r}", "id", "unknown_id")
        return entry

    def _library(self) -> Library:
        if self.library is None:
            message = "this server has no library: crem serve --library DIR"
            raise ApiError(404, message, code="no_library")
        return self.library

    def _limit(self, limit: int | None) -> int:
        most = self.limits.tokens
        limit = min(ANSWER_TOKENS, most) if limit is None else limit
        if limit > most:
            raise ApiError(400, f"max_tokens {limit} is not in 1..{most}", "max_tokens")
        return limit

    def _group(self, source: str, sampling: Sampling) -> AnswerGroup:
        if not sampling.temperature:
            return AnswerGroup(source)
        alone = 0 if sampling.seed is None else next(self._alone)
        return AnswerGroup(source, sampling, alone)

    async def _finished(self, jobs: Sequence[Embed]) -> list[np.ndarray]:
        try:
            for job in jobs:
                self._engine.submit(job)
            return [await job.receive() for job in jobs]
        finally:
            for job in jobs:
                job.cancel()

    async def _answer_chunks(self, job: Answer) -> AsyncIterator[AnswerChunk]:
        self._engine.submit(job)
        try:
            while True:
                chunk = await job.receive()
                yield chunk
                if chunk.ended:
                    return
        finally:
            job.cancel()
