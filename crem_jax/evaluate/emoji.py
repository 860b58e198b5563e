"""Evaluation on held-out data of the embedded emoji world: retrieval and answers."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter, defaultdict

import numpy as np

from crem_jax.data.emoji.emoji import WHAT, EmojiPictures, load_emoji, same_picture_names
from crem_jax.data.emoji.questions import MAX_EDITS, questions
from crem_jax.data.emoji.scenes import Scenes
from crem_jax.data.records import Record
from crem_jax.evaluate.ranking import precision_at, ranks
from crem_jax.inference.model import Model
from crem_jax.model.pooling import pool

SCENES = 256
DESCRIBED = 512
ELASTIC = (1, 2, 4, 8, 16)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about held-out scene number `scene`.

    Attributes:
      kind: what, where, count, relation or tone.
    """

    scene: int
    kind: str
    question: str
    answer: str


def evaluate(model: Model) -> dict[str, float | dict[int, float]]:
    """All metrics of the emoji world, by the keys of `summary.json`."""
    scores: dict[str, float | dict[int, float]] = {}
    if model.config.num_chorus:
        scores |= names(model, "heldout")
        scores |= scenes(model)
    return {**scores, **visual_questions(model), **describe(model)}


def quick(model: Model) -> dict[str, float]:
    """Cheap metrics for choosing a checkpoint, on emoji neither trained on nor held out."""
    if not model.config.num_chorus:
        return describe(model, 128)
    scores = names(model, "validation")
    return {key: score for key, score in scores.items() if not isinstance(score, dict)}


@dataclasses.dataclass(frozen=True, eq=False)
class NameStates:
    """Chorus states of a split's pictures and of all names.

    Attributes:
      pictures: float32 [N, K, D]. labels: float32 [M, K, D], of the names.
      positive: bool [N, M], True where a name is the picture's. own: indices of the split's names.
    """

    pictures: np.ndarray
    labels: np.ndarray
    positive: np.ndarray
    own: list[int]

    @staticmethod
    def of(model: Model, split: str) -> NameStates:
        everything, pictures = load_emoji("all"), EmojiPictures(split)
        true = [set(same_picture_names(pictures[i])) for i in range(len(pictures))]
        return NameStates(
            pictures=model.chorus_states([pictures.draw(i) for i in range(len(pictures))]),
            labels=model.chorus_states([emoji.name for emoji in everything]),
            positive=np.array([[emoji.name in names for emoji in everything] for names in true]),
            own=[i for i, emoji in enumerate(everything) if emoji.split == split],
        )

    def scores(self, k: int | None = None) -> dict[str, float]:
        """Precisions with the first k chorus tokens: name_p1, name_p5 and picture_p1."""
        scores = pool(self.pictures, k) @ pool(self.labels, k).T
        own = scores[:, self.own].T, self.positive[:, self.own].T
        return {
            "name_p1": precision_at(scores, self.positive, 1),
            "name_p5": precision_at(scores, self.positive, 5),
            "picture_p1": precision_at(*own, 1),
        }


def names(model: Model, split: str) -> dict[str, float | dict[int, float]]:
    """Retrieval of a split's pictures: their names among all names, and back in the split."""
    states = NameStates.of(model, split)
    prefixes = [k for k in ELASTIC if k <= model.config.num_chorus]
    scores = {f"{split}_{name}": score for name, score in states.scores().items()}
    return {**scores, "elastic": {k: states.scores(k)["name_p5"] for k in prefixes}}


@dataclasses.dataclass(frozen=True, eq=False)
class SceneStates:
    """Chorus states of N held-out scenes, [N, K, D], of their captions and of edited captions."""

    pictures: np.ndarray
    captions: np.ndarray
    edits: np.ndarray

    @staticmethod
    def of(model: Model, count: int = SCENES) -> SceneStates:
        records = scene_records(count)
        return SceneStates(
            pictures=model.chorus_states([record.query for record in records]),
            captions=model.chorus_states([record.positives[0] for record in records]),
            edits=model.chorus_states([item for r in records for item in r.negatives]),
        )

    def scores(self, k: int | None = None) -> dict[str, float]:
        """Precisions with the first k chorus tokens: scene_p1 and scene_hard_p1."""
        pictures, captions = pool(self.pictures, k), pool(self.captions, k)
        count = len(pictures)
        scores, diagonal = pictures @ captions.T, np.eye(count, dtype=bool)
        edits = pool(self.edits, k).reshape(count, MAX_EDITS, -1)
        own = np.einsum("qd,qd->q", pictures, captions)[:, None]
        hard = np.concatenate([own, np.einsum("qd,qmd->qm", pictures, edits)], axis=1)
        first = np.zeros(hard.shape, bool)
        first[:, 0] = True
        to_caption, to_picture = ranks(scores, diagonal), ranks(scores.T, diagonal)
        return {
            "scene_p1": float((np.mean(to_caption == 0) + np.mean(to_picture == 0)) / 2),
            "scene_hard_p1": precision_at(hard, first),
        }


def scenes(model: Model) -> dict[str, float]:
    """Retrieval on held-out scenes: caption ⇄ picture, and captions against one-attribute edits."""
    return SceneStates.of(model).scores()


def visual_questions(model: Model, count: int = SCENES) -> dict[str, float]:
    """Exact-match accuracy on questions about held-out scenes, native and compressed."""
    out = {"scene_vqa_native": exact_answers(model, count)}
    if model.config.num_chorus:
        out["scene_vqa_compressed"] = exact_answers(model, count, compressed=True)
    by_kind: defaultdict[str, Counter[str]] = defaultdict(Counter)
    asked = scene_questions(count)
    for q in asked:
        by_kind[q.kind][q.answer] += 1
    commonest = sum(answers.most_common(1)[0][1] for answers in by_kind.values())
    return out | {"scene_vqa_majority": commonest / len(asked)}


def exact_answers(model: Model, count: int, **options) -> float:
    """Exact-match accuracy on all questions about `count` held-out scenes.

    Args:
      options: compressed, k and sinks, as for `Model.generate`.
    """
    asked, records = scene_questions(count), scene_records(count)
    items = [{"image": records[q.scene].query.images[0], "text": q.question} for q in asked]
    return exact(model.generate(items, max_new_tokens=8, **options), [q.answer for q in asked])


def describe(model: Model, count: int = DESCRIBED) -> dict[str, float]:
    """Exact-match accuracy in naming `count` training emoji, native and compressed."""
    seen = EmojiPictures("train")
    chosen = np.random.default_rng(0).permutation(len(seen))[:count]
    items = [{"image": seen.draw(int(i)), "text": WHAT} for i in chosen]
    truth = [same_picture_names(seen[int(i)]) for i in chosen]
    native = model.generate(items, max_new_tokens=20)
    out = {"describe_seen_exact_native": exact(native, truth)}
    if model.config.num_chorus:
        compressed = model.generate(items, compressed=True, max_new_tokens=20)
        out["describe_seen_exact_compressed"] = exact(compressed, truth)
    return out


@functools.cache
def scene_questions(count: int = SCENES) -> tuple[Question, ...]:
    """All questions about the first `count` held-out scenes."""
    source = Scenes("heldout")
    return tuple(
        Question(i, kind, question, answer)
        for i in range(count)
        for kind, question, answer in questions(source.scene(i), np.random.default_rng(i))
    )


@functools.cache
def scene_records(count: int = SCENES) -> list[Record]:
    """Held-out scenes as records, with all one-attribute edits of the caption as negatives."""
    source = Scenes("heldout", negatives=MAX_EDITS)
    return [source.record(i) for i in range(count)]


def exact(answers: list[str], truth: list) -> float:
    """Share of answers equal to the truth, or to any of several truths."""
    right = [
        answer == true if isinstance(true, str) else answer in true
        for answer, true in zip(answers, truth, strict=True)
    ]
    return float(np.mean(right))
