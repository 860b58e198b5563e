"""A model as an encoder for mteb 2, of texts, images and both in one input.

import crem_jax, mteb
from crem_jax.evaluate.mteb import CremEncoder

encoder = CremEncoder(crem_jax.load("runs/quickstart"), "me/my-model")
mteb.mock_run(encoder)  # mteb's own tiny tasks, offline
mteb.evaluate(encoder, mteb.get_tasks(tasks=["Flickr30kI2TRetrieval"]))
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder, get_prompt
from tqdm.auto import tqdm

from crem_jax.data.inputs.prompt import ContextRow, PromptError
from crem_jax.data.records import Item, Picture
from crem_jax.errors import CremError
from crem_jax.inference.model import Model

_AT_ONCE = 256  # inputs whose patches are held in memory
_MARGIN = 4  # tokens by which a truncated text may grow when tokenised again


class CremEncoder(AbsEncoder):
    """A CREM model as an mteb encoder, for `mteb.evaluate`.

    An empty text becomes the bare prompt, and a text that exceeds the model's positions is
    truncated, as mteb's data sets require.

    Args:
      model: a model with chorus tokens, from `crem_jax.load`.
      name: "organization/name", under which mteb stores results.
      k: use only the first k chorus tokens; None is all.
      prompts: instructions prepended to the text, by task name, task type, "query" or "document"
        (in mteb's order of precedence): {"query": "Find a picture of: "}.
      meta: further fields of mteb's ModelMeta, such as license="apache-2.0".

    Raises:
      ValueError: the model has no chorus tokens, k is not in 1..K, or the name has no slash.
      KeyError: a prompt's key is unknown to mteb.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        *,
        k: int | None = None,
        prompts: Mapping[str, str] | None = None,
        **meta: Any,
    ):
        model.encode(["."], k)  # reports errors before the data sets are read
        self.model, self.k = model, k
        self.prompts = self.validate_task_to_prompt_name(dict(prompts or {}))
        self.mteb_model_meta = model_meta(model, name, k, bool(prompts), **meta)

    def encode(
        self,
        inputs: Iterable[Mapping[str, list]],
        *,
        task_metadata,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type=None,
        show_progress_bar: bool = True,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embeds batches {"text": [...], "image": [...]} (either key or both) as float32 [N, D]."""
        prompt = get_prompt(self.prompts, task_metadata, prompt_type) or ""
        rows: list[ContextRow] = []
        done = [np.zeros((0, self.model.config.text.hidden_size), np.float32)]
        for batch in tqdm(inputs, desc="Encoding", disable=not show_progress_bar):
            rows += [self._row(prompt + text, images) for text, images in _pairs(batch)]
            if len(rows) >= _AT_ONCE:
                done.append(self.model.encode(rows, self.k))
                rows = []
        return np.concatenate([*done, self.model.encode(rows, self.k)])

    def _row(self, text: str, images: tuple[Picture, ...]) -> ContextRow:
        context, config = self.model.runner.prompter.context, self.model.config
        bare = Item(images=images) if images else None
        if not text.strip():
            return context(bare)
        try:
            return context(Item(text, images))
        except PromptError:
            room = config.text.max_positions - config.num_chorus - _MARGIN
            room -= int(context(bare).position.max()) + 1
            tokens = self.model.runner.prompter.user_tokens(text)[: max(room, 1)]
            text = self.model.tokenizer.decode(tokens).rstrip("\ufffd")
            return context(Item(text, images) if text.strip() else bare)


def model_meta(
    model: Model, name: str, k: int | None = None, instructed: bool = False, **fields: Any
) -> ModelMeta:
    """mteb's metadata of a model.

    The revision is a fingerprint of the weights, so that mteb's cache never mixes up the results of
    different weights.

    Args:
      k, name: as for `CremEncoder`. instructed: whether prompts are used.
      fields: further fields of ModelMeta.
    """
    leaves = jax.tree.leaves(model.params)
    tables = [leaf for key, leaf in model.params["backbone"].items() if key in _TABLES]
    return ModelMeta(
        **{
            "loader": None,
            "name": name,
            "revision": _fingerprint(leaves),
            "release_date": None,
            "languages": None,
            "n_parameters": sum(leaf.size for leaf in leaves),
            "n_embedding_parameters": sum(leaf.size for leaf in tables),
            "memory_usage_mb": sum(leaf.nbytes for leaf in leaves) / 2**20,
            "max_tokens": model.config.text.max_positions,
            "embed_dim": model.config.text.hidden_size,
            "license": None,
            "open_weights": None,
            "public_training_code": None,
            "public_training_data": None,
            "framework": ["JAX"],
            "reference": "https://arxiv.org/abs/2602.19091",
            "similarity_fn_name": "cosine",
            "use_instructions": instructed,
            "training_datasets": None,
            "modalities": ["image", "text"],
            "experiment_kwargs": {"k": k} if k else None,
            **fields,
        }
    )


_TABLES = ("embedding", "head")


def _fingerprint(leaves: list[jax.Array]) -> str:
    sums = [[jnp.sum(x, dtype=jnp.float32) for x in (leaf, jnp.abs(leaf))] for leaf in leaves]
    return hashlib.sha256(np.asarray(jax.device_get(sums), np.float32).tobytes()).hexdigest()[:16]


def _pairs(batch: Mapping[str, list]) -> Iterator[tuple[str, tuple[Picture, ...]]]:
    texts, images = batch.get("text"), batch.get("image")
    given = images if texts is None else texts
    if given is None:
        raise CremError(f"a batch has neither 'text' nor 'image', only {', '.join(batch)}")
    for i in range(len(given)):
        picture = None if images is None else images[i]
        yield (texts[i] if texts is not None else ""), () if picture is None else (picture,)
