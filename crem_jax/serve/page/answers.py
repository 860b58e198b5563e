"""Streams one or two answers to the page, with their timing and memory size."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from crem_jax.serve.engine.jobs import AnswerChunk
from crem_jax.serve.errors import answer_for
from crem_jax.serve.page.parts import CURSOR, KINDS, answer_card
from crem_jax.serve.service import Service

Call = Callable[[], Awaitable[AsyncIterator[AnswerChunk]]]


async def answers(
    service: Service, calls: Mapping[str, Call], mode: str
) -> AsyncIterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yields the two cards, compressed and native, after each change until both are finished.

    Args:
      calls: starts the answer of each kind. mode: one kind, or both.
    """
    chosen = [mode] if mode in calls else list(calls)
    cards = {kind: answer_card(kind, CURSOR, hidden=kind not in chosen) for kind in KINDS}
    changed: asyncio.Queue[None] = asyncio.Queue()
    tasks = [
        asyncio.create_task(_follow(service, kind, calls[kind], cards, changed)) for kind in chosen
    ]
    try:
        yield tuple(cards.values())
        left = len(tasks)
        while left:
            await changed.get()
            while not changed.empty():
                changed.get_nowait()
            left = sum(not task.done() for task in tasks)
            yield tuple(cards.values())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _follow(
    service: Service, kind: str, call: Call, cards: dict[str, Any], changed: asyncio.Queue[None]
) -> None:
    began, text, first = time.monotonic(), "", 0.0
    try:
        with service.admission.admitted():
            async for chunk in await call():
                text += chunk.text
                now = time.monotonic() - began
                first = first or now
                cards[kind] = answer_card(
                    kind, text, chunk.memory_bytes, first, now, chunk.tokens, chunk.ended
                )
                changed.put_nowait(None)
    except Exception as error:
        cards[kind] = answer_card(kind, text, error=str(answer_for(error)))
    finally:
        # Only after this task is done, which the waiting side checks.
        asyncio.get_running_loop().call_soon(changed.put_nowait, None)
