"""Several processes as one job: finding each other, acting together, and dying together.

Every process runs the same program (SPMD). What only one may do (write a recipe, draw a picture) is
done by process 0, the main one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from glob import glob
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from crem_jax.errors import CremError
from crem_jax.files import WriteFailed

_meetings = itertools.count()
_USAGE = 2
_ADDRESS = re.compile(r"(?P<address>\S+:\d+),(?P<count>\d+),(?P<index>\d+)")


def start(spec: str = "auto") -> None:
    """Joins the job this process is part of. Call it before anything asks for devices.

    Args:
      spec: "HOST:PORT,N,I": this is process I of N, and process 0 listens at HOST:PORT.
        "auto": as SLURM, GKE, Open MPI or a TPU VM say; a process of its own where none of them
        starts several. "off": a process of its own.

    Raises:
      CremError: `spec` is none of these.
    """
    if spec == "off" or (spec == "auto" and not _is_one_of_several(os.environ)):
        return
    # What CPU devices of several processes talk through; other devices have their own ways.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if spec == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:  # what the launcher says of the job is not all jax needs
            raise CremError(f"--distributed auto finds no job: {error}") from error
        return
    match = _ADDRESS.fullmatch(spec)
    if not match or not int(match["index"]) < int(match["count"]):
        raise CremError(
            f"--distributed {spec!r} is not auto, off or HOST:PORT,N,I with process I of 0..N-1"
        )
    # `cluster_detection_method`: what is given is complete, so that nothing needs to be guessed.
    jax.distributed.initialize(
        match["address"],
        int(match["count"]),
        int(match["index"]),
        cluster_detection_method="deactivate",
    )


@contextlib.contextmanager
def job(spec: str) -> Iterator[None]:
    """Joins the job as `start` does; an error ends one process of several at once."""
    start(spec)
    try:
        yield
    except BaseException as error:
        if jax.process_count() > 1:
            abort(error, _USAGE if isinstance(error, CremError | OSError) else 1)
        raise


def _is_one_of_several(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that jax can ask has started this process beside others."""
    slurm = ("SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(key in environment for key in slurm):
        return int(environment.get("SLURM_NTASKS", "1")) > 1
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return int(environment["OMPI_COMM_WORLD_SIZE"]) > 1
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return True
    # A VM of a TPU pod says nothing in its environment; its metadata server does.
    platforms = environment.get("JAX_PLATFORMS", "tpu")
    chips = glob("/dev/accel[0-9]*") + glob("/dev/vfio/[0-9]*")
    named = "TPU_SKIP_MDS_QUERY" in environment or hosts
    return bool("tpu" in platforms and chips and not named and importlib.util.find_spec("libtpu"))


def is_main() -> bool:
    """Whether this is process 0."""
    return jax.process_index() == 0


def share() -> tuple[int, int]:
    """(index of this process, number of processes)."""
    return jax.process_index(), jax.process_count()


def all_agree(fine: bool) -> bool:
    """Whether every process says so. Waits for all of them."""
    if jax.process_count() == 1:
        return fine
    return bool(np.all(multihost_utils.process_allgather(np.asarray(fine))))


def compile_everywhere(jitted: Any, *args: Any) -> jax.stages.Compiled:
    """`jitted` compiled for such arguments, once every process has compiled it.

    Processes compile for different times, and inside a collective they wait for each other only for
    a while: those of CPUs (gloo) for half a minute.
    """
    compiled = jitted.lower(*args).compile()
    meet(hours=1)
    return compiled


def meet(hours: int) -> None:
    """Waits so long at most until every process is here, which a collective would not."""
    if jax.process_count() > 1:
        wait = multihost.get_barrier_sync_fn()
        wait(key=f"crem_jax_meeting_{next(_meetings)}", timeout_ms=hours * 3_600_000)


def on_main(action: Callable[[], None]) -> None:
    """Runs `action` on process 0 while the others wait; if it fails there, it fails everywhere.

    Raises:
      Exception: what `action` raised, on process 0; RuntimeError on the others.
    """
    failure = None
    if is_main():
        try:
            action()
        except Exception as error:
            failure = error
    if all_agree(failure is None):
        return
    raise failure or RuntimeError("process 0 has stopped; its log says why")


def to_host(array: jax.Array) -> np.ndarray:
    """The whole array, on every process, however it is laid out over them."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def abort(error: BaseException, code: int) -> NoReturn:
    """Ends this process of several at once, with its reason on stderr.

    A normal exit would wait for the other processes, which wait for this one in a collective.
    """
    where = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, CremError | OSError | WriteFailed):
        print(f"crem: {where}: {error}", file=sys.stderr)
    else:
        print(f"crem: {where} has failed", file=sys.stderr)
        traceback.print_exception(error)
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(code)
