"""How much a JSON body may hold, found before anything is built of it.

A megabyte of `1,` or `{},` becomes a hundred megabytes of objects, and as many errors of each. What
is outside of texts is short in every request that can be answered, so that is what is counted.
"""

from __future__ import annotations

import re

from crem_jax.serve.errors import ApiError

DEPTH = 32
"""Arrays and objects in one another."""

_BYTES = 32
"""Outside of texts, for each element: a bracket, a comma, a number, and what indents it."""

_INSIDE = re.compile(rb'(?:[^"\\]+|\\.)*+', re.DOTALL)
_PIECE = 1 << 18
_NO_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_NUMBER = re.compile(rb"[^\s,:\[\]{}]{65}")


def check_json(body: bytes, elements: int) -> int:
    """Counts what a body would become, without building any of it.

    It need not be proper JSON; that is for whoever parses it. The work is bounded by `elements`,
    however long the body.

    Args:
      elements: values and keys that it may have.

    Returns:
      How many elements there are, at most.

    Raises:
      ApiError: 400, there are more, they are nested deeper than DEPTH, or a number has more than 64
        digits.
    """
    outside, most = bytearray(), _BYTES * elements + 1024
    texts = at = 0
    while True:
        quote = body.find(b'"', at, at + most)
        outside += body[at : quote if quote >= 0 else at + most + 1]
        if len(outside) > most:
            raise _refused(f"has more than {most} bytes outside of texts")
        if quote < 0:
            break
        texts += 1
        if texts > elements:
            raise _refused(f"has more than {elements} texts")
        at = _end(body, quote + 1)
    count = 1 + texts + sum(outside.count(sign) for sign in b",[{")
    if count > elements:
        raise _refused(f"has {count} elements; expected at most {elements}")
    if _NUMBER.search(outside):
        raise _refused("has a number of more than 64 digits")
    depth = 0
    for bracket in outside.translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > DEPTH:
            raise _refused(f"is nested more than {DEPTH} deep")
    return count


def _end(body: bytes, start: int) -> int:
    """Where a text that begins at `start` has ended, its closing quote included."""
    quote = body.find(b'"', start)
    if quote < 0:
        return len(body)
    if body.find(b"\\", start, quote) < 0:
        return quote + 1
    at = start
    while True:
        # A piece at a time: a match keeps all other threads waiting.
        found = _INSIDE.match(body, at, at + _PIECE)
        at = found.end()
        if at >= len(body) or body[at : at + 1] == b'"':
            return at + 1
        if at == found.start():  # a backslash that nothing follows
            return len(body)


def _refused(reason: str) -> ApiError:
    return ApiError(400, f"the body {reason}", code="too_many")
