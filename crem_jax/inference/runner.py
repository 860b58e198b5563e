"""Runs one model on prepared rows, padded batches and memories.

What `Model`, the server, evaluation, libraries and reports are made of: each of them plans its own
batches (`inference.batches`), and the rows of a batch past those it asked for only fill it up.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from crem_jax.config import ModelConfig
from crem_jax.data.inputs.padding import ContextRow, PromptError
from crem_jax.data.inputs.prompt import Prompter
from crem_jax.data.records import Item
from crem_jax.distributed import to_host
from crem_jax.errors import CremError
from crem_jax.inference import decoding
from crem_jax.inference.batches import pad_questions
from crem_jax.inference.sampling import Sampling
from crem_jax.inference.streaming import AnswerStream, answer_text
from crem_jax.mesh import rows as by_rows
from crem_jax.model import crem
from crem_jax.types import Array, Context, Memory


class Runner:
    """A model's compiled functions, on one device or on a mesh.

    Args:
      params: the parameters; replicated over `mesh` if there is one.
      tokenizer: a transformers tokenizer with Qwen2-VL's special tokens.
      mesh: devices over which the rows of a batch are sharded; None is the default device alone.

    Attributes:
      prompter: turns texts and images into rows.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: crem.Params,
        tokenizer,
        mesh: jax.sharding.Mesh | None = None,
    ):
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.prompter = Prompter(config, tokenizer)
        self._mesh = mesh

    @property
    def row_multiple(self) -> int:
        """Batch sizes are multiples of this, the number of devices that share a batch."""
        return self._mesh.size if self._mesh else 1

    def prepare(self, item: Any) -> ContextRow:
        """Tokenises an item of `Model.encode` and cuts its images into patches.

        Raises:
          CremError: the item cannot be used.
        """
        return item if isinstance(item, ContextRow) else self.prompter.context(Item.of(item))

    def chorus_states(self, context: Context) -> np.ndarray:
        """Final hidden states of the chorus for a padded batch, float32 [B, K, D]."""
        with self._on_devices(context) as context:
            return to_host(_chorus_states(self.config, self.params, context))

    def compress(
        self, context: Context, num_visible_chorus: int | None = None, sinks: int = 0
    ) -> Memory:
        """The memory of a padded batch, on the device.

        Args:
          num_visible_chorus: k keeps the first k chorus tokens alone; None keeps everything, for
            native answers.
          sinks: with k, also keep the first `sinks` slots of the context.
        """
        with self._on_devices(context) as context:
            return _compress(self.config, self.params, context, num_visible_chorus, sinks)

    def compress_each(
        self, context: Context, num_visible_chorus: Sequence[int | None]
    ) -> list[Memory]:
        """One memory per element of `num_visible_chorus`, as from `compress`, in a single pass."""
        if len(num_visible_chorus) == 1:
            return [self.compress(context, num_visible_chorus[0])]
        whole = self.compress(context)
        return [whole if k is None else whole.chorus_only(k) for k in num_visible_chorus]

    def answer(
        self,
        memory: Memory,
        questions: Sequence[np.ndarray],
        sampling: Sampling,
        max_new_tokens: int,
    ) -> list[str]:
        """Generates a whole answer for each question.

        Args:
          memory: one row per question; further rows are padding.
          questions: token ids, see `Prompter.question`.
        """
        tokens, valid = pad_questions(questions, len(memory.region), self.config.pad_token_id)
        out = decoding.generate(
            self.config, self.params, memory, tokens, valid, sampling, max_new_tokens
        )
        answers = to_host(out)[: len(questions)]
        return [answer_text(self.config, self.tokenizer, ids) for ids in answers]

    def answer_stream(
        self,
        memory: Memory,
        questions: Sequence[np.ndarray],
        sampling: Sampling,
        limits: Sequence[int],
        **shape: int,
    ) -> AnswerStream:
        """Starts to generate answers token by token; arguments as of `AnswerStream`."""
        return AnswerStream(
            self.config, self.params, self.tokenizer, memory, questions, sampling, limits, **shape
        )

    @contextlib.contextmanager
    def mesh_in_use(self) -> Iterator[None]:
        """Makes the runner's mesh, if any, the current one (`jax.set_mesh`)."""
        with jax.set_mesh(self._mesh) if self._mesh else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def _on_devices(self, context: Context) -> Iterator[Context]:
        """Shards a batch over the mesh, made current, if its rows divide over the devices."""
        if self._mesh is None or len(context.tokens) % self._mesh.size:
            yield context
            return
        with self.mesh_in_use():
            yield jax.device_put(context, by_rows(self._mesh))

    def validate_encode(self, k: int | None = None, dim: int | None = None) -> None:
        """Raises CremError if `Model.encode` rejects these arguments."""
        if not self.config.num_chorus:
            raise CremError(
                "this model cannot find: it has no chorus tokens (a plain backbone). "
                "Give it some with `crem import --chorus 16` and train it"
            )
        self._validate_k(k)
        width = self.config.text.hidden_size
        if dim is not None and not 1 <= dim <= width:
            raise CremError(f"dim = {dim} is not in 1..{width} (numbers of an embedding)")

    def validate_generate(
        self, compressed: bool = False, k: int | None = None, sinks: int = 0
    ) -> None:
        """Raises CremError if `Model.generate` rejects these arguments."""
        for name, value in (("k", k), ("sinks", sinks)):
            if value and not compressed:
                raise CremError(
                    f"{name} = {value} needs compressed=True: native answers see everything"
                )
        if sinks < 0:
            raise CremError(f"sinks = {sinks} is not at least 0")
        if compressed and not self.config.num_chorus:
            raise CremError("this model has no chorus tokens to answer from; ask it natively")
        self._validate_k(k)

    def validate_positions(self, memory: Memory, questions: Sequence[np.ndarray]) -> None:
        """Raises PromptError if a question about a memory exceeds the model's positions."""
        longest = int(memory.next_position.max()) + max(map(len, questions))
        if longest > self.config.text.max_positions:
            raise PromptError(
                f"the question and its memory reach position {longest}; the model has "
                f"{self.config.text.max_positions} positions"
            )

    def _validate_k(self, k: int | None) -> None:
        if k is not None and not 1 <= k <= self.config.num_chorus:
            raise CremError(f"k = {k} is not in 1..{self.config.num_chorus} (chorus tokens)")


@functools.partial(jax.jit, static_argnames=("config",))
def _chorus_states(config: ModelConfig, params: crem.Params, context: Context) -> Array:
    return crem.compress(config, params, context).chorus


@functools.partial(jax.jit, static_argnames=("config", "num_visible_chorus", "sinks"))
def _compress(
    config: ModelConfig,
    params: crem.Params,
    context: Context,
    num_visible_chorus: int | None,
    sinks: int,
) -> Memory:
    memory = crem.compress(config, params, context)
    return memory if num_visible_chorus is None else memory.chorus_only(num_visible_chorus, sinks)
