"""Compiles the training step of a config for a pod, without access to it."""

from __future__ import annotations

import dataclasses
import re
import resource
import time
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from crem_jax import mesh as meshes
from crem_jax.chips import GIB
from crem_jax.config import ConfigError
from crem_jax.configs.schema import TrainConfig
from crem_jax.configs.schema.data import BatchSpec
from crem_jax.flops import model_flops
from crem_jax.plan import roofline
from crem_jax.plan.batch import abstract_batch, check_fits, packed_spec
from crem_jax.plan.hlo import Collective, collectives
from crem_jax.plan.pods import Pod
from crem_jax.train import layout
from crem_jax.train.setup import make_objective


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one step needs. Figures are per chip; memory in GiB.

    Attributes:
      mesh: data, fsdp, tensor. sequences: rows of all buckets on one chip.
      model_flops: useful operations of the step.
      compile_seconds, compile_cpu_seconds, host_peak_rss: what planning itself took; GB.
      needs: memory at the peak of the step, or what the compiler would need at least.
      peak: the same; None if it does not fit, and so are all that follow.
      arguments: train state and batch. temporary: all else at its largest.
      collectives: None if unknown, see `_collectives`; the estimate then is without links.
    """

    mesh: tuple[int, int, int]
    sequences: float
    model_flops: float
    compile_seconds: float
    compile_cpu_seconds: float
    host_peak_rss: float
    needs: float
    peak: float | None = None
    arguments: float | None = None
    temporary: float | None = None
    collectives: tuple[Collective, ...] | None = None
    estimate: roofline.Estimate | None = None

    @property
    def fits(self) -> bool:
        return self.peak is not None


def plan(
    config: TrainConfig | ConfigDict,
    pod: Pod,
    per_chip_batch: int = 0,
    chunk: int = 0,
    mesh: Sequence[int] | None = None,
) -> Plan:
    """Compiles `train_step` as `crem train` would run it on the pod; nothing is allocated.

    Args:
      per_chip_batch: packed sequences a chip (`plan.batch.SEQUENCE`); 0 takes the config's own
        buckets.
      chunk: packed sequences a chip in memory at a time (`train.gradcache`); 0 is all.
      mesh: data, fsdp, tensor; by default the config's.

    Raises:
      ConfigError: the batch does not divide over the mesh or into chunks, or the config makes no
        sense.
    """
    config = TrainConfig.of(config)
    objective = make_objective(config)
    shape = layout.mesh_shape(mesh or config.mesh, len(pod.devices))
    if chunk:
        check_chunk(chunk, per_chip_batch, pod.chips, shape)
    grid = pod.mesh(shape)
    spec = config.data.spec
    if per_chip_batch:
        check_fits(objective.model)
        spec = packed_spec(per_chip_batch * pod.chips)
        rows = tuple((name, chunk * pod.chips) for name in spec.buckets if chunk)
        loss = dataclasses.replace(objective.loss, chunk_rows=rows)
        objective = dataclasses.replace(objective, loss=loss)
    layout.check_rows(spec, grid)
    state = layout.abstract_state(objective, grid)
    batch = abstract_batch(spec, objective.model, meshes.rows(grid))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    clock, cpu = time.perf_counter(), time.process_time()
    with jax.set_mesh(grid):
        seed = jax.ShapeDtypeStruct((), "uint32")
        lowered = layout.jit_step(objective, shardings, grid).lower(state, batch, seed)
        compiled, needs = None, 0.0
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needs = out_of_memory(error)
    flops = model_flops(objective.model, spec.buckets)
    planned = Plan(
        mesh=shape,
        sequences=_rows(spec, pod),
        model_flops=flops.training(objective.rates) / pod.chips,
        compile_seconds=time.perf_counter() - clock,
        compile_cpu_seconds=time.process_time() - cpu,
        host_peak_rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        needs=needs * pod.per_chip,
    )
    if compiled is None:
        return planned
    memory = compiled.memory_analysis()
    assert memory is not None, "XLA for TPUs reports what a program needs"
    per_chip = pod.per_chip / GIB
    found = _collectives(compiled)
    return dataclasses.replace(
        planned,
        peak=memory.peak_memory_in_bytes * per_chip,
        needs=memory.peak_memory_in_bytes * per_chip,
        arguments=memory.argument_size_in_bytes * per_chip,
        temporary=memory.temp_size_in_bytes * per_chip,
        collectives=found,
        estimate=roofline.estimate(
            objective.model,
            spec.buckets.values(),
            pod.chip,
            pod.chips,
            pod.per_chip * sum(_wire(c) for c in found or ()),
            pod.per_chip * memory.argument_size_in_bytes,
            objective.loss,
            objective.rates,
        ),
    )


def check_chunk(chunk: int, per_chip_batch: int, chips: int, mesh: tuple[int, int, int]) -> None:
    """Raises ConfigError if --chunk does not cut the batch of every device into equal parts."""
    if not per_chip_batch:
        raise ConfigError("--chunk counts packed sequences, of which --per_chip_batch must say N")
    if chunk >= per_chip_batch:
        return
    if per_chip_batch % chunk:
        raise ConfigError(f"--chunk {chunk} does not divide --per_chip_batch {per_chip_batch}")
    devices = mesh[0] * mesh[1]
    if chunk * chips % devices:
        raise ConfigError(
            f"--chunk {chunk} makes {chunk * chips} sequences on {chips} chips, which cannot be "
            f"split over the {devices} devices that share the batch on mesh {tuple(mesh)}"
        )


def _collectives(compiled: jax.stages.Compiled) -> tuple[Collective, ...] | None:
    """None where the program cannot be read: jaxlib 0.10.2 fails on some of v6e's async fusions."""
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None
    return None if text is None else tuple(collectives(text))


def _rows(spec: BatchSpec, pod: Pod) -> float:
    return sum(bucket.rows for bucket in spec.buckets.values()) / pod.chips


def _wire(collective: Collective) -> float:
    """Bytes that leave a device: a reduction to all goes round twice."""
    return collective.bytes * (2 if collective.kind == "all-reduce" else 1)


_NEEDED = (
    re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM"),
    re.compile(r"[Uu]sed ([\d.]+)([KMGT]) of "),
)
"""Two ways in which the TPU compiler says that a program does not fit."""

_UNITS = {"K": 2.0**-20, "M": 2.0**-10, "G": 1.0, "T": 2.0**10}


def out_of_memory(error: Exception) -> float:
    """GiB that the compiler would have needed at least; any other error is raised again."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    found = next(filter(None, (pattern.search(str(error)) for pattern in _NEEDED)), None)
    return float(found[1]) * _UNITS[found[2]] if found else float("inf")
