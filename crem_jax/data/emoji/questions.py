"""What can be said about a scene: its caption, near-miss captions, and questions with answers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from crem_jax.data.emoji.scene import CELLS, HANDS, NAMES, Scene, SceneObject, tones_of
from crem_jax.data.emoji.sign import SAY, Sign, texts
from crem_jax.errors import CremError

_T = TypeVar("_T")
NUMBERS = ("zero", "one", "two", "three", "four")
SEE = "What do you see?"
MAX_EDITS = 31
"""Every scene has at least this many distinct one-attribute edits."""

_PLURALS = {
    "butterfly": "butterflies",
    "octopus": "octopuses",
    "cactus": "cactuses",
    "thumbs up": "thumbs up",
}
_SIDES = (("left of", "right of"), ("above", "below"))


def caption(scene: Scene) -> str:
    """What there is in reading order: "tiger top left, dark waving hand bottom right"."""
    labels = {thing.cell: thing.label for thing in scene.things}
    if scene.sign:
        labels[scene.sign.cell] = f"sign {scene.sign.text}"
    return ", ".join(f"{labels[cell]} {CELLS[cell]}" for cell in sorted(labels))


def plural(name: str) -> str:
    """The plural of an object name."""
    return _PLURALS.get(name, f"{name}s")


def caption_edits(scene: Scene, n: int, rng: np.random.Generator) -> list[str]:
    """`n` distinct false captions, each one change away from the true one.

    The kinds of change (another object, another place, another skin tone) come up equally often
    while they last. At most MAX_EDITS.
    """
    if not 0 <= n <= MAX_EDITS:
        raise CremError(f"{n} caption edits asked for; expected 0 to {MAX_EDITS}")
    kinds: list[Callable[[Scene, np.random.Generator], Scene]] = [_replaced, _moved]
    if any(thing.tone for thing in scene.things):
        kinds.append(_retoned)
    if scene.sign:
        kinds.append(functools.partial(_rewritten, scene.sign))
    edits: dict[str, None] = {}
    true = caption(scene)
    while len(edits) < n:
        text = caption(kinds[rng.integers(len(kinds))](scene, rng))
        if text != true:
            edits[text] = None
    return list(edits)


def _with(scene: Scene, old: SceneObject, new: SceneObject) -> Scene:
    things = tuple(sorted(new if thing == old else thing for thing in scene.things))
    return dataclasses.replace(scene, things=things)


def _pick(rng: np.random.Generator, options: tuple[_T, ...]) -> _T:
    return options[rng.integers(len(options))]


def _replaced(scene: Scene, rng: np.random.Generator) -> Scene:
    old = _pick(rng, scene.things)
    name = _pick(rng, tuple(name for name in NAMES if name != old.name))
    keeps_tone = old.tone in tones_of(name, "heldout")
    tone = old.tone if keeps_tone else _pick(rng, tones_of(name, "heldout"))
    return _with(scene, old, SceneObject(old.cell, name, tone))


def _moved(scene: Scene, rng: np.random.Generator) -> Scene:
    old = _pick(rng, scene.things)
    kept = {old.cell, scene.sign.cell if scene.sign else None}
    cell = _pick(rng, tuple(cell for cell in range(len(CELLS)) if cell not in kept))
    moved = dataclasses.replace(old, cell=cell)
    there = [thing for thing in scene.things if thing.cell == cell]
    others = [thing for thing in scene.things if thing.cell not in (cell, old.cell)]
    swapped = [dataclasses.replace(thing, cell=old.cell) for thing in there]
    return dataclasses.replace(scene, things=tuple(sorted([moved, *swapped, *others])))


def _rewritten(sign: Sign, scene: Scene, rng: np.random.Generator) -> Scene:
    said = _pick(rng, texts("train"))
    return dataclasses.replace(scene, sign=dataclasses.replace(sign, text=said))


def _retoned(scene: Scene, rng: np.random.Generator) -> Scene:
    old = _pick(rng, tuple(thing for thing in scene.things if thing.tone))
    tones = tuple(tone for tone in tones_of(old.name, "heldout") if tone != old.tone)
    return _with(scene, old, dataclasses.replace(old, tone=_pick(rng, tones)))


def questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """(kind, question, answer) triples, in random order, no question twice.

    Kinds: what, where, count (two questions), relation (up to two), tone, sign. "The tiger" is only
    asked about where the scene has one tiger; "left of" only where the columns differ.
    """
    asked = [_what(scene, rng), ("count", "how many emoji?", NUMBERS[len(scene.things)])]
    asked.append(_count_of_name(scene, rng))
    unique = scene.unique()
    if unique:
        thing = _pick(rng, unique)
        asked.append(("where", f"where is the {thing.name}?", CELLS[thing.cell]))
    hands = tuple(thing for thing in unique if thing.name in HANDS)
    if hands:
        hand = _pick(rng, hands)
        asked.append(("tone", f"which skin tone has the {hand.name}?", hand.tone))
    if scene.sign:
        asked.append(("sign", SAY, scene.sign.text))
    for found in (tuple(_yes_no(unique)), tuple(_what_is_beside(scene))):
        if found:
            # Answers first, then a question with that answer: yes and no come up equally often.
            answer = _pick(rng, tuple(sorted({a for _, a in found})))
            question = _pick(rng, tuple(q for q, a in found if a == answer))
            asked.append(("relation", question, answer))
    return [asked[i] for i in rng.permutation(len(asked))]


def _what(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str]:
    thing = _pick(rng, scene.things)
    return "what", f"what is {CELLS[thing.cell]}?", thing.name


def _count_of_name(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str]:
    repeated = tuple({name for name in scene.names if scene.names.count(name) > 1})
    absent = tuple(name for name in NAMES if name not in scene.names)
    name = _pick(rng, _pick(rng, (repeated or scene.names, scene.names, absent)))
    return "count", f"how many {plural(name)}?", NUMBERS[scene.names.count(name)]


def _axes(thing: SceneObject | Sign) -> tuple[int, int]:
    """(column, row): smaller is further left, further up."""
    return thing.cell % 2, thing.cell // 2


def _yes_no(unique: tuple[SceneObject, ...]) -> Iterator[tuple[str, str]]:
    for one in unique:
        for other in unique:
            for axis, (before, after) in enumerate(_SIDES):
                a, b = _axes(one)[axis], _axes(other)[axis]
                if a != b:
                    yes, no = (before, after) if a < b else (after, before)
                    yield f"is the {one.name} {yes} the {other.name}?", "yes"
                    yield f"is the {one.name} {no} the {other.name}?", "no"


def _what_is_beside(scene: Scene) -> Iterator[tuple[str, str]]:
    for other in scene.unique():
        for axis, (before, after) in enumerate(_SIDES):
            side = after if _axes(other)[axis] == 0 else before
            there: list[SceneObject | Sign] = [
                *scene.things,
                *([scene.sign] if scene.sign else []),
            ]
            beside = [t for t in there if _axes(t)[axis] != _axes(other)[axis]]
            if len(beside) == 1 and isinstance(beside[0], SceneObject):
                yield f"what is {side} the {other.name}?", beside[0].name
