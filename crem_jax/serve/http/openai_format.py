"""Responses in the format of OpenAI's API."""

from __future__ import annotations

import base64
import secrets
import time
from typing import Any

import numpy as np

from crem_jax.serve.engine.jobs import AnswerChunk


def embeddings(vectors: np.ndarray, encoding: str, model: str, tokens: int) -> dict[str, Any]:
    """The response of /v1/embeddings.

    Args:
      vectors: float32 [N, D]. encoding: "float", or "base64" of little-endian float32.
      tokens: number of input tokens.
    """
    if encoding == "base64":
        values = [base64.b64encode(v.astype("<f4").tobytes()).decode() for v in vectors]
    else:
        values = vectors.tolist()
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": value}
            for i, value in enumerate(values)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


class Completion:
    """A chat completion, whole or in chunks.

    Args:
      asked: number of input tokens.
    """

    def __init__(self, model: str, asked: int):
        self._model, self._asked = model, asked
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def whole(self, text: str, last: AnswerChunk) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.ended}
        return {**self._head("chat.completion"), "choices": [choice], **self._foot(last)}

    def opening(self) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""}, None)

    def piece(self, chunk: AnswerChunk) -> dict[str, Any]:
        return self._chunk({"content": chunk.text} if chunk.text else {}, chunk.ended)

    def usage(self, last: AnswerChunk) -> dict[str, Any]:
        """The final chunk of a stream, with usage and no choices."""
        return {**self._head("chat.completion.chunk"), "choices": [], **self._foot(last)}

    def _chunk(self, delta: dict[str, Any], ended: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": ended}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _foot(self, last: AnswerChunk) -> dict[str, Any]:
        usage = {
            "prompt_tokens": self._asked,
            "completion_tokens": last.tokens,
            "total_tokens": self._asked + last.tokens,
        }
        return {"usage": usage, "memory_bytes": last.memory_bytes}
