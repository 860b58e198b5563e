"""Several processes train like one, and the run moves between them."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from crem_jax.train.layout import physical_rows
from crem_jax.train.run.faults import PREEMPTED
from crem_jax.train.run.metrics import read_metrics
from tests.support.tiny_run import finish, saved, start, start_several, until

STEPS = 10
SHARDS = "data.shards=2"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def alone(root, compiled) -> Path:
    """One process with eight devices."""
    finish(start(root / "alone", compiled, STEPS, SHARDS, devices=8))
    return root / "alone"


def losses(workdir: Path) -> list[float]:
    lines = read_metrics(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines]


def check_same(got: Path, expected: Path) -> None:
    np.testing.assert_allclose(losses(got), losses(expected), rtol=0, atol=1e-5)
    for one, other in zip(saved(got, STEPS), saved(expected, STEPS), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), one, other)


def test_two_processes_of_a_device_each_train_like_one_of_two(root, compiled):
    finish(start(root / "of-two", compiled, STEPS, SHARDS, devices=2))
    finish(*start_several(root / "two-of-one", compiled, STEPS, 2, SHARDS, devices=1))
    check_same(root / "two-of-one", root / "of-two")


@pytest.mark.slow
def test_two_processes_of_four_devices_train_like_one_of_eight(root, compiled, alone):
    finish(*start_several(root / "two", compiled, STEPS, 2, SHARDS, devices=4))
    check_same(root / "two", alone)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [[2, 4, 1], [2, 2, 2]], ids=str)
@pytest.mark.parametrize("processes", [1, 2])
def test_every_mesh_trains_the_same_on_one_process_and_on_two(
    tmp_path, compiled, alone, mesh, processes
):
    words = (SHARDS, f"mesh={mesh}")
    devices = 8 // processes
    finish(*start_several(tmp_path, compiled, STEPS, processes, *words, devices=devices))
    check_same(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (2, 2)])
def test_a_run_of_eight_devices_goes_on_with_four(tmp_path, compiled, alone, processes, devices):
    run = tmp_path / "run"
    first = start(run, compiled, STEPS, SHARDS, devices=8)
    until(first, run, 4)
    first.terminate()
    _, errors = first.communicate(timeout=200)
    assert first.returncode == PREEMPTED, errors[-3000:]
    finish(*start_several(run, compiled, STEPS, processes, SHARDS, devices=devices))
    check_same(run, alone)


@pytest.mark.slow
def test_a_process_that_is_killed_takes_the_others_with_it_and_the_run_goes_on(
    tmp_path, compiled, alone
):
    one, other = start_several(tmp_path, compiled, STEPS, 2, SHARDS, devices=4)
    until(one, tmp_path, 5)
    other.kill()
    one.communicate(timeout=200)  # jax's heartbeat gives up after 100 s
    assert one.returncode != 0
    finish(*start_several(tmp_path, compiled, STEPS, 2, SHARDS, devices=4))
    check_same(tmp_path, alone)


@pytest.mark.slow
def test_sigterm_to_one_process_saves_all_of_them_at_the_same_step(tmp_path, compiled, alone):
    one, other = start_several(tmp_path, compiled, STEPS, 2, SHARDS, devices=4)
    until(one, tmp_path, 1)
    other.terminate()
    for process in (one, other):
        _, errors = process.communicate(timeout=200)
        assert process.returncode == PREEMPTED, errors[-3000:]
    step = int(read_metrics(tmp_path / "metrics.jsonl")[-1]["step"])
    assert (tmp_path / "checkpoints" / str(step)).is_dir()
    finish(*start_several(tmp_path, compiled, STEPS, 2, SHARDS, devices=4))
    check_same(tmp_path, alone)


@pytest.mark.slow
def test_a_mesh_that_interleaves_processes_trains_the_same(tmp_path, compiled):
    """Without z, which is drawn by row and so differs."""
    words = (SHARDS, "loss.p_compressed=0.0")
    finish(start(tmp_path / "one", compiled, STEPS, *words, devices=8))
    finish(*start_several(tmp_path / "two", compiled, STEPS, 2, *words, "--interleave", devices=4))
    check_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_all_processes_leave_a_damaged_checkpoint(root, compiled, alone):
    run = root / "damaged"
    finish(*start_several(run, compiled, STEPS, 2, SHARDS, devices=4))
    for path in (run / "checkpoints" / str(STEPS) / "data").glob("process_1-*"):
        path.write_text("{")
    finish(*start_several(run, compiled, STEPS, 2, SHARDS, devices=4))
    assert (run / "checkpoints-damaged" / str(STEPS)).is_dir()
    check_same(run, alone)


def test_rows_are_numbered_as_the_mesh_holds_them():
    """Buckets of 4 and 2 rows a process; the mesh alternates between two processes."""
    assert physical_rows((4, 2), (0, 0, 1, 1)).tolist() == list(range(12))
    assert physical_rows((4, 2), (0, 1, 0, 1)).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 10, 9, 11]
