"""The engine's jobs: embeddings and answers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time

import numpy as np

from crem_jax.data.inputs.padding import ContextRow
from crem_jax.inference.sampling import GREEDY, Sampling
from crem_jax.types import Memory


@dataclasses.dataclass(frozen=True)
class AnswerChunk:
    """A chunk of a streamed answer.

    Attributes:
      text: the new text. ended: the finish reason, "stop" or "length", or None if unfinished.
      tokens: number of tokens of the answer so far.
      memory_bytes: size of the keys and values that the answer is read from.
    """

    text: str
    ended: str | None
    tokens: int
    memory_bytes: int


class Job:
    """A unit of work that a request waits for: made in the event loop, run in the engine's thread.

    Args:
      deadline: `time.monotonic` after which the result is no longer wanted.
    """

    def __init__(self, deadline: float):
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue = asyncio.Queue()
        self.deadline, self.arrived = deadline, time.monotonic()
        self.cancelled = False

    @property
    def wanted(self) -> bool:
        """Whether the result is still wanted."""
        return not self.cancelled and time.monotonic() < self.deadline

    def cancel(self) -> None:
        """Marks the result as no longer wanted."""
        self.cancelled = True

    def send(self, value: object) -> None:
        """Sends a result or an exception from the engine's thread to the event loop."""
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
            self._loop.call_soon_threadsafe(self._outbox.put_nowait, value)

    async def receive(self):
        """The next result.

        Raises:
          TimeoutError: the deadline has passed. Exception: one that the engine sent.
        """
        async with asyncio.timeout(self.deadline - time.monotonic()):
            value = await self._outbox.get()
        if isinstance(value, Exception):
            raise value
        return value


class Embed(Job):
    """A job whose result is chorus states, float32 [N, K, D]."""

    def __init__(self, deadline: float, rows: list[ContextRow]):
        super().__init__(deadline)
        self.rows = rows


@dataclasses.dataclass(frozen=True)
class AnswerGroup:
    """The key by which answers are batched: only answers with equal keys share a batch.

    Attributes:
      source: "native", "compressed" or "stored".
      alone: a unique number for an answer with a given seed, whose samples depend on its row in
        the batch; 0 otherwise.
    """

    source: str
    sampling: Sampling = GREEDY
    alone: int = 0


class Answer(Job):
    """A job whose results are `AnswerChunk`s.

    Args:
      context: a context to compress, or a stored memory of one row. question: token ids.
      k: number of chorus tokens to use; None is all. limit: largest number of answer tokens.
    """

    def __init__(
        self,
        deadline: float,
        context: ContextRow | Memory,
        question: np.ndarray,
        group: AnswerGroup,
        k: int | None,
        limit: int,
    ):
        super().__init__(deadline)
        self.context, self.question, self.group, self.k = context, question, group, k
        self.limit = limit
        self.begun = False
