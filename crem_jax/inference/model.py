"""The Python API: `crem_jax.load(DIR)` returns a Model that encodes and generates."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from crem_jax.config import DTYPES, WEIGHTS, ModelConfig
from crem_jax.data.inputs.padding import ContextRow
from crem_jax.data.records import Item
from crem_jax.distributed import to_host
from crem_jax.errors import CremError
from crem_jax.inference.batches import MAX_ROWS, context_batches
from crem_jax.inference.runner import Runner
from crem_jax.inference.sampling import Sampling
from crem_jax.mesh import make_mesh, replicated
from crem_jax.model import crem
from crem_jax.model.int8 import quantise
from crem_jax.model.pooling import pool
from crem_jax.types import Context, Memory, join_memories


class Model:
    """A trained CREM model: it embeds items (`encode`) and answers questions (`generate`).

    Args:
      config: the model's configuration. params: its parameters.
      tokenizer: a transformers tokenizer with Qwen2-VL's special tokens.
      stored: the parameters that `params` were cast or quantised from, from which the fingerprint
        is computed; None is `params`.

    Attributes:
      runner: the lower-level interface, for prepared rows, padded batches and memories.
    """

    def __init__(self, config: ModelConfig, params: crem.Params, tokenizer, stored: Any = None):
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.runner = Runner(config, params, tokenizer)
        self._stored = params if stored is None else stored

    def spread(self, devices: Sequence[jax.Device] | None = None) -> Model:
        """The same model with its parameters replicated and batches sharded over several devices.

        Args:
          devices: devices of this process; None is all of them.
        """
        devices = jax.local_devices() if devices is None else devices
        if len(devices) < 2:
            return self
        mesh = make_mesh(devices=devices)
        params = jax.device_put(self.params, replicated(mesh))
        model = Model(self.config, params, self.tokenizer, self._stored)
        model.runner = Runner(self.config, params, self.tokenizer, mesh)
        return model

    @property
    def num_parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @functools.cached_property
    def fingerprint(self) -> str:
        """The model's fingerprint (`model.fingerprint`); a library belongs to one of them."""
        from crem_jax.model.fingerprint import fingerprint

        return fingerprint(self.config, self._stored)

    def encode(
        self, items: Sequence[Any], k: int | None = None, dim: int | None = None
    ) -> np.ndarray:
        """Embeds items for retrieval.

        Args:
          items: texts, pictures (PIL image, path object, bytes, uint8 [H, W, 3]), or mappings
            {"text": …, "image": …} / {"images": […]}.
          k: use only the first k chorus tokens; None is all K.
          dim: keep only the first `dim` components, renormalised; None is all D. Meant for models
            trained with `loss.dims`.

        Returns:
          float32 [N, D or dim], L2-normalised: dot products are cosine similarities.

        Raises:
          CremError: the model has no chorus tokens, k is not in 1..K, dim is not in 1..D, or an
            item is unusable.
        """
        self.runner.validate_encode(k, dim)
        return pool(self.chorus_states(items), k, dim)

    def chorus_states(self, items: Sequence[Any]) -> np.ndarray:
        """Final hidden states of the chorus, float32 [N, K, D]; `pooling.pool` gives embeddings.

        Args and errors: as `encode`.
        """
        rows = self._rows(items)
        shape = (len(rows), self.config.num_chorus, self.config.text.hidden_size)
        out = np.zeros(shape, np.float32)
        for chosen, context in self._batches(rows):
            out[chosen] = self.runner.chorus_states(context)[: len(chosen)]
        return out

    def compress(self, items: Sequence[Any]) -> Memory:
        """Compresses items to a Memory of numpy arrays with one row per item.

        `pool(memory.chorus, k)` equals `encode(items, k)`, and `ask` answers from the memory alone.

        Args and errors: as `encode`.
        """
        rows = self._rows(items)
        parts, order = [], []
        for chosen, context in self._batches(rows):
            memory = self.runner.compress(context, self.config.num_chorus)
            parts.append(jax.tree.map(to_host, memory).take(range(len(chosen))))
            order += chosen
        return join_memories(parts).take(np.argsort(order))

    def ask(
        self,
        memory: Memory,
        questions: Sequence[str],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = 0,
    ) -> list[str]:
        """Answers questions about memories, without the images and the vision tower.

        Args:
          memory: N rows, from `compress` or a library; `memory.chorus_only(k)` answers from the
            first k chorus tokens.
          questions: one for each row.
          max_new_tokens, temperature, top_p, seed: as for `generate`.

        Returns:
          N answers.

        Raises:
          CremError: a question is empty or too long for the model, or their number is not N.
        """
        if len(questions) != len(memory.next_position):
            raise CremError(
                f"{len(questions)} questions about {len(memory.next_position)} memories; expected "
                "one for each"
            )
        sampling = Sampling(temperature, top_p, seed)
        tokens = [self.runner.prompter.question(text) for text in questions]
        answers = []
        for number, first in enumerate(range(0, len(tokens), MAX_ROWS)):
            some = tokens[first : first + MAX_ROWS]
            size = 1 << (len(some) - 1).bit_length()
            rows = first + np.minimum(np.arange(size), len(some) - 1)
            part = memory.take(rows)
            self.runner.validate_positions(part, some)
            answers += self.runner.answer(part, some, sampling.for_batch(number), max_new_tokens)
        return answers

    def generate(
        self,
        items: Sequence[Any],
        compressed: bool = False,
        k: int | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = 0,
        sinks: int = 0,
    ) -> list[str]:
        """Generates an answer for each item.

        Args:
          items: as for `encode`; a mapping's "text" is the question about its images.
          compressed: answer from the chorus tokens alone.
          k: with `compressed`, use only the first k chorus tokens; None is all K.
          max_new_tokens: largest number of tokens of an answer.
          temperature, top_p, seed: see `inference.sampling.Sampling`; the default is greedy.
          sinks: with `compressed`, also keep the first `sinks` slots of the context (the system
            prompt's).

        Raises:
          CremError: as `encode`, or a question is empty.
        """
        self.runner.validate_generate(compressed, k, sinks)
        sampling = Sampling(temperature, top_p, seed)
        pairs = [self._question(item) for item in _as_list(items)]
        questions = [question for _, question in pairs]
        answers = [""] * len(pairs)
        visible = self._num_visible_chorus(compressed, k)
        for number, (chosen, context) in enumerate(self._batches([row for row, _ in pairs])):
            with self.runner.mesh_in_use():
                memory = self.runner.compress(context, visible, sinks)
                some = [questions[i] for i in chosen]
                made = self.runner.answer(memory, some, sampling.for_batch(number), max_new_tokens)
            for i, answer in zip(chosen, made, strict=True):
                answers[i] = answer
        return answers

    def stream(
        self,
        item: Any,
        compressed: bool = False,
        k: int | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = 0,
        sinks: int = 0,
    ) -> Iterator[str]:
        """Yields one answer in pieces of text as it is generated; arguments as of `generate`."""
        self.runner.validate_generate(compressed, k, sinks)
        row, question = self._question(item)
        sampling = Sampling(temperature, top_p, seed).for_batch()
        ((_, context),) = context_batches([row], self.config)
        memory = self.runner.compress(context, self._num_visible_chorus(compressed, k), sinks)
        answers = self.runner.answer_stream(memory, [question], sampling, [max_new_tokens])
        while not answers.over:
            (piece,) = answers.advance()
            if piece:
                yield piece

    def _rows(self, items: Sequence[Any]) -> list[ContextRow]:
        self.runner.validate_encode()
        return [self.runner.prepare(item) for item in _as_list(items)]

    def _question(self, item: Any) -> tuple[ContextRow, np.ndarray]:
        return self.runner.prompter.question_about(Item.of(item))

    def _batches(self, rows: Sequence[ContextRow]) -> Iterator[tuple[list[int], Context]]:
        return context_batches(rows, self.config, self.runner.row_multiple)

    def _num_visible_chorus(self, compressed: bool, k: int | None) -> int | None:
        return (k or self.config.num_chorus) if compressed else None


def load(
    directory: str | Path,
    step: int | str = "best",
    dtype: str = "float32",
    weights: str | None = None,
) -> Model:
    """Opens a run directory (the best checkpoint unless `step` says "last" or a number) or a
    Hugging Face directory.

    Args:
      dtype: type of the parameters and of the arithmetic, "float32" or "bfloat16".
      weights: "int8" quantises the decoder's kernels (`model.int8`); None leaves them in `dtype`.

    Raises:
      FileNotFoundError, CremError: it is not a model directory, or is damaged; the message says
        how.
    """
    from crem_jax.checkpoints.open import load_parts, open_parts

    if dtype not in DTYPES:
        raise CremError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if weights not in (None, *WEIGHTS):
        raise CremError(f"weights {weights!r} is not one of {', '.join(WEIGHTS)}")
    if weights:
        config, stored, tokenizer = open_parts(directory, step)
        params = jax.device_put(quantise(stored, dtype))
    else:
        stored = None
        config, params, tokenizer = load_parts(directory, step, dtype=dtype)
    return Model(config.replace(dtype=dtype), params, tokenizer, stored)


def _as_list(items: Any) -> list[Any]:
    if isinstance(items, str | bytes) or not isinstance(items, Sequence):
        raise CremError(f"expected a list of items, got a {type(items).__name__}")
    return list(items)
