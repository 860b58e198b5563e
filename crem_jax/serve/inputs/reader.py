"""Prepares texts and pictures of requests for the model; texts never wait for pictures."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from crem_jax.config import ModelConfig
from crem_jax.data.images.processor import PatchedPicture
from crem_jax.data.inputs.padding import ContextRow
from crem_jax.data.inputs.prompt import Prompter
from crem_jax.data.records import Item
from crem_jax.serve.admission import in_thread
from crem_jax.serve.errors import ApiError
from crem_jax.serve.inputs.decoders import Decoders
from crem_jax.serve.inputs.remote import Fetcher
from crem_jax.serve.limits import Limits
from crem_jax.serve.metrics import Metrics

Pictures = Sequence[tuple[str, str]]
"""(location in the request, URL) of each picture."""

_REMOTE = 8  # items whose remote pictures are held at once, of all requests together
_CHARACTERS = 16  # characters of a text per position of the model; more cannot fit


class Reader:
    """Prepares requests for one model, within limits.

    Args:
      config, tokenizer: the model's.
      fetcher: fetches remote pictures; None refuses them.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Any,
        limits: Limits,
        fetcher: Fetcher | None,
        metrics: Metrics,
    ):
        # Its own prompter, so that users' texts are not cached.
        self._prompter = Prompter(config, tokenizer, known_texts=0)
        self._limits, self._fetcher = limits, fetcher
        self._remote = asyncio.Semaphore(_REMOTE)
        self._decoders = Decoders(config.vision, limits, metrics)
        self._words = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "crem-words")

    @property
    def healthy(self) -> bool:
        """Whether pictures can be decoded, now or soon."""
        return self._decoders.healthy

    def close(self) -> None:
        """Waits for texts that are being tokenised, and abandons pictures."""
        self._decoders.close()
        self._words.shutdown()

    async def row(self, text: str, pictures: Pictures) -> ContextRow:
        """The row of an item to embed."""
        async with self._room(pictures):
            item = await self._item(text, pictures)
            return await in_thread(self._words, self._prompter.context, item)

    async def conversation(
        self, text: str, pictures: Pictures, turns: Sequence[tuple[str, str]]
    ) -> tuple[ContextRow, np.ndarray]:
        """The row of the pictures, and the token ids of the turns and the question."""
        self._check(" ".join(itertools.chain(*turns)))
        async with self._room(pictures):
            item = await self._item(text, pictures)
            return await in_thread(self._words, self._prompter.question_about, item, turns)

    async def question(self, text: str) -> np.ndarray:
        """The token ids of a single question."""
        self._check(text)
        return await in_thread(self._words, self._prompter.question, text)

    async def _item(self, text: str, pictures: Pictures) -> Item:
        self._check(text)
        if len(pictures) > self._limits.images:
            message = f"{len(pictures)} pictures; expected at most {self._limits.images}"
            raise ApiError(400, message, code="too_many_images")
        return Item(text, tuple([await self._picture(*picture) for picture in pictures]))

    def _room(self, pictures: Pictures) -> contextlib.AbstractAsyncContextManager:
        """Waits until there is room for an item's remote pictures, if it has any.

        Data URIs are bounded when the request is received; remote pictures are bounded here.
        """
        remote = any(_is_remote(url) for _, url in pictures)
        return self._remote if remote else contextlib.nullcontext()

    async def _picture(self, where: str, url: str) -> PatchedPicture:
        if not _is_remote(url):
            return await self._decoders.read(url, where)
        if self._fetcher is None:
            message = f"{where}: this server fetches no URLs; send a data URI"
            raise ApiError(400, message, where, "invalid_image_url")
        return await self._decoders.read(await self._fetcher.fetch(url, where), where)

    def _check(self, text: str) -> None:
        most = _CHARACTERS * self._prompter.config.text.max_positions
        if len(text) > most:
            raise ApiError(400, f"a text of {len(text)} characters; expected at most {most}")


def _is_remote(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))
