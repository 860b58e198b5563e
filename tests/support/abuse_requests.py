"""What a malformed request is."""

from __future__ import annotations

import dataclasses
import json

EMBED, CHAT, SEARCH, ASK = "/v1/embeddings", "/v1/chat/completions", "/v1/search", "/v1/ask"
ROUTES = (EMBED, CHAT, SEARCH, ASK)
JSON = {"Content-Type": "application/json"}
BODY_BYTES = 1 << 20
"""The server that is attacked takes no larger bodies."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """One request. raw: sent as it is, instead of all else."""

    name: str
    path: str = EMBED
    body: bytes = b""
    method: str = "POST"
    headers: dict[str, str] = dataclasses.field(default_factory=lambda: JSON)
    raw: bytes = b""


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()
