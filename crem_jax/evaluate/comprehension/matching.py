"""Parses answers by the rules of VLMEvalKit's exact matching, without a judge model.

The rules are kept as published, so that scores are comparable, even where they are odd: full-width
punctuation is not stripped from a letter, and "answer is cat" names option C.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

NONE = "Z"
"""The result for a refusal, which means no option."""

YES, NO, UNKNOWN = "Yes", "No", "Unknown"

_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_SAYS = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_LAST = 4  # trailing tokens among which the letter is looked for
_YES_NO_MARKS = ';/[]"{}()=+\\_-><@`,?!'


def option_of(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer means; NONE for a refusal, None if it is not clear.

    Args:
      options: letter -> text.
    """
    return _by_letter(answer, options) or _by_text(answer, options)


def yes_or_no(answer: str) -> str:
    """YES or NO if the answer has exactly one of these words, else UNKNOWN."""
    words = _without_punctuation(answer.lower()).split()
    found = ("yes" in words, "no" in words)
    return {(True, False): YES, (False, True): NO}.get(found, UNKNOWN)


def _by_letter(answer: str, options: Mapping[str, str]) -> str | None:
    if _FAILED in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return NONE
    tokens = answer.translate(_MARKS).split()
    named = [letter for letter in options if letter in tokens]
    if len(named) == 1 and tokens.index(named[0]) >= len(tokens) - _LAST:
        return named[0]
    if not named and NONE in tokens:
        return NONE
    found = _SAYS.search(answer)
    return found[1].upper() if found and found[1].upper() in options else None


def _by_text(answer: str, options: Mapping[str, str]) -> str | None:
    if len(answer) > 2 * sum(map(len, options.values())):
        return None
    named = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return named[0] if len(named) == 1 else None


def _without_punctuation(text: str) -> str:
    """Removes marks next to a space, or all if a comma is between digits; others become spaces."""
    digits = re.search(r"\d,\d", text) is not None
    out = text
    for mark in _YES_NO_MARKS:
        gone = digits or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if gone else " ")
    return re.sub(r"\.(?!\d)", "", out)
