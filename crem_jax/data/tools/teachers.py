"""Who writes questions and answers: a model that runs here, or an OpenAI-compatible endpoint."""

from __future__ import annotations

import base64
import concurrent.futures
import http.client
import io
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from crem_jax.data.images.decode import open_picture
from crem_jax.data.images.patches import fit_size
from crem_jax.data.records import Item, Picture
from crem_jax.errors import CremError

LARGEST_WAIT = 60.0
"""Seconds between two attempts at most, unless the endpoint asks for more."""

_WORTH_ANOTHER_TRY = {408, 409, 425, 429, 500, 502, 503, 504, 529}


class TeacherError(CremError):
    """A teacher gave no answer; the message says why."""


class Teacher(Protocol):
    """Answers requests, each a text with the pictures it is about."""

    def __call__(self, requests: Sequence[Item]) -> list[str | Exception]:
        """One answer a request, or what went wrong with it."""
        ...


class ModelTeacher:
    """A model that our loader runs.

    Args:
      model: anything with `api.Model.generate`. The others are its arguments.
    """

    def __init__(self, model: Any, max_new_tokens: int, temperature: float = 0.0, seed: int = 0):
        self._generate = model.generate
        self._options = dict(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)

    def __call__(self, requests: Sequence[Item]) -> list[str | Exception]:
        try:
            return list(self._generate(list(requests), **self._options))
        except CremError:
            return [self._one(request) for request in requests]

    def _one(self, request: Item) -> str | Exception:
        try:
            return self._generate([request], **self._options)[0]
        except CremError as error:
            return error


class EndpointTeacher:
    """An OpenAI-compatible `/chat/completions` endpoint.

    What may pass (timeouts, lost connections, status 408, 409, 425, 429 and 5xx) is tried again,
    each time after twice as long, or when the endpoint says.

    Args:
      url: up to and without `/chat/completions`. model: its name there.
      key: sent as a bearer token, and taken out of every message; "" sends none.
      parallel: requests under way at once. timeout: of one attempt, in seconds. retries: further
        attempts. wait: seconds before the first of them. max_pixels: larger pictures are sent
        smaller.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str = "",
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
        parallel: int = 8,
        timeout: float = 120.0,
        retries: int = 6,
        wait: float = 1.0,
        max_pixels: int = 1280 * 28 * 28,
        sleep: Callable[[float], None] = time.sleep,
    ):
        if not url.startswith(("http://", "https://")):
            raise CremError(f"endpoint {url!r} is no http:// or https:// address")
        self.url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._key, self._timeout, self._retries, self._wait = key, timeout, retries, wait
        self._max_pixels, self._sleep, self._parallel = max_pixels, sleep, parallel
        self._body = dict(
            model=model, max_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        # A redirect would carry the key to wherever it points.
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __call__(self, requests: Sequence[Item]) -> list[str | Exception]:
        with concurrent.futures.ThreadPoolExecutor(self._parallel) as pool:
            return list(pool.map(self._answer, requests))

    def _answer(self, request: Item) -> str | Exception:
        try:
            body = json.dumps({**self._body, "messages": [self._message(request)]}).encode()
            for attempt in range(self._retries + 1):
                try:
                    return self._ask(body)
                except _TryAgain as error:
                    if attempt == self._retries:
                        raise TeacherError(f"{error} (after {attempt + 1} attempts)") from error
                    backoff = min(self._wait * 2**attempt, LARGEST_WAIT)
                    self._sleep(max(error.after, backoff * random.uniform(0.5, 1)))
        except CremError as error:
            return error
        raise AssertionError("unreachable")

    def _message(self, request: Item) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_url(image, self._max_pixels)}}
            for image in request.images
        ]
        return {"role": "user", "content": [*content, {"type": "text", "text": request.text}]}

    def _ask(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, body, headers)
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                answer = json.loads(response.read())
        except urllib.error.HTTPError as error:
            message = f"{self.url} answers {error.code}: {self._error_text(error)}"
            if error.code in _WORTH_ANOTHER_TRY:
                raise _TryAgain(message, _seconds(error.headers.get("Retry-After"))) from None
            raise TeacherError(message) from None
        except ValueError:
            raise _TryAgain(f"{self.url} answers with something that is no JSON") from None
        except OSError as error:  # no connection, a lost one, a timeout
            reason = getattr(error, "reason", None) or error
            raise _TryAgain(f"{self.url}: {reason or type(error).__name__}") from None
        except http.client.HTTPException as error:  # such as a cut-off answer
            raise _TryAgain(f"{self.url}: {type(error).__name__} {error}") from None
        try:
            content = answer["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise TeacherError(f"{self.url} answers without a text in choices[0].message.content")
        return content

    def _error_text(self, error: urllib.error.HTTPError) -> str:
        """The endpoint's own words, without the key."""
        try:
            text = error.read(2000).decode(errors="replace")
        except OSError:
            text = ""
        text = text.replace(self._key, "…") if self._key else text
        return " ".join(text.split())[:300] or str(error.reason)


class _TryAgain(TeacherError):
    def __init__(self, message: str, after: float = 0.0):
        super().__init__(message)
        self.after = after


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args, **_kwargs):
        return None


def data_url(picture: Picture, max_pixels: int) -> str:
    """A picture as a JPEG in a `data:` URL.

    Raises:
      PictureError: it cannot be read.
    """
    image = open_picture(picture)
    if image.width * image.height > max_pixels:
        size = fit_size(
            image.height, image.width, patch=1, merge=1, min_pixels=1, max_pixels=max_pixels
        )
        image = image.resize(size[::-1])
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def key_from(variable: str) -> str:
    """The API key in an environment variable; "" for no variable.

    Raises:
      ValueError: it is named but not set.
    """
    if not variable:
        return ""
    key = os.environ.get(variable, "")
    if not key:
        raise CremError(f"the environment variable {variable} is not set; it holds the API key")
    return key


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:  # an HTTP date
        return 0.0
