"""Conditions of requests, before a database reads them.

A condition is an expression on the columns of entries. What it may not do is call functions that
build values of any size, or be so long that its nesting costs the parser its stack.
"""

from __future__ import annotations

import re

from crem_jax.serve.errors import ApiError

LONGEST = 2000
"""Characters of a condition."""

DEEPEST = 16
"""Brackets in one another."""

_WORDS = {"and", "or", "not", "in", "between", "like", "ilike", "is"}
_FUNCTIONS = {
    *("json_get_string", "json_get_int", "json_get_float", "json_get_bool", "json_exists"),
    *("json_array_contains", "json_contains_any", "json_contains_all", "array_contains"),
    *("array_length", "lower", "upper", "length", "starts_with", "ends_with", "contains"),
    *("regexp_like", "regexp_match"),
}

_REFUSED = {"`", ";", "$", "--", "/*"}  # comments would hide what is called

_TOKENS = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"\\]|\\.)*\"|[A-Za-z_]\w*|[\[(]|[\])]|--|/\*|\S", re.DOTALL
)


def check_condition(where: str) -> None:
    """Raises ApiError 400 unless a condition is one that a request may set."""
    if len(where) > LONGEST:
        raise _refused(f"has {len(where)} characters; expected at most {LONGEST}")
    if "\0" in where:
        raise _refused("has a NUL character")
    before, depth, run = "", 0, 0
    for token in _TOKENS.findall(where):
        depth += (token in "([") - (token in ")]")
        run = run + 1 if token in "-+~!" or token.lower() == "not" else 0
        if depth > DEEPEST or run > DEEPEST:
            raise _refused(f"is nested more than {DEEPEST} deep")
        if token in _REFUSED:
            raise _refused(f"has a {token!r}")
        if token == "(":
            name = before.lower()
            called = name[:1].isalpha() or name[:1] in ('"', "_")
            if called and name not in _WORDS | _FUNCTIONS:
                raise _refused(f"calls {before!r}; known are {', '.join(sorted(_FUNCTIONS))}")
        before = token


def _refused(reason: str) -> ApiError:
    return ApiError(400, f"the condition {reason}", "where", "invalid_condition")
