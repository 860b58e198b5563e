"""The Python face: `crem_jax.load(DIR)` gives a Model that encodes and generates."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from crem_jax.config import DTYPES, WEIGHTS, ModelConfig
from crem_jax.data.inputs.padding import ContextRow, PromptError
from crem_jax.data.inputs.prompt import Prompter
from crem_jax.data.records import Item
from crem_jax.distributed import to_host
from crem_jax.errors import CremError
from crem_jax.inference import decoding
from crem_jax.inference.batches import MAX_ROWS, context_batches, pad_questions
from crem_jax.inference.decoding import Sampling
from crem_jax.inference.streaming import AnswerStream, answer_text
from crem_jax.mesh import make_mesh, replicated
from crem_jax.mesh import rows as by_rows
from crem_jax.model import crem
from crem_jax.model.int8 import quantise
from crem_jax.types import Context, Memory

_ODD = 0x9E3779B1
"""Leads from one batch's seed to the next: far, and to all of them before the first comes again."""


class Model:
    """A trained CREM model: librarian (`encode`) and storyteller (`generate`).

    Args:
      config: the model's. params: its parameters.
      tokenizer: a transformers tokenizer with Qwen2-VL's special tokens.
      stored: the parameters that `params` were rounded from, if a library shall know the model by
        them.
    """

    def __init__(self, config: ModelConfig, params: crem.Params, tokenizer, stored: Any = None):
        self._stored = params if stored is None else stored
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.prompter = Prompter(config, tokenizer)
        self._mesh: jax.sharding.Mesh | None = None

    def spread(self, devices: Sequence[jax.Device] | None = None) -> Model:
        """The same model on several devices, each computing its share of the rows of a batch.

        Args:
          devices: of this process; default: all of them.
        """
        devices = jax.local_devices() if devices is None else devices
        if len(devices) < 2:
            return self
        mesh = make_mesh(devices=devices)
        params = jax.device_put(self.params, replicated(mesh))
        model = Model(self.config, params, self.tokenizer, self._stored)
        model._mesh = mesh
        return model

    @property
    def num_parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def unit(self) -> int:
        """Batches have multiples of so many rows: the devices that share them."""
        return self._mesh.size if self._mesh else 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names the model's config and numbers; a library is of one of them."""
        from crem_jax.model.fingerprint import fingerprint

        return fingerprint(self.config, self._stored)

    def encode(
        self, items: Sequence[Any], k: int | None = None, dim: int | None = None
    ) -> np.ndarray:
        """Search embeddings.

        Args:
          items: texts, pictures (PIL image, path object, bytes, uint8 [H, W, 3]), or mappings
            {"text": …, "image": …} / {"images": […]}.
          k: read only the first k chorus tokens; None is all K.
          dim: keep only the first `dim` numbers, normalised anew; None is all D. A model trained
            with `loss.dims` is good at those.

        Returns:
          float32 [N, D or dim], L2-normalised: dot products are cosine similarities.

        Raises:
          ValueError: the model has no chorus tokens, k is not in 1..K, dim is not in 1..D, or an
            item is unusable.
        """
        self.validate_encode(k, dim)
        return pool(self.chorus_states(items), k, dim)

    def prepare(self, item: Any) -> ContextRow:
        """An item as `encode` reads it: tokens and patches, far smaller than a decoded picture.

        `encode` and `chorus_states` take the result in place of the item.

        Raises:
          ValueError: the item is unusable.
        """
        return item if isinstance(item, ContextRow) else self.prompter.context(Item.of(item))

    def prepare_question(
        self, value: Any, turns: Sequence[tuple[str, str]] = ()
    ) -> tuple[ContextRow, np.ndarray]:
        """An item as `generate` reads it: the context of its pictures, and its text's tokens.

        Args:
          turns: (question, answer) pairs that came before it in the same conversation.

        Raises:
          ValueError: the item is unusable, or does not fit the model.
        """
        item = Item.of(value)
        question = self.question_tokens(item.text, turns)
        row = self.prompter.context(Item(images=item.images) if item.images else None)
        needed, limit = len(row.tokens) + len(question), self.config.text.max_positions
        if needed + self.config.num_chorus > limit:
            raise PromptError(
                f"the question needs {needed} tokens with its pictures; the model has {limit} "
                f"positions. It begins {item.text[:40]!r}"
            )
        return row, question

    def question_tokens(self, text: str, turns: Sequence[tuple[str, str]] = ()) -> np.ndarray:
        """Tokens of a question up to where its answer begins, int32 [n].

        Raises:
          ValueError: it is empty.
        """
        if not text.strip():
            raise PromptError("the question is empty; expected some text")
        return self.prompter.question(text, turns)

    def chorus_states(self, items: Sequence[Any]) -> np.ndarray:
        """Final hidden states of the chorus, float32 [N, K, D]: `pool(states, k, dim)` is `encode`.

        Args and errors: as `encode`.
        """
        self._check_chorus()
        rows = [self.prepare(item) for item in _as_list(items)]
        shape = (len(rows), self.config.num_chorus, self.config.text.hidden_size)
        out = np.zeros(shape, np.float32)
        for chosen, context in context_batches(rows, self.config, self.unit):
            out[chosen] = self.states_of(context)[: len(chosen)]
        return out

    def states_of(self, context: Context) -> np.ndarray:
        """Chorus states, float32 [B, K, D], of a padded batch (`inference.batches.fill_batch`)."""
        with self._placed(context) as context:
            return to_host(_chorus(self.config, self.params, context))

    def compress(self, items: Sequence[Any]) -> Memory:
        """Compressed memories, numpy arrays of N rows in the order of the items.

        `pool(memory.chorus, k)` is `encode(items, k)`, and `ask` answers from the memory alone.

        Args and errors: as `encode`.
        """
        self._check_chorus()
        rows = [self.prepare(item) for item in _as_list(items)]
        parts, order = [], []
        for chosen, context in context_batches(rows, self.config, self.unit):
            with self._placed(context) as context:
                memory = _memory(self.config, self.params, context, self.config.num_chorus)
            parts.append(jax.tree.map(to_host, memory).take(range(len(chosen))))
            order += chosen
        return join_memories(parts).take(np.argsort(order))

    def memory_of(self, context: Context, num_visible_chorus: int | None) -> Memory:
        """The memory of a padded batch, on the device.

        Args:
          num_visible_chorus: None keeps everything, k the first k chorus tokens.
        """
        with self._placed(context) as context:
            return _memory(self.config, self.params, context, num_visible_chorus)

    def memories_of(
        self, context: Context, num_visible_chorus: Sequence[int | None]
    ) -> list[Memory]:
        """Memories of a padded batch (`inference.batches.fill_batch`) on the device, for `ask`.

        Args:
          kept: what each keeps: None everything, for native answers; k the first k chorus tokens.
        """
        with self._placed(context) as context:
            if len(num_visible_chorus) == 1:
                return [_memory(self.config, self.params, context, num_visible_chorus[0])]
            whole = _memory(self.config, self.params, context, None)
            return [whole if k is None else whole.chorus_only(k) for k in num_visible_chorus]

    def ask(
        self,
        memory: Memory,
        questions: Sequence[str],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """Answers from memories, with no picture and no vision tower.

        Args:
          memory: of N rows, from `compress`, `memories_of` or a library; `memory.chorus_only(k)`
            answers from its first k chorus tokens. questions: one for each row.
          temperature, top_p, seed: as for `generate`.

        Raises:
          ValueError: an empty question, one that does not fit the model, or too few of them.
        """
        if len(questions) != len(memory.next_position):
            raise CremError(
                f"{len(questions)} questions about {len(memory.next_position)} memories; expected "
                "one for each"
            )
        asked = [self.question_tokens(text) for text in questions]
        answers = []
        for number, first in enumerate(range(0, len(asked), MAX_ROWS)):
            sampling = _sampling(temperature, top_p, seed, number)
            some = asked[first : first + MAX_ROWS]
            size = 1 << (len(some) - 1).bit_length()
            rows = first + np.minimum(np.arange(size), len(some) - 1)
            part = memory.take(rows)
            self.check_positions(part, some)
            tokens, valid = self._questions(some, size)
            out = decoding.generate(
                self.config, self.params, part, tokens, valid, sampling, max_new_tokens
            )
            answers += [self._text(ids) for ids in to_host(out)[: len(some)]]
        return answers

    def generate(
        self,
        items: Sequence[Any],
        compressed: bool = False,
        k: int | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        sinks: int = 0,
    ) -> list[str]:
        """Answers, one for each item.

        Args:
          items: as for `encode`; a mapping's "text" is the question about its pictures.
          compressed: answer from the chorus alone.
          k: with `compressed`, from its first k tokens.
          temperature: 0 is greedy. top_p: nucleus.
          sinks: with `compressed`, also keep the first so many slots of the context, such as those
            of the system prompt.

        Raises:
          ValueError: as `encode`, or an empty question.
        """
        self.validate_generate(compressed, k, sinks)
        asked = [self.prepare_question(item) for item in _as_list(items)]
        contexts, questions = [row for row, _ in asked], [question for _, question in asked]
        answers = [""] * len(contexts)
        batches = context_batches(contexts, self.config, self.unit)
        for number, (chosen, context) in enumerate(batches):
            sampling = _sampling(temperature, top_p, seed, number)
            tokens, valid = self._questions([questions[i] for i in chosen], len(context.tokens))
            with self._placed(context) as context:
                memory = _memory(
                    self.config,
                    self.params,
                    context,
                    self._num_visible_chorus(compressed, k),
                    sinks,
                )
                out = decoding.generate(
                    self.config, self.params, memory, tokens, valid, sampling, max_new_tokens
                )
            for i, ids in zip(chosen, to_host(out), strict=False):
                answers[i] = self._text(ids)
        return answers

    def stream(
        self,
        item: Any,
        compressed: bool = False,
        k: int | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        sinks: int = 0,
    ) -> Iterator[str]:
        """One answer, piece by piece; the arguments of `generate`."""
        self.validate_generate(compressed, k, sinks)
        row, question = self.prepare_question(item)
        sampling = _sampling(temperature, top_p, seed)
        ((_, context),) = context_batches([row], self.config)
        memory = _memory(
            self.config, self.params, context, self._num_visible_chorus(compressed, k), sinks
        )
        answering = AnswerStream(
            self.config, self.params, self.tokenizer, memory, [question], sampling, [max_new_tokens]
        )
        while not answering.over:
            (piece,) = answering.advance()
            if piece:
                yield piece

    @contextlib.contextmanager
    def _placed(self, context: Context) -> Iterator[Context]:
        """A batch on the model's devices, whose mesh is in use inside."""
        if self._mesh is None:
            yield context
            return
        with jax.set_mesh(self._mesh):
            yield jax.device_put(context, by_rows(self._mesh))

    def validate_encode(self, k: int | None = None, dim: int | None = None) -> None:
        """Raises ValueError where `encode` would, whatever the items."""
        self._check_chorus()
        self._check_k(k)
        width = self.config.text.hidden_size
        if dim is not None and not 1 <= dim <= width:
            raise CremError(f"dim = {dim} is not in 1..{width} (numbers of an embedding)")

    def _check_chorus(self) -> None:
        if not self.config.num_chorus:
            raise CremError(
                "this model cannot find: it has no chorus tokens (a plain backbone). "
                "Give it some with `crem import --chorus 16` and train it"
            )

    def check_positions(self, memory: Memory, questions: Sequence[np.ndarray]) -> None:
        """Raises ValueError if a question about a memory does not fit the model."""
        longest = int(memory.next_position.max()) + max(map(len, questions))
        if longest > self.config.text.max_positions:
            raise PromptError(
                f"the question and its memory reach position {longest}; the model has "
                f"{self.config.text.max_positions} positions"
            )

    def _check_k(self, k: int | None) -> None:
        if k is not None and not 1 <= k <= self.config.num_chorus:
            raise CremError(f"k = {k} is not in 1..{self.config.num_chorus} (chorus tokens)")

    def validate_generate(
        self, compressed: bool = False, k: int | None = None, sinks: int = 0
    ) -> None:
        """Raises ValueError where `generate` would, whatever the items."""
        for name, value in (("k", k), ("sinks", sinks)):
            if value and not compressed:
                raise CremError(
                    f"{name} = {value} needs compressed=True: native answers see everything"
                )
        if sinks < 0:
            raise CremError(f"sinks = {sinks} is not at least 0")
        if compressed and not self.config.num_chorus:
            raise CremError("this model has no chorus tokens to answer from; ask it natively")
        self._check_k(k)

    def _num_visible_chorus(self, compressed: bool, k: int | None) -> int | None:
        return (k or self.config.num_chorus) if compressed else None

    def _questions(self, questions: list[np.ndarray], rows: int):
        return pad_questions(questions, rows, self.config.pad_token_id)

    def _text(self, ids: Sequence[int]) -> str:
        return answer_text(self.config, self.tokenizer, ids)


def load(
    directory: str | Path,
    step: int | str = "best",
    dtype: str = "float32",
    weights: str | None = None,
) -> Model:
    """Opens a run directory (the best checkpoint unless `step` says "last" or a number) or a
    Hugging Face directory.

    Args:
      dtype: of the parameters and the arithmetic, "float32" or "bfloat16".
      weights: "int8" holds the decoder's kernels as int8 (`model.int8`); None is as dtype says.

    Raises:
      FileNotFoundError, ValueError: it is neither, or is damaged; the message says how.
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


def pool(states: np.ndarray, k: int | None = None, dim: int | None = None) -> np.ndarray:
    """Embeddings of the first k chorus states and `dim` numbers: [N, K, D] -> float32 [N, dim]."""
    mean = states[:, :k, :dim].mean(axis=1)
    return mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnames=("config",))
def _chorus(config: ModelConfig, params: crem.Params, context: Context) -> jax.Array:
    return crem.compress(config, params, context).chorus


@functools.partial(jax.jit, static_argnames=("config", "num_visible_chorus", "sinks"))
def _memory(
    config: ModelConfig,
    params: crem.Params,
    context: Context,
    num_visible_chorus: int | None,
    sinks: int = 0,
) -> Memory:
    memory = crem.compress(config, params, context)
    return memory if num_visible_chorus is None else memory.chorus_only(num_visible_chorus, sinks)


def _sampling(temperature: float, top_p: float, seed: int, batch: int = 0) -> Sampling:
    """How a batch of a call is sampled: each draws its own numbers, the first those of `seed`."""
    mixed = np.uint32((int(np.int32(seed)) + batch * _ODD) % 2**32).view(np.int32)
    return Sampling(np.float32(temperature), np.float32(top_p), mixed)


def join_memories(parts: Sequence[Memory]) -> Memory:
    """Compressed memories one after another; keys and values have their rows on axis 1."""
    join = np.concatenate
    return Memory(
        kv=jax.tree.map(lambda *x: join(x, axis=1), *(part.kv for part in parts)),
        region=join([part.region for part in parts]),
        next_position=join([part.next_position for part in parts]),
        chorus=join([part.chorus for part in parts]),
    )


def _as_list(items: Any) -> list[Any]:
    if isinstance(items, str | bytes) or not isinstance(items, Sequence):
        raise CremError(f"expected a list of items, got a {type(items).__name__}")
    return list(items)
