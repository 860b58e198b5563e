"""The scores of a run: what is measured of every model, and how the figures are put together.

Three figures stand for the paper's three: find (there MMEB), native and compressed (there the mean
of comprehension sets), each the mean of two parts. "tokens" are teacher-forced: the share of a
held-out scene's caption tokens that are the model's first choice.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import jax
import numpy as np

from crem_jax.ablation.study import Row, Study
from crem_jax.data.emoji.questions import SEE
from crem_jax.data.emoji.scenes import Scenes
from crem_jax.data.emoji.sign import SAY
from crem_jax.data.records import Picture
from crem_jax.evaluate import emoji
from crem_jax.evaluate.tokens import token_accuracy
from crem_jax.inference.batches import context_batches
from crem_jax.inference.model import Model
from crem_jax.model import crem
from crem_jax.types import CONTEXT, Context, Memory

HEADLINES = ("find", "native", "compressed")
COLUMNS = {
    "find": "find",
    "native": "tell, native",
    "compressed": "tell, compressed",
    "name_p5": "name P@5",
    "scene_p1": "scene P@1",
    "scene_hard_p1": "hard P@1",
    "vqa_native": "VQA native",
    "vqa_compressed": "VQA compressed",
    "tokens_native": "tokens native",
    "tokens_compressed": "tokens compressed",
    "cache": "cache",
}
SIGN_COLUMNS = {
    "sign_native": "sign read, native",
    "sign_compressed": "sign read, compressed",
    "sign_tokens_native": "sign tokens, native",
    "sign_tokens_compressed": "sign tokens, compressed",
}
SIGN_HEADLINES = ("sign_compressed", "sign_tokens_compressed")
_SIGNS_IN = 512  # held-out scenes among which signs are looked for


def columns(study: Study) -> dict[str, str]:
    """Names of a study's columns."""
    return {**COLUMNS, **(SIGN_COLUMNS if study.signs else {})}


def headlines(study: Study) -> tuple[str, ...]:
    """Columns that are judged and drawn."""
    return (*HEADLINES, *(SIGN_HEADLINES if study.signs else ()))


class ModelScores:
    """Scores of one model; what several rows of a table share is computed once.

    Args:
      scenes: how many held-out scenes are shown.
    """

    def __init__(self, model: Model, scenes: int = emoji.SCENES):
        self.model, self.scenes = model, scenes
        self._answered: dict[tuple, float] = {}

    def scores(self, row: Row, signs: bool = False) -> dict[str, float]:
        """Every column, read as the row says; with `signs` those of SIGN_COLUMNS too."""
        scores = {"name_p5": self._names.scores(row.k)["name_p5"]}
        scores |= self._captioned.scores(row.k)
        parts = [("vqa", self._exact), ("tokens", self._tokens)]
        if signs:
            parts += [("sign", self._sign), ("sign_tokens", self._sign_tokens)]
        for name, ask in parts:
            k = row.k or self.model.config.num_chorus
            scores[f"{name}_native"] = self._once(ask)
            scores[f"{name}_compressed"] = self._once(ask, compressed=True, k=k, sinks=row.sinks)
        return scores | {
            "find": (scores["name_p5"] + scores["scene_p1"]) / 2,
            "native": (scores["vqa_native"] + scores["tokens_native"]) / 2,
            "compressed": (scores["vqa_compressed"] + scores["tokens_compressed"]) / 2,
            "cache": cache_share(self.model, row.k, row.sinks),
        }

    @functools.cached_property
    def _names(self) -> emoji.NameStates:
        return emoji.NameStates.of(self.model, "heldout")

    @functools.cached_property
    def _captioned(self) -> emoji.SceneStates:
        return emoji.SceneStates.of(self.model, self.scenes)

    def _once(self, ask: Callable[..., float], **how) -> float:
        key = ask.__name__, *how.values()
        if key not in self._answered:
            self._answered[key] = ask(**how)
        return self._answered[key]

    def _exact(self, **how) -> float:
        return emoji.exact_answers(self.model, self.scenes, **how)

    def _tokens(self, **how) -> float:
        records = emoji.scene_records(self.scenes)
        pictures = [record.query.images[0] for record in records]
        turns = [(SEE, record.positives[0].text) for record in records]
        return token_accuracy(self.model, pictures, turns, **how)

    def _sign(self, **how) -> float:
        pictures, texts = signs(self.scenes)
        items = [{"image": picture, "text": SAY} for picture in pictures]
        return emoji.exact(self.model.generate(items, max_new_tokens=8, **how), texts)

    def _sign_tokens(self, **how) -> float:
        pictures, texts = signs(self.scenes)
        turns = [(SAY, text) for text in texts]
        return token_accuracy(self.model, pictures, turns, **how)


@functools.cache
def signs(count: int) -> tuple[list[Picture], list[str]]:
    """Pictures of `count` held-out scenes with a sign, and what their signs say."""
    source = Scenes("heldout", text=1.0)
    signed = ((i, sign) for i in range(_SIGNS_IN) if (sign := source.scene(i).sign))
    chosen = list(itertools.islice(signed, count))
    pictures = [source.record(i).query.images[0] for i, _ in chosen]
    return pictures, [sign.text for _, sign in chosen]


def cache_share(model: Model, k: int | None = None, sinks: int = 0) -> float:
    """Slots that a compressed memory of a held-out scene keeps, over the slots of its context."""
    row = model.runner.prepare(emoji.scene_records(1)[0].query)
    ((_, context),) = context_batches([row], model.config)

    def compressed(context: Context) -> Memory:
        return crem.compress(model.config, model.params, context).chorus_only(k, sinks)

    slots = jax.eval_shape(compressed, context).kv.keys.shape[3]
    return slots / int(np.sum(context.region == CONTEXT))
