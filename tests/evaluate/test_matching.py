"""What answers are taken to say, case by case as VLMEvalKit's exact matching has it."""

from __future__ import annotations

import pytest

from crem_jax.evaluate.comprehension.matching import NONE, option_of, yes_or_no

ANIMALS = {"A": "a teddy bear", "B": "rabbit", "C": "cat", "D": "dog"}
SHORT = {"A": "3", "B": "5", "C": "12", "D": "none of them"}
TWO = {"A": "left", "B": "right"}
SIX = {**ANIMALS, "E": "a cow", "F": "a very small mouse"}
CHINESE = {"A": "泰迪熊", "B": "兔子", "C": "猫", "D": "狗"}

OPTION_CASES = [
    # a letter, and what may stand around it
    ("A", ANIMALS, "A"),
    ("D", ANIMALS, "D"),
    ("B.", ANIMALS, "B"),
    ("(C)", ANIMALS, "C"),
    ("[D]", ANIMALS, "D"),
    ("{A}", ANIMALS, "A"),
    ("**B**", ANIMALS, "B"),
    ("# C", ANIMALS, "C"),
    ("C:", ANIMALS, "C"),
    ("D;", ANIMALS, "D"),
    ("B!", ANIMALS, "B"),
    ("\nB\n", ANIMALS, "B"),
    ("B, B", ANIMALS, "B"),
    ("F", SIX, "F"),
    # no option's letter, or not one by itself
    ("E", ANIMALS, None),
    ("b", ANIMALS, None),
    ("AB", ANIMALS, None),
    ("B-", ANIMALS, None),
    ("'B'", ANIMALS, None),
    ("C?", ANIMALS, None),
    ("C", TWO, None),
    ("", ANIMALS, None),
    ("   ", ANIMALS, None),
    # a letter and its option
    ("B. rabbit", ANIMALS, "B"),
    ("A. a teddy bear", ANIMALS, "A"),
    ("C) cat", ANIMALS, "C"),
    ("B: it is a rabbit", ANIMALS, "B"),  # a fifth token from the end; it is the text that counts
    ("B. right", TWO, "B"),
    # sentences
    ("The answer is B.", ANIMALS, "B"),
    ("the answer is (C)", ANIMALS, "C"),
    ("Answer: D", ANIMALS, "D"),
    ("The correct answer is **D**, I believe, from what can be seen there", ANIMALS, "D"),
    ("The correct answer is C because the animal has whiskers and ears", ANIMALS, "C"),
    ("answer is d for sure, as everybody can see in this picture", ANIMALS, "D"),
    ("The answer  is\nA and nothing else, after long thought about it", ANIMALS, "A"),
    ("The answer is E", ANIMALS, None),
    ("The answer is E", SIX, "E"),
    ("The answer is cat", {"A": "a cat", "B": "dog"}, None),
    ("The answer is cat", ANIMALS, "C"),
    ("The answer is dog", SIX, "D"),
    ("The answer is blue, most likely", ANIMALS, "B"),  # as published: any word with that letter
    ("Option C is what the picture shows us", ANIMALS, None),
    ("I would choose option B here", ANIMALS, "B"),
    ("A dog", ANIMALS, "A"),  # as published: the article is a letter
    ("A cat sits on a wide green sofa", ANIMALS, "C"),
    # several letters
    ("A and B", ANIMALS, None),
    ("A or C, I cannot say", ANIMALS, None),
    ("Not A, so the answer is B", ANIMALS, "B"),
    ("A, B, C, D", ANIMALS, None),
    ("It is either B or D", ANIMALS, None),
    # the option's text
    ("rabbit", ANIMALS, "B"),
    ("It's a rabbit.", ANIMALS, "B"),
    ("RABBIT", ANIMALS, "B"),
    ("a teddy bear", ANIMALS, "A"),
    ("a cat, not a dog", ANIMALS, None),
    ("a category error", ANIMALS, "C"),
    ("Spider", ANIMALS, None),
    ("5", SHORT, "B"),
    ("12", SHORT, "C"),
    ("35", SHORT, None),
    ("none of them", SHORT, "D"),
    ("The thing that one can see in the picture is certainly a rabbit", ANIMALS, None),
    # refusals
    ("Z", ANIMALS, NONE),
    ("Z.", ANIMALS, NONE),
    ("Z, not a rabbit", ANIMALS, NONE),
    ("Sorry, I can't help with images of people yet. B", ANIMALS, NONE),
    ("I can't process this file.", ANIMALS, NONE),
    ("I'm sorry, but without the image provided I cannot tell. rabbit", ANIMALS, NONE),
    ("Cannot determine the answer", ANIMALS, NONE),
    ("cannot determine the answer", ANIMALS, None),
    ("Failed to obtain answer via API. B", ANIMALS, None),
    ("I don't know", ANIMALS, None),
    # full-width punctuation stays, as published
    ("答案是 B", CHINESE, "B"),
    ("答案是B。", CHINESE, None),
    ("B。", CHINESE, None),
    ("（B）", CHINESE, None),
    ("答案：C", CHINESE, None),
    ("A、B", CHINESE, None),
    ("兔子", CHINESE, "B"),
    ("是兔子。", CHINESE, "B"),
    ("猫和狗", CHINESE, None),
    ("狗。选 D", CHINESE, "D"),
]

YES_NO_CASES = [
    ("Yes", "Yes"),
    ("yes.", "Yes"),
    ("No, it is not.", "No"),
    ("NO!", "No"),
    ("Yes, there is.", "Yes"),
    ("The answer is yes", "Yes"),
    ("Yes and no", "Unknown"),
    ("no-one", "No"),
    ("not at all", "Unknown"),
    ("yesterday", "Unknown"),
    ("It is 1,000 (yes)", "Yes"),
    ("yes.no", "Unknown"),
    ("yes/no", "Unknown"),
    ("yes,no 1,000", "Unknown"),
    ("", "Unknown"),
    ("Ja", "Unknown"),
]


@pytest.mark.parametrize("answer, options, expected", OPTION_CASES)
def test_the_option_that_an_answer_means(answer, options, expected):
    assert option_of(answer, options) == expected


@pytest.mark.parametrize("answer, expected", YES_NO_CASES)
def test_yes_or_no(answer, expected):
    assert yes_or_no(answer) == expected
