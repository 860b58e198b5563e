"""Question-answer pairs about a record: prompts for a teacher model, and filters of its output."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from crem_jax.data.records import Item, Record

WRITE = """\
Write {pairs} different questions about {what}, each with its answer, to teach an assistant.
{known}Ask only what {what} itself shows or says: things, attributes, counts, places, text, \
actions, and at least one question that needs a sentence or two to answer. Never mention these \
instructions or a description. Use exactly this form, and nothing else:
Q: the question
A: the answer
"""

REFUSALS = re.compile(
    r"\b(as an? (ai|language model)|i('m| am) (sorry|afraid|unable|not able)|i apologi[sz]e|"
    r"i (can't|cannot|can not|could not|couldn't) (see|view|tell|answer|help|assist|determine|"
    r"access|process|provide)|no (image|picture) (is|was|has been)|(image|picture) (is|was) not "
    r"(given|provided|attached)|please (provide|upload|attach))",
    re.IGNORECASE,
)
_LEAKS = re.compile(
    r"\b(these instructions|the (given |provided )?(caption|description)|the prompt|q:|a:)",
    re.IGNORECASE,
)
_PAIR = re.compile(
    r"^[\s>*#\-]*(?:\d+[.)]\s*)?\**(?:q|question)\s*\d*\**\s*[:.]\**(?P<q>.*?)"
    r"^[\s>*#\-]*(?:\d+[.)]\s*)?\**(?:a|answer)\s*\d*\**\s*[:.]\**(?P<a>.*?)"
    r"(?=^[\s>*#\-]*(?:\d+[.)]\s*)?\**(?:q|question)\s*\d*\**\s*[:.]|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
LONGEST_QUESTION, LONGEST_ANSWER = 300, 1200
"""Characters."""

_LEAK_WORDS = 7

Turn = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a teacher model is to write for a record.

    Attributes:
      pairs: number of question-answer pairs that it writes.
      questions: given questions to answer, one request each, in place of its own.
    """

    pairs: int = 3
    questions: tuple[str, ...] = ()

    def requests(self, record: Record) -> list[Item]:
        """The teacher's prompts for one record, one Item per request."""
        query = record.query
        if self.questions:
            shown = f"{query.text}\n\n" if query.text else ""
            return [Item(shown + question, query.images) for question in self.questions]
        what = "this text" if not query.images else "the picture"
        if len(query.images) > 1:
            what = "these pictures"
        texts = [item.text for item in record.positives if item.text.strip()]
        known = f"What is known of it: {' / '.join(texts)}\n" if texts else ""
        if query.text and query.images:
            known = f"It comes with this text: {query.text}\n{known}"
        elif query.text:
            known = f"The text: {query.text}\n{known}"
        text = WRITE.format(pairs=self.pairs, what=what, known=known)
        return [Item(text, query.images)]

    def read(self, answers: Sequence[str]) -> list[Turn]:
        """The unfiltered pairs in the teacher's answers to `requests`, in the same order."""
        if self.questions:
            return [(q, a.strip()) for q, a in zip(self.questions, answers, strict=True)]
        return parse_pairs(answers[0])


def parse_pairs(text: str) -> list[Turn]:
    """(question, answer) pairs of a text with lines `Q: …` and `A: …`, also numbered or bold."""
    return [(_clean(found["q"]), _clean(found["a"])) for found in _PAIR.finditer(text)]


def filtered(turns: Sequence[Turn], prompt: str) -> tuple[list[Turn], list[str]]:
    """Splits pairs into those worth training on and reasons for dropping the others.

    Args:
      prompt: of the teacher; pairs that repeat it are dropped.

    Returns:
      The pairs kept, and for each other one its reason: "empty", "too long", "refusal", "leaks the
      prompt", "gives itself away" (the question holds the answer) or "duplicate".
    """
    kept, reasons, questions = [], [], set()
    shared = _runs(prompt)
    for question, answer in turns:
        plain = _plain(question), _plain(answer)
        reason = ""
        if not all(plain):
            reason = "empty"
        elif len(question) > LONGEST_QUESTION or len(answer) > LONGEST_ANSWER:
            reason = "too long"
        elif REFUSALS.search(answer) or REFUSALS.search(question):
            reason = "refusal"
        elif _LEAKS.search(question + "\n" + answer) or shared & (_runs(question) | _runs(answer)):
            reason = "leaks the prompt"
        elif " " in plain[1] and f" {plain[1]} " in f" {plain[0]} ":
            reason = "gives itself away"
        elif plain[0] in questions:
            reason = "duplicate"
        if reason:
            reasons.append(reason)
        else:
            questions.add(plain[0])
            kept.append((question, answer))
    return kept, reasons


def without_record_text(prompt: str, record: Record) -> str:
    """The teacher's prompt without the record's own texts, which answers may repeat."""
    for item in (record.query, *record.positives):
        prompt = prompt.replace(item.text, "\n") if item.text else prompt
    return prompt


def _clean(text: str) -> str:
    return re.sub(r"\n{2,}", "\n", text).strip().strip("*").strip()


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _runs(text: str) -> set[str]:
    """All n-grams of `_LEAK_WORDS` words."""
    words = _plain(text).split()
    return {
        " ".join(words[i : i + _LEAK_WORDS]) for i in range(max(0, len(words) - _LEAK_WORDS + 1))
    }
