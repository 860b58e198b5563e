"""Checks the filters (`where`) of requests before they reach a database.

A filter is an expression on the columns of entries. It may not call functions that build values of
any size, nor be so long or deeply nested that it exhausts the parser's stack.
"""

from __future__ import annotations

import re

from crem_jax.serve.errors import ApiError

LONGEST = 2000
"""Largest number of characters of a filter."""

DEEPEST = 16
"""Largest nesting depth of brackets."""

_WORDS = {"and", "or", "not", "in", "between", "like", "ilike", "is"}
_FUNCTIONS = {
    *("json_get_string", "json_get_int", "json_get_float", "json_get_bool", "json_exists"),
    *("json_array_contains", "json_contains_any", "json_contains_all", "array_contains"),
    *("array_length", "lower", "upper", "length", "starts_with", "ends_with", "contains"),
    *("regexp_like", "regexp_match"),
}

_REFUSED = {"`", ";", "$", "--", "/*"}  # comments would hide function calls

_TOKENS = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"\\]|\\.)*\"|[A-Za-z_]\w*|[\[(]|[\])]|--|/\*|\S", re.DOTALL
)


def check_condition(where: str) -> None:
    """Raises ApiError 400 if a filter is not allowed in a request."""
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
