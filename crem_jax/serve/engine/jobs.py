"""What the engine works on: embeddings to make, and answers to give."""

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
    """A piece of an answer.

    Attributes:
      text: what is new. ended: None, "stop" or "length". tokens: of the answer so far.
      memory_bytes: of the keys and values that the answer is read from.
    """

    text: str
    ended: str | None
    tokens: int
    memory_bytes: int


class Job:
    """Something that a request waits for; made in the event loop, worked on in the engine's thread.

    Args:
      deadline: `time.monotonic` after which nobody waits for it any more.
    """

    def __init__(self, deadline: float):
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue = asyncio.Queue()
        self.deadline, self.arrived = deadline, time.monotonic()
        self.cancelled = False

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for it."""
        return not self.cancelled and time.monotonic() < self.deadline

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.cancelled = True

    def send(self, value: object) -> None:
        """Hands over a result, or an exception, from the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
            self._loop.call_soon_threadsafe(self._outbox.put_nowait, value)

    async def receive(self):
        """The next result.

        Raises:
          TimeoutError: the deadline. Exception: what the engine met.
        """
        async with asyncio.timeout(self.deadline - time.monotonic()):
            value = await self._outbox.get()
        if isinstance(value, Exception):
            raise value
        return value


class Embed(Job):
    """Gives chorus states, float32 [N, K, D]."""

    def __init__(self, deadline: float, rows: list[ContextRow]):
        super().__init__(deadline)
        self.rows = rows


@dataclasses.dataclass(frozen=True)
class AnswerGroup:
    """The key by which answers are grouped: those of one group can be made together.

    Attributes:
      source: "native", "compressed" or "stored".
      alone: sets an answer apart whose seed was given, since what is drawn depends on the row.
    """

    source: str
    sampling: Sampling = GREEDY
    alone: int = 0


class Answer(Job):
    """Gives `AnswerChunk` pieces.

    Args:
      context: the pictures, or the stored memory of one row.
      k: chorus tokens that are read; None is all.
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
