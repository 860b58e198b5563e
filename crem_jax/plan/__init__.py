"""Estimates memory and time of a training step on a pod before it is rented."""

import contextlib
import ctypes
import os

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


_M_ARENA_MAX = -8  # of glibc's malloc.h


def stay_on_host() -> None:
    """Lets libtpu compile without access to the target machine.

    To be called before JAX is imported; what the user has set stays.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        # An arena for each compiler thread keeps what it frees, a tenth of the peak.
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
