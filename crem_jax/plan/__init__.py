"""What a training step needs of a pod, known before the pod is rented."""

import os

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def stay_on_host() -> None:
    """Lets libtpu compile without looking for the machine it is made for.

    To be called before JAX is imported; what the user has set stays.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
