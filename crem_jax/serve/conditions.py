"""Checks the filters (`where`) of requests before they reach a database.

Beside what the library refuses (`library.conditions`), a request may not call functions that build
values of any size, nor match patterns whose cost is not bounded by what is written in them.
"""

from __future__ import annotations

from crem_jax.library.conditions import KEYWORDS, Token, read_tokens
from crem_jax.library.conditions import check_condition as check_parts
from crem_jax.library.entry import LibraryError
from crem_jax.serve.errors import ApiError

LONGEST = 2000
"""Largest number of characters of a filter."""

_FUNCTIONS = {
    *("json_get_string", "json_get_int", "json_get_float", "json_get_bool", "json_exists"),
    *("json_array_contains", "json_contains_any", "json_contains_all", "array_contains"),
    *("array_length", "lower", "upper", "length", "starts_with", "ends_with", "contains"),
}
_REGULAR = {"~", "similar", "rlike", "regexp", "regexp_like", "regexp_match"}
_PATTERNS = {"like", "ilike"}
_BEHIND_PATTERNS = {"", ")", "and", "or"}


def check_condition(where: str, milvus: bool = False) -> None:
    """Raises ApiError 400 if a filter is not allowed in a request."""
    if len(where) > LONGEST:
        raise _refused(f"the condition has {len(where)} characters; expected at most {LONGEST}")
    try:
        check_parts(where, milvus)
        tokens = list(read_tokens(where, milvus))
    except LibraryError as error:
        raise _refused(str(error)) from error
    edge = Token("bracket", "")
    afters = [*tokens[1:], edge]
    for before, token, after in zip([edge, *tokens], tokens, afters, strict=False):
        word, last = token.written.lower(), before.written.lower()
        if token.kind == "name" and word.startswith("`"):
            raise _refused("the condition has a '`'")
        if word in _REGULAR:
            raise _refused(f"the condition has {word!r}; LIKE is what matches texts in a request")
        whole = token.kind == "text" and after.written.lower() in _BEHIND_PATTERNS
        if last in _PATTERNS and not whole:
            raise _refused(f"the condition has no single text in quotes after {before.written}")
        named = last[:1].isalpha() or last[:1] in ('"', "_")
        if word == "(" and named and last not in KEYWORDS | _FUNCTIONS:
            known = ", ".join(sorted(_FUNCTIONS))
            raise _refused(f"the condition calls {before.written!r}; known are {known}")


def _refused(reason: str) -> ApiError:
    return ApiError(400, reason, "where", "invalid_condition")
