"""Conversations of OpenAI's interface as what the model reads: pictures, turns, a question."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from crem_jax.serve.errors import ApiError
from crem_jax.serve.http.schemas import ImagePart, Message


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Attributes:
    text: the question, or what is to be embedded.
    pictures: (where in the request, URL) of every picture.
    turns: (question, answer) pairs before it.
    """

    text: str
    pictures: tuple[tuple[str, str], ...] = ()
    turns: tuple[tuple[str, str], ...] = ()


def read_conversation(messages: Sequence[Message]) -> Conversation:
    """The messages of a request.

    The pictures of all messages come before the conversation, as the model was trained; what the
    system says is put before the first question.

    Raises:
      ApiError: 400, roles that do not take turns, or no question at the end.
    """
    pictures: list[tuple[str, str]] = []
    said: list[tuple[str, str]] = []
    system: list[str] = []
    for i, message in enumerate(messages):
        text = _text(i, message, pictures)
        if message.role in ("system", "developer"):
            system.append(text)
        elif said and said[-1][0] == message.role:
            said[-1] = (message.role, f"{said[-1][1]}\n{text}")
        else:
            said.append((message.role, text))
    if not said or said[0][0] != "user" or said[-1][0] != "user":
        raise ApiError(400, "messages must begin and end with one of the user", "messages")
    texts = [text for _, text in said]
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
