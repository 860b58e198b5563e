"""Streams a batch of answers: generates them token by token and returns the new text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crem_jax.config import ModelConfig
from crem_jax.distributed import to_host
from crem_jax.inference import decoding
from crem_jax.inference.batches import pad_questions
from crem_jax.inference.sampling import Sampling
from crem_jax.model import crem
from crem_jax.types import Memory

_UNFINISHED = "\ufffd"
"""What an incomplete multi-byte character decodes to."""


class AnswerStream:
    """A batch of answers that is generated one token at a time.

    Args:
      memory: one row per question; further rows are padding.
      questions: token ids, see `Prompter.question`.
      limits: largest number of tokens of each answer.
      width: padded length of the questions; None is what they need.
      room: answer tokens for which the cache is allocated; None is the largest limit.

    Attributes:
      ended: the finish reason of each answer: "stop", "length" (its limit), or None if unfinished.
      counts: tokens of each answer so far, the end token included.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: crem.Params,
        tokenizer,
        memory: Memory,
        questions: Sequence[np.ndarray],
        sampling: Sampling,
        limits: Sequence[int],
        width: int | None = None,
        room: int | None = None,
    ):
        self._model = config, params
        self._tokenizer, self._memory, self._sampling = tokenizer, memory, sampling
        rows = len(memory.region)
        self._questions = pad_questions(questions, rows, config.pad_token_id, width)
        self._room = room or max(limits)
        self._limits = list(limits)
        self._state: decoding.State | None = None
        self._ids: list[list[int]] = [[] for _ in questions]
        self._texts = [""] * len(questions)
        self.ended: list[str | None] = [None] * len(questions)

    @property
    def over(self) -> bool:
        """Whether all answers have ended."""
        return all(self.ended)

    @property
    def counts(self) -> list[int]:
        return [len(ids) for ids in self._ids]

    def advance(self) -> list[str]:
        """Generates the next token of every answer; returns each one's new text, often empty."""
        config, params = self._model
        if self._state is None:
            self._state = decoding.start(
                config, params, self._memory, *self._questions, self._sampling, self._room
            )
        else:
            self._state = decoding.step(config, params, self._memory, self._state, self._sampling)
        tokens, done = to_host(self._state.token), to_host(self._state.done)
        return [self._piece(row, tokens[row], done[row]) for row in range(len(self._ids))]

    def _piece(self, row: int, token: np.ndarray, done: np.ndarray) -> str:
        if self.ended[row]:
            return ""
        ids = self._ids[row]
        ids.append(int(token))
        if done or len(ids) == self._limits[row]:
            self.ended[row] = "stop" if done else "length"
        text = answer_text(self._model[0], self._tokenizer, ids)
        if text.endswith(_UNFINISHED) and not self.ended[row]:
            return ""
        piece, self._texts[row] = text[len(self._texts[row]) :], text
        return piece


def answer_text(config: ModelConfig, tokenizer, ids: Sequence[int]) -> str:
    """The text of an answer, up to its end token."""
    ends = (config.eos_token_id, config.pad_token_id)
    answer = []
    for token in ids:
        if token in ends:
            break
        answer.append(int(token))
    return tokenizer.decode(answer, skip_special_tokens=True)
