"""Every run draws its own seed, prints it, and takes it back through CREM_TEST_SEED."""

from __future__ import annotations

import dataclasses
import functools
import os
import secrets
import tempfile
from pathlib import Path

import numpy as np
import pytest

# Workers of pytest-xdist take it from the process that starts them.
SEED = int(os.environ.setdefault("CREM_TEST_SEED", str(secrets.randbelow(10**6))))


CACHE_BYTES = 2 << 30
"""Bound of the cache of compiled code: jax locks a bounded one, and only that can be shared."""


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("markexpr") != "gpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    _share_compiled_code(config)
    _take_a_core()


def _share_compiled_code(config: pytest.Config) -> None:
    """This process, the other workers and all processes of tests share what one has compiled; the
    next run finds it too.
    """
    cache = getattr(config, "cache", None)
    place = cache.mkdir("compiled") if cache else tempfile.mkdtemp(prefix="crem-compiled-")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(place))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(CACHE_BYTES))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def _take_a_core() -> None:
    """Workers of pytest-xdist have a core each: pools of threads for all cores get in each other's
    way.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_report_header() -> str:
    return f"CREM_TEST_SEED={SEED}"


@pytest.fixture(scope="session")
def seed() -> int:
    """The run's seed."""
    return SEED


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator of the run's seed and the test's name."""
    return np.random.default_rng([SEED, *request.node.nodeid.encode()])


@pytest.fixture(scope="session")
def compiled() -> Path:
    """The cache of compiled code that all processes share."""
    return Path(os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: a small untrained model with four chorus tokens."""
    import jax

    from crem_jax.checkpoints.model_directory import save_model
    from crem_jax.model import crem
    from tests.support import toy

    directory = tmp_path_factory.mktemp("models") / "tiny"
    config = toy.config()
    config = config.replace(text=dataclasses.replace(config.text, num_layers=1))
    params = jax.jit(functools.partial(crem.init, config))(jax.random.key(SEED))
    save_model(directory, config, params, toy.tokenizer())
    return directory
