"""How much a condition may ask of the database that reads it.

A database parses a condition by recursion, so that a long chain of operators, short as it may be
written, ends the process on its stack; and some operators cost more than the rows they read. What
is counted are therefore the parts of a condition, not its characters.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from crem_jax.library.entry import LibraryError

TOKENS = 1024
"""Words, numbers, texts, operators, brackets and commas of a condition: about 500 values of IN."""

OPERATORS = 256
"""Operators but AND and OR, and calls of functions. Chains of 600 still pass, of 700 overflow the
stack; those of 1,500 ANDs or ORs do not."""

DEPTH = 16
"""Brackets, CASEs and prefixes (NOT, a sign) in one another."""

CONCATENATIONS = 8
"""`||`, each of which writes all texts to its left again for every row."""

WILDCARDS = 8
"""`_` behind a `%` in a pattern of LIKE: each doubles the states that its automaton can be in."""

SECONDS = 60.0
"""How long a condition may take, unless the caller says otherwise."""

KEYWORDS = {
    *("and", "or", "not", "in", "between", "like", "ilike", "is", "similar", "to"),
    *("escape", "from", "distinct", "case", "when", "then", "else", "end", "xor", "div"),
}
"""Words that take operands."""

_TOKEN = r"""
    (?P<text>{texts})
  | (?P<name>{names})
  | (?P<number>\d[\w.]*)
  | (?P<word>[^\W\d]\w*)
  | (?P<comment>--|/\*)
  | (?P<operator>\|\||&&|<=|>=|<>|!=|==|::|->>?|[^\s\w,()\[\]{{}}'"`$;\\])
  | (?P<bracket>[()\[\]{{}}])
  | (?P<comma>,)
  | (?P<odd>\S)
"""
_SQL = re.compile(
    _TOKEN.format(texts=r"'[^']*(?:''[^']*)*'", names=r'"[^"]*(?:""[^"]*)*"|`[^`]*`'), re.VERBOSE
)
_MILVUS = re.compile(
    _TOKEN.format(
        texts=r"'[^'\\]*(?:\\.[^'\\]*)*'|\"[^\"\\]*(?:\\.[^\"\\]*)*\"", names=r"\$meta\b"
    ),
    re.VERBOSE | re.DOTALL,
)
_JUNCTIONS = ("and", "or", "&&")
_PREFIXES = ("not", "-", "+", "~", "!")
_OPERANDS = ("text", "name", "number", "word")


@dataclasses.dataclass(frozen=True)
class Token:
    """A part of a condition.

    Attributes:
      kind: "text", "name" (in quotes), "number", "word", "operator", "bracket" or "comma".
      calls: whether it opens the arguments of the token before it.
    """

    kind: str
    written: str
    calls: bool = False


def check_condition(where: str, milvus: bool = False) -> None:
    """Whether a database can be given a condition without harm.

    Args:
      milvus: it is a Milvus expression, not SQL.

    Raises:
      LibraryError: there is more in it than is allowed, or something that hides what is in it.
    """
    count = operators = concatenations = depth = run = deepest = 0
    before = ""
    for token in read_tokens(where, milvus):
        count += 1
        word = token.written.lower() if token.kind in ("word", "operator") else token.written
        operators += (token.kind == "operator" and word not in _JUNCTIONS) or token.calls
        concatenations += token.written == "||"
        depth += word in ("(", "[", "{", "case")
        depth -= word in (")", "]", "}", "end")
        run = run + 1 if word in _PREFIXES else 0
        deepest = max(deepest, depth + max(run - 1, 0))  # the first may be a minus between two
        if token.kind == "text" and before in ("like", "ilike"):
            wildcards = re.sub(r"\\.", "", token.written.partition("%")[2]).count("_")
            _at_most(wildcards, WILDCARDS, "'_' behind a '%'")
        before = word
    _at_most(count, TOKENS, "words and signs")
    _at_most(operators, OPERATORS, "operators and calls")
    _at_most(deepest, DEPTH, "levels of nesting")
    if not milvus:  # where it means OR
        _at_most(concatenations, CONCATENATIONS, "times '||'")


def read_tokens(where: str, milvus: bool = False) -> Iterator[Token]:
    """The parts of a condition.

    A word is an operator where it is one of SQL's, and where it follows an operand.

    Raises:
      LibraryError: it has a comment, an open quote, a quote right after a word (which would
        change how the text is read), or a character that belongs to nothing.
    """
    if "\0" in where:
        raise _refused("has a NUL character")
    operand, end, kind = False, -1, ""
    for found in (_MILVUS if milvus else _SQL).finditer(where):
        written, before, kind = found[0], kind, found.lastgroup or "odd"
        if kind == "odd":
            raise _refused("has an open quote" if written in "'\"`" else f"has a {written!r}")
        if kind == "comment":
            raise _refused(f"has a comment ({written!r})")
        if kind in ("text", "name") and before in _OPERANDS and found.start() == end:
            raise _refused("has a quote right after a word")
        calls = written in ("(", "[") and operand
        if kind == "word" and (operand or written.lower() in KEYWORDS):
            kind = "operator"
        operand = kind in _OPERANDS or written in (")", "]", "}")
        end = found.end()
        yield Token(kind, written, calls)


def _at_most(count: int, most: int, what: str) -> None:
    if count > most:
        raise _refused(f"has {count} {what}; expected at most {most}")


def _refused(reason: str) -> LibraryError:
    return LibraryError(f"the condition {reason}")
