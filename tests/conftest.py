"""Every run draws its own seed, prints it, and takes it back through CREM_TEST_SEED."""

from __future__ import annotations

import dataclasses
import functools
import os
import secrets
from pathlib import Path

import numpy as np
import pytest

SEED = int(os.environ.get("CREM_TEST_SEED") or secrets.randbelow(10**6))


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("markexpr") != "gpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


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
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of compiled code that the processes of all tests share."""
    shared = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(shared) if shared else tmp_path_factory.mktemp("compiled")


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
