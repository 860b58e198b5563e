"""ShareGPT-4V (`Lin-Chen/ShareGPT4V`) and other conversations in its format, LLaVA's.

A JSON list (or JSON lines) of {"id", "image": path, "conversations": [{"from", "value"}]}.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crem_jax.data.records import EmptySideError, Item, Record, RecordError
from crem_jax.data.sources.base import FileSource
from crem_jax.data.sources.formats.fields import paths_of, shown, text_of
from crem_jax.data.sources.formats.file_rows import JsonLines, JsonList

PLACEHOLDER = re.compile(r"\n?<image>\n?")
_ROLES = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "system": "system",
}


class ShareGpt(FileSource):
    """Conversations, each about its pictures or about nothing but its first message.

    The pictures are the query, wherever `<image>` stands; every answer of the assistant is learnt.
    Without pictures the first message is the query, so that text is compressed too. Messages of one
    side that follow each other are one message; questions after the last answer are dropped.

    Args:
      path: the .json or .jsonl file.
      image_root: folder that picture paths are relative to; default: the file's own folder.
    """

    def __init__(self, path: str | os.PathLike, image_root: str | os.PathLike | None = None):
        self._rows = (JsonLines if Path(path).suffix == ".jsonl" else JsonList)(path)
        self._root = os.fspath(image_root if image_root is not None else Path(path).parent)
        self._name = Path(path).stem

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        return self._rows.where(index)

    def read(self, index: int) -> Record:
        value, where = self._value(index), self.where(index)
        name = value.get("id")
        if name is not None and not isinstance(name, str | int):
            raise RecordError(f"{where} id is {shown(name)}; expected a text or a whole number")
        images = _images(value, self._root, where)
        if not images and self._marks(index, value):
            raise RecordError(f"{where} speaks of an <image> and has none")
        system, turns = _turns(value.get("conversations"), where)
        text = system
        if not images:
            text = "\n".join(part for part in (system, turns[0][0]) if part)
            turns[0] = ("", turns[0][1])
            if not text:
                raise EmptySideError(f"{where} has neither a picture nor a question")
        return Record(
            # The ids of ShareGPT-4V are not unique.
            id=where if name is None else f"{where} ({text_of(str(name), f'{where} id')})",
            query=Item(text, images),
            turns=tuple(turns),
            source=self._name,
        )

    def problems(self, index: int) -> list[str]:
        """Placeholders that are not as many as the pictures."""
        value = self._value(index)
        marks = self._marks(index, value)
        pictures = len(_images(value, "", self.where(index)))
        return [] if marks == pictures else [f"it has {marks} placeholders and {pictures} pictures"]

    def _marks(self, index: int, value: Mapping[str, Any]) -> int:
        messages = _messages(value.get("conversations"), self.where(index))
        return sum(message["value"].count("<image>") for message in messages)

    def _value(self, index: int) -> Mapping[str, Any]:
        value = self._rows[index]
        if not isinstance(value, Mapping):
            raise RecordError(f"{self.where(index)} is {shown(value)}; expected an object")
        return value


def _images(value: Mapping[str, Any], root: str, where: str) -> tuple[str, ...]:
    key = "images" if "images" in value else "image"
    return paths_of(value.get(key), root, f"{where} {key}")


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    """The messages, checked: from "human", "gpt" or "system", with a text."""
    if not isinstance(value, list) or not value:
        raise RecordError(f"{where} conversations is {shown(value)}; expected a list of messages")
    messages = []
    for i, message in enumerate(value):
        here = f"{where} conversations[{i}]"
        if not isinstance(message, Mapping):
            raise RecordError(f"{here} is {shown(message)}; expected an object")
        role = message.get("from")
        if not isinstance(role, str) or role not in _ROLES:
            raise RecordError(f"{here}.from is {shown(role)}; expected {', '.join(_ROLES)}")
        text = text_of(message.get("value"), f"{here}.value")
        messages.append({"from": _ROLES[role], "value": text})
    return messages


def _turns(value: Any, where: str) -> tuple[str, list[tuple[str, str]]]:
    """The system message, and (question, answer) pairs."""
    system: list[str] = []
    turns: list[tuple[list[str], list[str]]] = []
    for message in _messages(value, where):
        text = PLACEHOLDER.sub("\n", message["value"]).strip()
        if not text:
            continue
        if message["from"] == "system":
            system.append(text)
        elif message["from"] == "human":
            if not turns or turns[-1][1]:
                turns.append(([], []))
            turns[-1][0].append(text)
        else:
            if not turns:
                turns.append(([], []))
            turns[-1][1].append(text)
    joined = [("\n".join(questions), "\n".join(answers)) for questions, answers in turns if answers]
    if not joined:
        raise EmptySideError(f"{where} has no answer of the assistant")
    return "\n".join(system), joined
