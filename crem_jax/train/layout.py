"""How the train state and the batches of a run lie on the mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import jax
import numpy as np
from jax.sharding import Mesh

from crem_jax import lazy_array, trees
from crem_jax import mesh as meshes
from crem_jax.config import ConfigError
from crem_jax.configs.schema.data import BatchSpec
from crem_jax.errors import CremError
from crem_jax.model import crem, lora
from crem_jax.train.objective.info_nce import Metrics
from crem_jax.train.objective.step import TrainState, init_params, init_state, state_of, train_step
from crem_jax.train.setup import Objective
from crem_jax.types import Array, Batch


def mesh_shape(shape: Sequence[int], devices: int) -> tuple[int, int, int]:
    """One -1 is replaced by what is left of the devices."""
    fixed = int(np.prod([size for size in shape if size != -1]))
    data, fsdp, tensor = (devices // fixed if size == -1 else size for size in shape)
    return data, fsdp, tensor


def check_rows(spec: BatchSpec, mesh: Mesh) -> None:
    """Raises ConfigError naming the first number of the batch that the mesh cannot split evenly."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    sizes = {f"data.buckets.{name}.rows": bucket.rows for name, bucket in spec.buckets.items()}
    sizes["data.candidates"] = spec.candidates
    sizes["the queries of data (records or batch, and carry)"] = spec.queries
    for key, size in sizes.items():
        if size % ways:
            raise ConfigError(
                f"{key} = {size} does not divide over the mesh: its rows are split over data x "
                f"fsdp = {mesh.shape['data']} x {mesh.shape['fsdp']} = {ways} devices"
            )


def fresh_state(parts: Objective, key: jax.Array) -> TrainState:
    """The state before the first step."""
    return init_state(
        parts.model, parts.loss, parts.optimizer, parts.frozen, key, parts.frozen_dtype
    )


def first_state(
    parts: Objective,
    abstract: TrainState,
    weights: Callable[[], crem.Params] | None,
    key: jax.Array,
) -> TrainState:
    """The state before the first step as arrays on the mesh; nothing is whole on the way.

    Args:
      abstract: see `abstract_state`.
      weights: opens the parameters to start from (LazyArrays), of which every host reads its own
        shards; adapters and what belongs to the loss are new. None starts from random ones.

    Raises:
      TreeError: the weights are not those of the model.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    if weights is None:
        return jax.jit(functools.partial(fresh_state, parts), out_shardings=shardings)(key)
    wanted, given = trees.flatten(abstract.params), trees.flatten(weights())
    new = {path for path in wanted if lora.is_adapter(path) or path.startswith("loss/")}
    known = {path: leaf for path, leaf in wanted.items() if path not in new}
    trees.check_same(trees.unflatten(given), trees.unflatten(known), what="config.init_from")
    params = {
        p: lazy_array.materialise(given[p], leaf.dtype, leaf.sharding) for p, leaf in known.items()
    }

    def others(key: jax.Array) -> dict[str, jax.Array]:
        fresh = trees.flatten(fresh_state(parts, key).params)
        return {path: fresh[path] for path in new}

    params |= jax.jit(others, out_shardings={path: wanted[path].sharding for path in new})(key)
    finish = functools.partial(state_of, optimizer=parts.optimizer, frozen=parts.frozen)
    return jax.jit(finish, out_shardings=shardings, donate_argnums=0)(trees.unflatten(params))


def abstract_state(parts: Objective, mesh: Mesh) -> TrainState:
    """The state's shapes, dtypes and shardings, with nothing allocated."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(lambda key: init_params(parts.model, parts.loss, key), key)
    state = jax.eval_shape(lambda key: fresh_state(parts, key), key)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(state, boxed, mesh),
    )


def state_shardings(state: TrainState, boxed_params: Any, mesh: Mesh) -> TrainState:
    """The optimiser's moments are laid out like the parameters whose paths theirs end with."""
    whole = meshes.replicated(mesh)
    by_param = meshes.param_shardings(boxed_params, mesh)
    named = trees.flatten(by_param)
    shapes = {path: leaf.shape for path, leaf in trees.flatten(state.params).items()}

    def of(path, leaf):
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        ends = ("/".join(keys[i:]) for i in range(len(keys)))
        found = next((end for end in ends if end in named), None)
        # Adafactor's rows and columns of a matrix have the matrix's path but not its shape.
        return named[found] if found and shapes[found] == leaf.shape else whole

    opt_state = jax.tree_util.tree_map_with_path(of, state.opt_state)
    return TrainState(cast(Any, whole), by_param, opt_state)


Step: TypeAlias = Callable[[TrainState, Batch, np.uint32], tuple[TrainState, Metrics]]
"""`train_step` of (state, batch, seed), jitted or compiled."""


def jit_step(parts: Objective, shardings: TrainState, mesh: Mesh) -> jax.stages.Wrapped:
    """`train_step` of (state, batch, seed) that lie on the mesh; the old state is given up.

    Call it under `jax.set_mesh(mesh)`.
    """
    return jax.jit(
        functools.partial(train_step, **parts.step_arguments()),
        in_shardings=(shardings, meshes.rows(mesh), meshes.replicated(mesh)),
        out_shardings=(shardings, meshes.replicated(mesh)),
        donate_argnums=0,
    )


def put(batch: Batch, mesh: Mesh) -> Batch:
    """This process's share of a batch to its devices, every leading axis split over the mesh.

    The batch numbers its rows as if every process held one stretch of each bucket, in their order.
    A pod's mesh follows its wiring instead, and so the numbers are translated.
    """
    by_row = meshes.rows(mesh)
    if jax.process_count() == 1:
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(by_row, np.asarray(x)), batch
        )
    owners = chunk_owners(mesh)
    rows = [len(context.tokens) for _, context in sorted(batch.contexts.items())]
    physical = physical_rows(tuple(rows), owners)

    def numbers(row: Array) -> np.ndarray:
        row = np.asarray(row)
        return np.where(row >= 0, physical[np.maximum(row, 0)], row).astype(np.int32)

    batch = dataclasses.replace(
        batch, query_row=numbers(batch.query_row), candidate_row=numbers(batch.candidate_row)
    )
    own = np.flatnonzero(np.asarray(owners) == jax.process_index())

    def array(x: Any) -> jax.Array:
        x = np.asarray(x)
        size = len(x) // len(own)
        starts = {int(chunk) * size: i * size for i, chunk in enumerate(own)}

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            first = starts[index[0].start or 0 if index else 0]
            return x[first : first + size]

        return jax.make_array_from_callback((size * len(owners), *x.shape[1:]), by_row, part)

    return jax.tree.map(array, batch)


def physical_rows(rows: tuple[int, ...], owners: tuple[int, ...]) -> np.ndarray:
    """Where on the mesh each row of a batch lies.

    Args:
      rows: of every bucket on one process. owners: the process of every chunk of rows, in order of
        the mesh; a bucket is split into as many equal chunks.

    Returns:
      int [all rows of all processes]: position of the row that a batch numbers so.
    """
    processes = max(owners) + 1
    tables, start = [], 0
    for count in rows:
        size = count * processes // len(owners)
        of_process = [np.flatnonzero(np.asarray(owners) == p) for p in range(processes)]
        chunks = np.concatenate(of_process)[:, None] * size + np.arange(size)
        tables.append(start + chunks.reshape(-1))
        start += count * processes
    return np.concatenate(tables)


@functools.lru_cache(maxsize=8)
def chunk_owners(mesh: Mesh) -> tuple[int, ...]:
    """The process that holds each chunk of a batch's rows, in order of the mesh.

    Raises:
      ValueError: two processes would hold the same rows, or one more rows than another.
    """
    by_device = np.vectorize(lambda device: device.process_index)(mesh.devices)
    by_chunk = by_device.reshape(-1, by_device.shape[-1])  # tensor is the last axis
    counts = np.bincount(by_chunk[:, 0], minlength=jax.process_count())
    if np.any(by_chunk != by_chunk[:, :1]) or len(set(counts)) > 1:
        raise CremError(
            f"config.mesh {tuple(by_device.shape)} (data, fsdp, tensor) over "
            f"{jax.process_count()} processes of {jax.local_device_count()} devices: the tensor "
            "axis must stay inside a process, and every process must hold as many rows"
        )
    return tuple(int(process) for process in by_chunk[:, 0])
