"""Teachers, which write questions and answers: a model that runs here, or an OpenAI-compatible
endpoint.
"""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from crem_jax.data.images.decode import open_picture
from crem_jax.data.images.patches import fit_size
from crem_jax.data.records import Item, Picture
from crem_jax.errors import CremError

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionContentPartParam, ChatCompletionUserMessageParam

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
      model: an `inference.model.Model`. The others are arguments of its `generate`.
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

    Raises:
      ValueError: the URL is none, or openai is not installed.
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
        if not _is_address(url):
            raise CremError(f"endpoint {url!r} is no http:// or https:// address")
        try:
            import openai
        except ImportError as error:
            raise CremError(
                "an endpoint needs openai: pip install 'crem_jax[synthesize]'"
            ) from error
        base = url.rstrip("/").removesuffix("/chat/completions")
        self.url = f"{base}/chat/completions"
        self._key, self._retries, self._wait = key, retries, wait
        self._max_pixels, self._sleep, self._parallel = max_pixels, sleep, parallel
        # An account at OpenAI that the environment names is not sent to other endpoints.
        private = ["OpenAI-Organization", "OpenAI-Project", *([] if key else ["Authorization"])]
        self._options: dict[str, Any] = dict(
            model=model,
            max_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            extra_headers=dict.fromkeys(private, openai.Omit()),
        )
        self._client = openai.OpenAI(
            api_key=key or "none",  # left out of the headers then
            base_url=base,
            timeout=timeout,
            max_retries=0,  # _answer retries: longer than the client, and after answers cut off
            # A redirect would carry the key to wherever it points.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )

    def __call__(self, requests: Sequence[Item]) -> list[str | Exception]:
        with concurrent.futures.ThreadPoolExecutor(self._parallel) as pool:
            return list(pool.map(self._answer, requests))

    def _answer(self, request: Item) -> str | Exception:
        try:
            message = self._message(request)
            for attempt in range(self._retries + 1):
                try:
                    return self._ask(message)
                except _TryAgain as error:
                    if attempt == self._retries:
                        raise TeacherError(f"{error} (after {attempt + 1} attempts)") from error
                    backoff = min(self._wait * 2**attempt, LARGEST_WAIT)
                    self._sleep(max(error.after, backoff * random.uniform(0.5, 1)))
        except CremError as error:
            return error
        raise AssertionError("unreachable")

    def _message(self, request: Item) -> ChatCompletionUserMessageParam:
        pictures: list[ChatCompletionContentPartParam] = [
            {"type": "image_url", "image_url": {"url": data_url(image, self._max_pixels)}}
            for image in request.images
        ]
        return {"role": "user", "content": [*pictures, {"type": "text", "text": request.text}]}

    def _ask(self, message: ChatCompletionUserMessageParam) -> str:
        import openai

        ask = self._client.chat.completions.with_raw_response.create
        try:
            answer = json.loads(ask(messages=[message], **self._options).http_response.text)
        except openai.APIStatusError as error:
            response = error.response
            text = f"{self.url} answers {error.status_code}: {self._error_text(response)}"
            if error.status_code in _WORTH_ANOTHER_TRY:
                raise _TryAgain(text, _seconds(response.headers.get("Retry-After"))) from None
            raise TeacherError(text) from None
        except openai.APIConnectionError as error:  # none, a lost one, a timeout, a cut-off answer
            reason = error.__cause__ or error
            raise _TryAgain(f"{self.url}: {str(reason) or type(reason).__name__}") from None
        except json.JSONDecodeError:
            raise _TryAgain(f"{self.url} answers with something that is no JSON") from None
        try:
            content = answer["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise TeacherError(f"{self.url} answers without a text in choices[0].message.content")
        return content

    def _error_text(self, response: Any) -> str:
        """The endpoint's own words, without the key."""
        text = response.text.replace(self._key, "…") if self._key else response.text
        return " ".join(text[:2000].split())[:300] or response.reason_phrase


class _TryAgain(TeacherError):
    def __init__(self, message: str, after: float = 0.0):
        super().__init__(message)
        self.after = after


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


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket too few, a port that is no number
        return False


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
