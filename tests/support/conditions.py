"""Conditions for tests: usual ones, bombs, and ones made at random."""

from __future__ import annotations

import numpy as np


def _complaint(count: int, what: str, most: int) -> str:
    return rf"the condition has {count} {what}; expected at most {most}"


def _words(count: int) -> str:
    return _complaint(count, "words and signs", 1024)


def _calls(count: int) -> str:
    return _complaint(count, "operators and calls", 256)


def _levels(count: int) -> str:
    return _complaint(count, "levels of nesting", 16)


BOMBS = [
    ("width > 0" + "+1" * 990, _words(1983)),
    ('"id"' + "||id" * 490 + " = text", _calls(491)),
    ("width > 0" + "+1" * 300, _calls(301)),
    ('"id"' + "||id" * 9 + " = text", _complaint(9, r"times '\|\|'", 8)),
    ("(" * 200 + "width > 0" + ")" * 200, _levels(200)),
    ("NOT " * 400 + "width > 0", _calls(401)),
    ("- " * 400 + "width > 0", _calls(401)),
    ("width IN (" + ",".join(["1"] * 5000) + ")", _words(10_003)),
    ("CASE WHEN width > 0 THEN " * 17 + "true" + " END" * 17, _levels(17)),
    ("CASE width " * 17 + "END " * 17, _levels(17)),
    ("lower(" * 17 + "id" + ")" * 17 + " = id", _levels(17)),
    ("width IS NULL" + " IS NULL" * 260, _calls(261)),
    ("width" + "::bigint" * 260 + " > 0", _calls(261)),
    ("metadata" + "['a']" * 260 + " = 1", _calls(261)),
    ("true" + " XOR true" * 260, _calls(260)),
    ("text LIKE '%a" + "_" * 60 + "c%'", _complaint(60, "'_' behind a '%'", 8)),
    ("text NOT ILIKE '%" + "_" * 9 + "'", _complaint(9, "'_' behind a '%'", 8)),
    ("id = " + "'a' OR id = " * 300 + "'a'", _words(1203)),
]
"""(condition, what is said of it)."""

GOOD = [
    ("width > 6", [7, 8]),
    ("width > 3 AND id LIKE '5%'", [5]),
    ("id IN ('1.png', '2.png', 'it''s')", [1, 2]),
    ("json_get_int(metadata, 'n') < 2", [0, 1]),
    ("NOT (width BETWEEN 1 AND 8) OR `width` = 4", [0, 4]),
    ('"width" = 3 AND text IS NOT NULL', [3]),
    ("text = 'it''s' AND width % 4 = 0", [0, 4, 8]),
    ("regexp_like(id, '^[67]')", [6, 7]),
    ("id LIKE '_.p_g' AND -width = -2", [2]),
    ("width = -(-1)", [1]),
]
"""(condition, widths of what it leaves of nine pictures of the widths 0..8)."""

_PARTS = (
    *("width", "id", "text", "1", "0", "'a'", "'%a_'", "true", "null", '"id"', "2.5", "`text`"),
    *("+", "-", "*", "/", "%", "||", "=", "<>", "<", ">=", "AND", "OR", "NOT", "IS NULL", "::int"),
    *("LIKE", "ILIKE", "IN", "BETWEEN", "(", ")", "(", ")", ",", "lower(", "length(", "['a']"),
    *("CASE", "WHEN", "THEN", "ELSE", "END", "IS NOT NULL", "XOR", "~", "json_get_int(metadata,"),
)


def condition(rng: np.random.Generator) -> str:
    """A condition made at random: words in any order, a chain, nested ones, or a list."""
    kind, count = int(rng.integers(4)), int(2 ** rng.uniform(0, 10))
    if kind == 0:
        return " ".join(rng.choice(_PARTS, min(count, 200)))
    if kind == 1:
        chains = ("width{} > 0", "+1"), ("id{} = text", "||id"), ("width > 0{}", " OR width = 1")
        frame, link = chains[int(rng.integers(len(chains)))]
        return frame.format(link * count)
    if kind == 2:
        before, after = [("(", ")"), ("NOT (", ")"), ("lower(", ")"), ("- ", "")][rng.integers(4)]
        inner = "id" if before == "lower(" else "(width > 0)"
        return before * count + inner + after * count + (" = id" if before == "lower(" else "")
    return "width IN (" + ", ".join(map(str, range(count))) + ")"
