"""Orbax checkpoints of LazyArrays, written and read piece by piece.

On disk they are ordinary checkpoints of numpy arrays, in chunks small enough that each host of a
pod reads little more than its own shard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import type_handlers

from crem_jax.lazy_array import LazyArray

OnBytes = Callable[[int], None]
"""Called with the number of bytes of the model read or written since the last call."""


def handler(on_bytes: OnBytes | None = None) -> ocp.PyTreeCheckpointHandler:
    """An orbax handler that saves trees of LazyArrays and restores any tree as such."""
    registry = type_handlers.create_type_handler_registry(
        (LazyArray, _LazyHandler(on_bytes)),
        (jax.Array, type_handlers.ArrayHandler()),  # what training saves, to read its metadata
    )
    # Weights hardly compress: it would halve the speed to save a tenth of the disk space.
    return ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)


def load(path: str | Path) -> dict[str, Any]:
    """Opens a pytree checkpoint as a tree of LazyArrays, reading only its metadata."""
    path = Path(path).absolute()
    with ocp.Checkpointer(handler()) as checkpointer:
        stored = checkpointer.metadata(path).item_metadata.tree
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=LazyArray), stored)
        return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=args))


class _LazyHandler(type_handlers.NumpyHandler):
    """Orbax's handler of numpy arrays, for arrays that do not fit in memory."""

    def __init__(self, on_bytes: OnBytes | None):
        super().__init__(deepcopy_host_arrays=False)
        self._on_bytes = on_bytes or (lambda _: None)
        self._write_lock: asyncio.Lock | None = None

    async def _open_and_write(self, value: LazyArray, tspec: dict[str, Any], ts_context) -> None:
        self._write_lock = self._write_lock or asyncio.Lock()
        async with (
            self._write_lock
        ):  # orbax starts all arrays at once; their pieces come one by one
            tspec["metadata"]["chunks"] = list(value.chunks())
            store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
            written: Any = None
            for index in value.pieces():
                piece = await asyncio.to_thread(value.read, index)
                if written is not None:
                    await written
                written = store[index].write(piece, can_reference_source_data_indefinitely=True)
                self._on_bytes(piece.nbytes)
            await written

    async def deserialize(
        self,
        infos: Sequence[type_handlers.ParamInfo],
        args: Sequence[type_handlers.RestoreArgs] | None = None,
    ) -> Sequence[LazyArray]:
        stores = []
        for info in infos:
            await info.await_path_creation()
            spec = type_handlers.get_json_tspec_read(info, use_ocdbt=info.is_ocdbt_checkpoint)
            stores.append(await ts.open(ts.Spec(spec), open=True, context=info.ts_context))
        return [_lazy(store) for store in stores]


def _lazy(store: ts.TensorStore) -> LazyArray:
    return LazyArray(
        shape=tuple(store.shape),
        dtype=store.dtype.numpy_dtype,
        read=lambda index: store[index].read().result(),
    )
