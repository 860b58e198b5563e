"""Every run draws its own seed, prints it, and takes it back through CREM_TEST_SEED."""

from __future__ import annotations

import os
import secrets

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
