"""`kill -9` in the middle of training and the same command again: the run it would have been."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_run import tiny_config

from crem_jax.checkpoint import load_model
from crem_jax.train.loop import train
from crem_jax.train.meter import MEASURES
from crem_jax.train.metrics import MetricsLog, read_metrics

SCRIPT = Path(__file__).with_name("tiny_run.py")
STEPS = 12


def start(workdir: Path, cache: Path) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, str(SCRIPT), str(workdir), str(STEPS)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def kill_after(process: subprocess.Popen, workdir: Path, step: int) -> int:
    """Kills the run once it has logged `step`; returns the last step it logged."""
    deadline = time.monotonic() + 300
    while not any(line["step"] >= step for line in read_metrics(workdir / "metrics.jsonl")):
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return int(read_metrics(workdir / "metrics.jsonl")[-1]["step"])


def saved(workdir: Path) -> tuple[dict, dict]:
    """Parameters and optimiser state of the last step."""
    with ocp.CheckpointManager(workdir.absolute() / "checkpoints") as manager:
        assert manager.latest_step() == STEPS
        items = manager.restore(
            STEPS,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(), optimizer=ocp.args.StandardRestore()
            ),
        )
    return items.params, items.optimizer


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path, int]:
    """An uninterrupted run, one that was killed and continued, and the step it was killed at."""
    root = tmp_path_factory.mktemp("resume")
    whole, killed = root / "whole", root / "killed"
    finish(start(whole, root / "cache"))
    at = kill_after(start(killed, root / "cache"), killed, 5)
    finish(start(killed, root / "cache"))
    return whole, killed, at


def test_a_killed_run_that_goes_on_ends_bit_equal_to_an_uninterrupted_one(runs):
    whole, killed, at = runs
    assert 5 <= at < STEPS
    expected, got = saved(whole), saved(killed)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    first, second = load_model(whole, "last")[1], load_model(killed, "last")[1]
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_resumed_run_logs_every_step_once_and_the_same_losses(runs):
    whole, killed, _ = runs
    lines = [
        [{k: v for k, v in line.items() if k not in MEASURES} for line in read_metrics(p)]
        for p in (whole / "metrics.jsonl", killed / "metrics.jsonl")
    ]
    assert [line["step"] for line in lines[1]] == list(range(1, STEPS + 1))
    assert lines[0] == lines[1]


def test_a_finished_run_is_left_as_it_is(runs):
    whole, _, _ = runs
    before = (whole / "metrics.jsonl").read_text()
    model = train(tiny_config(STEPS), whole)
    assert (whole / "metrics.jsonl").read_text() == before
    jax.tree.map(np.testing.assert_array_equal, model.params, load_model(whole, "last")[1])


@pytest.mark.parametrize("key", ["seed", "optim.lr", "data.candidates"])
def test_another_config_in_the_same_workdir_is_refused_by_its_key(runs, key):
    whole, _, _ = runs
    config = tiny_config(STEPS)
    config.update_from_flattened_dict({key: 32})
    with pytest.raises(ValueError, match=rf"another config \(different: {re.escape(key)}\)"):
        train(config, whole)


def test_metrics_past_the_restored_step_and_a_line_cut_off_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    log = MetricsLog(path, 1)
    log.write(2, {"loss": 2.5})
    log.close()
    assert read_metrics(path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}]
