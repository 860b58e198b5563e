"""Converts the messages of OpenAI's API to the model's input: pictures, turns, a question."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from crem_jax.serve.errors import ApiError
from crem_jax.serve.http.schemas import ImagePart, Message


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A conversation as the model's input.

    Attributes:
      text: the last question, or the text to embed.
      pictures: (location in the request, URL) of every picture.
      turns: earlier (question, answer) pairs.
    """

    text: str
    pictures: tuple[tuple[str, str], ...] = ()
    turns: tuple[tuple[str, str], ...] = ()


def read_conversation(messages: Sequence[Message]) -> Conversation:
    """Reads the messages of a request.

    The pictures of all messages come before the conversation, as in training; system messages are
    prepended to the first question.

    Raises:
      ApiError: 400, roles do not alternate, or there is no question at the end.
    """
    pictures: list[tuple[str, str]] = []
    merged: list[tuple[str, str]] = []
    system: list[str] = []
    for i, message in enumerate(messages):
        text = _text(i, message, pictures)
        if message.role in ("system", "developer"):
            system.append(text)
        elif merged and merged[-1][0] == message.role:
            merged[-1] = (message.role, f"{merged[-1][1]}\n{text}")
        else:
            merged.append((message.role, text))
    if not merged or merged[0][0] != "user" or merged[-1][0] != "user":
        raise ApiError(400, "messages must begin and end with one of the user", "messages")
    texts = [text for _, text in merged]
    texts[0] = "\n".join(part for part in (*system, texts[0]) if part)
    turns = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
    return Conversation(texts[-1], tuple(pictures), turns)


def _text(number: int, message: Message, pictures: list[tuple[str, str]]) -> str:
    if not isinstance(message.content, list):
        return message.content or ""
    texts = []
    for i, part in enumerate(message.content):
        if isinstance(part, ImagePart):
            if message.role != "user":
                where = f"messages[{number}].content[{i}]"
                raise ApiError(400, f"{where}: only the user may show pictures", where)
            pictures.append((f"messages[{number}].content[{i}].image_url", part.url))
        else:
            texts.append(part.text)
    return "\n".join(texts)
