"""The report of a model of the emoji world: searches, answers, and pictures to try it on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from crem_jax.data.emoji.emoji import WHAT, EmojiPictures, load_emoji, same_picture_names
from crem_jax.data.emoji.questions import SEE
from crem_jax.data.emoji.scene import OBJECTS
from crem_jax.data.emoji.scenes import Scenes
from crem_jax.report.figures import Hit, answers_sheet, retrieval_grid

if TYPE_CHECKING:
    from crem_jax.inference.model import Model

WORDS = ("tiger", "pizza", "rocket", "crying face", "flag: Japan", "thumbs up: medium skin tone")
_TRAINED, _SCENES = 512, 64  # training pictures and scenes searched, besides those held out
_Named = tuple[np.ndarray, tuple[str, ...]]


def show(workdir: Path, model: Model) -> list[Path]:
    """Writes retrieval.png (if the model has chorus tokens), answers.png and the folder pictures.

    Returns:
      The paths written.
    """
    written = [workdir / "answers.png", workdir / "pictures"]
    rng = np.random.default_rng(0)
    seen, heldout = EmojiPictures("train"), EmojiPictures("heldout")
    by_name = {seen[i].name: i for i in range(len(seen))}
    some = list(dict.fromkeys([by_name[w] for w in (*OBJECTS, *WORDS) if w in by_name]))
    more = [int(i) for i in rng.permutation(len(seen)) if i not in some]
    emoji = [_named(seen, i) for i in some + more[:_TRAINED]]
    new = [_named(heldout, int(i)) for i in rng.permutation(len(heldout))]
    scenes = [_scene(i) for i in range(_SCENES)]
    _save_pictures([*emoji[:44], *new[:16], *scenes[:12]], workdir / "pictures")
    shown = [*emoji[len(some) : len(some) + 8], *new[:4], *scenes[:4]]
    _answers(model, shown, [WHAT] * 12 + [SEE] * 4, written[0])
    if model.config.num_chorus:
        written.insert(0, workdir / "retrieval.png")
        _retrieval(model, [*new, *emoji], scenes, written[0])
    return written


def _named(source: EmojiPictures, index: int) -> _Named:
    return source.draw(index), same_picture_names(source[index])


def _scene(index: int) -> _Named:
    record = Scenes("heldout").record(index)
    return np.asarray(record.query.images[0]), (record.positives[0].text,)


def _save_pictures(pictures: Sequence[_Named], folder: Path) -> None:
    """Writes PNG files named after what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    for pixels, (name, *_) in pictures:
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        Image.fromarray(pixels).save(folder / f"{slug}.png")


def _answers(model: Model, shown: Sequence[_Named], questions: list[str], path: Path) -> None:
    items = [
        {"image": pixels, "text": question}
        for (pixels, _), question in zip(shown, questions, strict=True)
    ]
    native = model.generate(items)
    compressed = native
    if model.config.num_chorus:
        compressed = model.generate(items, compressed=True)
    rows = [
        (pixels, next((name for name in names if name in both), names[0]), *both)
        for (pixels, names), both in zip(shown, zip(native, compressed, strict=True), strict=True)
    ]
    answers_sheet(rows, path)


def _retrieval(model: Model, emoji: list[_Named], scenes: list[_Named], path: Path) -> None:
    """Words → emoji, captions → scenes, and pictures → names among all names."""
    names = [e.name for e in load_emoji("all")]
    vectors, labels = model.encode([p for p, _ in emoji]), model.encode(names)
    rows: list[tuple[str | np.ndarray, list[Hit]]] = []
    wanted = labels[[names.index(word) for word in WORDS]]
    for word, hits in zip(WORDS, _best(wanted, vectors), strict=True):
        rows.append((word, [(emoji[i][0], emoji[i][1][0], word in emoji[i][1]) for i in hits]))
    captions = [caption for _, (caption,) in scenes]
    ranked = _best(model.encode(captions[:3]), model.encode([p for p, _ in scenes]))
    for caption, hits in zip(captions, ranked, strict=False):
        rows.append((caption, [(scenes[i][0], captions[i], captions[i] == caption) for i in hits]))
    for place in (0, 1, 2, -1, -2):  # held-out pictures come first, training pictures last
        (hits,) = _best(vectors[[place]], labels)
        pixels, true = emoji[place]
        rows.append((pixels, [(names[i], "", names[i] in true) for i in hits]))
    retrieval_grid(rows, path)


def _best(queries: np.ndarray, candidates: np.ndarray, top: int = 5) -> np.ndarray:
    return np.argsort(-(queries @ candidates.T), axis=1, kind="stable")[:, :top]
