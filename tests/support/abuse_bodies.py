"""Bodies of many elements of the wrong types, wherever a request has a value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.support.abuse_requests import ASK, CHAT, EMBED, SEARCH, Attack

_USER = b'{"messages": [{"role": "user", "content": '
_PLACES = (  # (route, what stands before, unit of the list, what stands behind)
    (EMBED, b'{"input": ["a"', b",1", b"]}"),
    (EMBED, b'{"input": ["a"', b",[]", b"]}"),
    (EMBED, b'{"input": ["a"', b",{}", b",5]}"),
    (EMBED, b'{"input": ["a"', b",null", b"]}"),
    (EMBED, b'{"input": [{"text": "a", "more": 1}', b',{"more":1}', b"]}"),
    (EMBED, b'{"input": {"text": ["a"', b",1", b"]}}"),
    (EMBED, b'{"dimensions": [1', b",1", b'], "input": "a"}'),
    (EMBED, b"[0", b",0", b"]"),
    (CHAT, _USER + b"[1", b",1", b"]}]}"),
    (CHAT, _USER + b"[[]", b",[]", b"]}]}"),
    (CHAT, _USER + b"[{}", b",{}", b"]}]}"),
    (CHAT, _USER + b'[{"type": "text", "text": 1}', b',{"type":"text"}', b"]}]}"),
    (CHAT, b'{"messages": [1', b",1", b"]}"),
    (CHAT, b'{"messages": [{}', b",{}", b"]}"),
    (CHAT, b'{"stop": ["a"', b',"a"', b'], "messages": [{"role": "user", "content": "a"}]}'),
    (CHAT, b'{"tools": [[]', b",[]", b'], "messages": [{"role": "user", "content": "a"}]}'),
    (ASK, b'{"question": "a", "ids": [1', b",1", b"]}"),
    (ASK, b'{"question": [1', b",1", b'], "ids": ["a"]}'),
    (SEARCH, b'{"query": [1', b",1", b"]}"),
    (SEARCH, b'{"query": "a", "where": [1', b",1", b"]}"),
)
_KEYED = (
    (SEARCH, b'{"query": "a"', b"}"),
    (ASK, b'{"question": "a", "ids": ["a"]', b"}"),
    (EMBED, b'{"input": {"text": "a"', b"}}"),
    (CHAT, b'{"messages": 1', b"}"),
)


def swollen(size: int) -> Iterator[Attack]:
    """One of every kind, of about `size` bytes; none can be answered."""
    for path, before, unit, behind in _PLACES:
        body = before + unit * ((size - len(before) - len(behind)) // len(unit)) + behind
        yield Attack(f"{size} bytes of {unit!r} behind {before!r}", path, body)
    for path, before, behind in _KEYED:
        keys = b"".join(b',"k%06d":0' % number for number in range(size // 12))
        yield Attack(f"{size} bytes of keys behind {before!r}", path, before + keys + behind)


GOOD: dict[str, dict[str, Any]] = {
    EMBED: {"input": ["a", {"text": "b"}], "k": 2, "dimensions": 8},
    CHAT: {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        "max_tokens": 2,
    },
    SEARCH: {"query": "a", "top": 2, "where": "width > 3"},
    ASK: {"ids": ["0.png"], "question": "what?", "max_tokens": 2},
}


def mutated(rng: np.random.Generator, longest: int) -> Attack:
    """A good request of which one value is another, at random; some can be answered.

    Args:
      longest: bytes that the value may have, about.
    """
    path = str(rng.choice(list(GOOD)))
    body = json.loads(json.dumps(GOOD[path]))
    at: Any = body
    while True:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.7:
            at = at[key]
            continue
        break
    if isinstance(at, dict) and rng.random() < 0.2:
        key = "another"
    at[key] = "@"
    value = _value(rng, int(2 ** rng.uniform(1, np.log2(longest))))
    return Attack(f"{key} = {value[:40]!r}", path, json.dumps(body).encode().replace(b'"@"', value))


def _value(rng: np.random.Generator, size: int) -> bytes:
    """JSON of about so many bytes."""
    kind = int(rng.integers(7))
    if kind == 0:
        return b"9" * min(size, 5000)
    if kind == 1:
        return b'"' + (b"a\\n" * (size // 3)) + b'"'
    if kind == 2:
        return b"[" * (size // 2) + b"]" * (size // 2)
    if kind == 3:
        return b"{" + b",".join(b'"k%d":[]' % i for i in range(size // 12)) + b"}"
    if kind == 4:
        return [b"null", b"true", b"-1", b"1e999", b"{}", b"[]", b'""'][int(rng.integers(7))]
    unit = [b"1", b"[]", b"{}", b"null", b'"a"', b'{"type":"text","text":"a"}', b'{"a":{"a":[]}}']
    one = unit[int(rng.integers(len(unit)))]
    return b"[" + b",".join([one] * max(size // (len(one) + 1), 1)) + b"]"
