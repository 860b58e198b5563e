"""The forward benchmark runs, checks the outputs first and ends with one line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "forward.py"


def test_the_quick_benchmark_ends_with_its_figures_as_json():
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, str(SCRIPT), "--quick", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["median_ratio"] > 0
    assert {row["part"] for row in figures["rows"]} == {"hidden", "logits"}
    assert all(row["difference"] <= 1e-4 for row in figures["rows"])
