"""Returns answers as server-sent events, or whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

from crem_jax.serve.engine.jobs import AnswerChunk
from crem_jax.serve.errors import answer_for

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def whole(pieces: AsyncIterator[AnswerChunk]) -> tuple[str, AnswerChunk]:
    """An answer's whole text, and its last chunk."""
    texts, last = [], None
    async for said in pieces:
        texts.append(said.text)
        last = said
    assert last is not None  # an answer has a token at least
    return "".join(texts), last


async def begun(pieces: AsyncIterator[AnswerChunk]) -> AsyncIterator[AnswerChunk]:
    """Waits for the first chunk, so that an earlier failure can still set the HTTP status.

    Returns:
      An iterator over all chunks.
    """
    first = await anext(pieces)

    async def again() -> AsyncIterator[AnswerChunk]:
        yield first
        async for said in pieces:
            yield said

    return again()


def event_stream(events: AsyncIterator[dict[str, Any]], seconds: float) -> StreamingResponse:
    """A response of server-sent events that ends with [DONE], or with an error event.

    Args:
      seconds: the deadline that a TimeoutError refers to.
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
