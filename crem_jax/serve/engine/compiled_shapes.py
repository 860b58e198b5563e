"""Reuses shapes that are already compiled, to bound the number of compilations."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from crem_jax.config import ModelConfig
from crem_jax.data.inputs.padding import ContextRow, pad_contexts
from crem_jax.inference.batches import shape_of
from crem_jax.types import Context


class CompiledShapes:
    """Chooses a known shape if it is at most `waste` times too large on every axis, else a new one.

    So requests of any sizes make the server compile only few shapes: each new one of a kind is
    beyond the reach of all others.
    """

    def __init__(self, waste: int = 2):
        self._waste = waste
        self._known: dict[Hashable, set[tuple[int, ...]]] = {}

    def fit(self, kind: Hashable, *wanted: int) -> tuple[int, ...]:
        """A shape at least as large as `wanted` on every axis, for functions of `kind`."""
        known = self._known.setdefault(kind, set())
        near = [
            shape
            for shape in known
            if all(w <= s <= self._waste * w for w, s in zip(wanted, shape, strict=True))
        ]
        if not near:
            known.add(wanted)
        return min(near, key=sum, default=wanted)

    def rows(self, count: int, kind: Hashable) -> int:
        """The batch size for `count` rows of a kind, a power of two."""
        return self.fit(("rows", kind), 1 << (count - 1).bit_length())[0]

    def batches(
        self, rows: Sequence[ContextRow], config: ModelConfig
    ) -> Iterator[tuple[list[int], Context]]:
        """Yields (indices of rows, padded context) until all rows are covered.

        A context begins with the given rows; any further rows are padding.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, row in enumerate(rows):
            shape = self.fit("context", *shape_of(len(row.tokens), len(row.picture)))
            groups.setdefault(shape, []).append(i)
        for (tokens, patches), chosen in groups.items():
            missing = self.rows(len(chosen), (tokens, patches)) - len(chosen)
            padded = [rows[i] for i in chosen] + [rows[chosen[0]]] * missing
            yield chosen, pad_contexts(padded, config, tokens + config.num_chorus, patches)
