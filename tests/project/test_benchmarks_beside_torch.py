"""The benchmarks beside torch run, compare first and end with one line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def quick(name: str) -> dict:
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(BENCHMARKS / name), "--quick", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_forward_benchmark_ends_with_its_figures_as_json():
    figures = quick("forward.py")
    assert figures["median_ratio"] > 0
    assert {row["part"] for row in figures["rows"]} == {"hidden", "logits"}
    assert all(row["difference"] <= 1e-4 for row in figures["rows"])


@pytest.mark.slow
def test_the_training_benchmark_trains_both_sides_alike():
    figures = quick("train_step.py")
    assert figures["loss_difference"] <= 1e-4
    assert figures["first_loss"] > 1.0
    for side in ("ours", "torch"):
        assert figures[side]["samples_per_second"] > 0
