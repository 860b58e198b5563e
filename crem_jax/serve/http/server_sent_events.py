"""Answers as server-sent events, or whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

from crem_jax.serve.engine.jobs import AnswerChunk
from crem_jax.serve.errors import answer_for

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def whole(pieces: AsyncIterator[AnswerChunk]) -> tuple[str, AnswerChunk]:
    """An answer's text, and the last piece of it."""
    texts, last = [], None
    async for said in pieces:
        texts.append(said.text)
        last = said
    assert last is not None  # an answer has a token at least
    return "".join(texts), last


async def begun(pieces: AsyncIterator[AnswerChunk]) -> AsyncIterator[AnswerChunk]:
    """The same pieces, when there is a first one: what fails before it is still a status."""
    first = await anext(pieces)

    async def again() -> AsyncIterator[AnswerChunk]:
        yield first
        async for said in pieces:
            yield said

    return again()


def event_stream(events: AsyncIterator[dict[str, Any]], seconds: float) -> StreamingResponse:
    """Server-sent events that end with [DONE], or with an error as the last event.

    Args:
      seconds: the deadline that a TimeoutError among the events means.
    """

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for event in events:
                yield _line(event)
        except Exception as error:
            yield _line(answer_for(error, seconds).to_json())
        yield b"data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers=_HEADERS)


def _line(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"
