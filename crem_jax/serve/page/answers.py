"""Answers on the page: one or two at a time, as they are made, with what they took."""

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
    """The two cards, compressed and native, again and again until both are finished.

    Args:
      calls: begins the answer of each kind. mode: a kind, or both.
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
            async for said in await call():
                text += said.text
                now = time.monotonic() - began
                first = first or now
                cards[kind] = answer_card(
                    kind, text, said.memory_bytes, first, now, said.tokens, said.ended
                )
                changed.put_nowait(None)
    except Exception as error:
        cards[kind] = answer_card(kind, text, error=str(answer_for(error)))
    finally:
        # After this task is done: who waits looks at that.
        asyncio.get_running_loop().call_soon(changed.put_nowait, None)
