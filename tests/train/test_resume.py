"""Whatever ends a run, the same command again makes it the run it would have been, bit by bit."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from crem_jax.checkpoints.model_directory import load_model
from crem_jax.config import ConfigError
from crem_jax.train.loop import train
from crem_jax.train.run.faults import PREEMPTED
from crem_jax.train.run.meter import MEASURES
from crem_jax.train.run.metrics import MetricsLog, read_metrics
from tests.support.tiny_run import finish, saved, start, tiny_config, until

STEPS = 24


def is_saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written: orbax does so under another name."""
    return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def until_begun(process, workdir: Path, since: float) -> None:
    """Waits until the run that was started at `since` has opened its metrics."""
    path = workdir / "metrics.jsonl"
    while not path.exists() or path.stat().st_mtime <= since:
        assert process.poll() is None, process.stderr.read()[-3000:]


def kill(process, workdir: Path) -> int:
    """Kills the run; returns the last step it logged."""
    assert process.poll() is None, process.stderr.read()[-3000:]
    process.kill()
    process.communicate(timeout=60)  # returns when its data workers have ended, too
    assert process.returncode == -signal.SIGKILL
    return logged(workdir)


def logged(workdir: Path) -> int:
    return max((int(line["step"]) for line in read_metrics(workdir / "metrics.jsonl")), default=0)


def checkpoints(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


@pytest.fixture(scope="module")
def runs(tmp_path_factory, compiled) -> SimpleNamespace:
    """An uninterrupted run, and one that is killed, killed in a save, preempted and damaged."""
    root = tmp_path_factory.mktemp("resume")
    whole, run = root / "whole", root / "run"
    finish(start(whole, compiled, STEPS))

    process = start(run, compiled, STEPS)
    until(process, run, 5)
    killed = kill(process, run)

    process = start(run, compiled, STEPS, "data.workers=2")
    until(process, run, killed + 1)
    while not is_saving(run):
        assert process.poll() is None, process.stderr.read()[-3000:]
    killed_saving = kill(process, run)
    was_saving = is_saving(run)

    process = start(run, compiled, STEPS)
    until(process, run, killed_saving + 1)
    process.terminate()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == PREEMPTED, errors[-3000:]
    kept, preempted = checkpoints(run), logged(run)

    for path in (run / "checkpoints" / str(preempted) / "params").rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[:50])
    process = start(run, compiled, STEPS)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return SimpleNamespace(
        whole=whole,
        run=run,
        killed=(killed, killed_saving),
        was_saving=was_saving,
        kept=kept,
        preempted=preempted,
        notice=errors,
    )


def check_equal(run: Path, whole: Path, steps: int) -> None:
    expected, got = saved(whole, steps), saved(run, steps)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    lines = [
        [{k: v for k, v in line.items() if k not in MEASURES} for line in read_metrics(p)]
        for p in (whole / "metrics.jsonl", run / "metrics.jsonl")
    ]
    assert [line["step"] for line in lines[1]] == list(range(1, steps + 1))
    assert lines[0] == lines[1]


def test_a_run_that_was_stopped_in_every_way_ends_bit_equal_to_an_uninterrupted_one(runs):
    assert 5 <= runs.killed[0] < runs.killed[1] < runs.preempted < STEPS
    assert runs.was_saving
    check_equal(runs.run, runs.whole, STEPS)
    first, second = (load_model(run, "last")[1] for run in (runs.whole, runs.run))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_sigterm_saves_the_step_it_comes_in(runs):
    assert runs.kept[-1] == runs.preempted


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_used(runs):
    before, newest = runs.kept
    assert re.search(
        rf"checkpoint {newest} is damaged.*goes on from checkpoint {before}", runs.notice
    )
    assert (runs.run / "checkpoints-damaged" / str(newest)).is_dir()


def test_a_finished_run_is_left_as_it_is(runs):
    before = (runs.whole / "metrics.jsonl").read_text()
    model = train(tiny_config(STEPS), runs.whole)
    assert (runs.whole / "metrics.jsonl").read_text() == before
    jax.tree.map(np.testing.assert_array_equal, model.params, load_model(runs.whole, "last")[1])


@pytest.mark.parametrize("key", ["seed", "optim.lr", "data.candidates"])
def test_another_config_in_the_same_workdir_is_refused_by_its_key(runs, key):
    config = tiny_config(STEPS)
    config.update_from_flattened_dict({key: 32})
    with pytest.raises(ValueError, match=rf"another config \(different: {re.escape(key)}\)"):
        train(config, runs.whole)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("steps", 0, r"config\.steps = 0 must be at least 1"),
        ("log_every", 0, r"config\.log_every = 0 must be at least 1"),
        ("eval_every", -1, r"config\.eval_every = -1 must be at least 1"),
        ("checkpoint_every", -1, r"config\.checkpoint_every = -1 must be at least 0"),
        ("best_metric", "p1", r"config\.best_metric 'p1' does not begin with 'eval/'"),
    ],
)
def test_keys_that_would_end_the_run_later_are_refused_first(tmp_path, key, value, message):
    config = tiny_config()
    config[key] = value
    with pytest.raises(ConfigError, match=message):
        train(config, tmp_path / "run", lambda model: {"p1": 0.5})
    assert not (tmp_path / "run").exists()


def test_a_best_metric_that_is_not_measured_is_named_once_the_run_has_saved(tmp_path):
    config = tiny_config(3)
    config.best_metric = "eval/p5"
    message = r"'eval/p5' is not one of eval/p1, eval/p2; the run has saved at step 2"
    with pytest.raises(ConfigError, match=message):
        train(config, tmp_path, lambda model: {"p1": 0.5, "p2": 0.5})
    assert checkpoints(tmp_path) == [2]
    recipe = (tmp_path / "recipe.json").read_text()
    (tmp_path / "recipe.json").write_text(recipe.replace("eval/p5", "eval/p1"))
    config.best_metric = "eval/p1"
    train(config, tmp_path, lambda model: {"p1": 0.5})
    assert checkpoints(tmp_path) == [2, 3]


def test_metrics_past_the_restored_step_and_a_line_cut_off_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    log = MetricsLog(path, 1)
    log.write(2, {"loss": 2.5})
    log.close()
    assert read_metrics(path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_kill_at_twenty_random_moments(tmp_path, compiled, rng, workers):
    """Every third one while a checkpoint is being written, every fifth before the first step."""
    steps, run, saving = 200, tmp_path / "run", 0
    words = (f"data.workers={workers}",)
    finish(start(tmp_path / "whole", compiled, steps, *words))
    for moment in range(20):
        since = time.time()
        process = start(run, compiled, steps, *words)
        if moment % 5 == 4:
            time.sleep(rng.uniform(0, 5))
        else:
            until_begun(process, run, since)
            until(process, run, logged(run) + int(rng.integers(1, 6)))
            time.sleep(rng.uniform(0, 0.1))
        if moment % 3 == 0:
            while not is_saving(run):
                assert process.poll() is None, process.stderr.read()[-3000:]
            saving += 1
        print(f"moment {moment}: killed after step {kill(process, run)}")
    finish(start(run, compiled, steps, *words))
    assert saving == 7
    check_equal(run, tmp_path / "whole", steps)


@pytest.mark.slow
def test_a_run_that_diverges_ends_and_names_the_records(tmp_path, compiled):
    process = start(tmp_path, compiled, STEPS, "optim.lr=1e38")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "3 steps in a row (config.max_nonfinite)" in errors and "toy:toy-" in errors
    skipped = [line["skipped_steps"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert skipped[-2:] == [1, 1]


@pytest.mark.slow
def test_a_data_worker_that_dies_ends_the_run_with_an_error(tmp_path, compiled):
    import psutil

    process = start(tmp_path, compiled, 5000, "data.workers=2")
    until(process, tmp_path, 2)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [c for c in children if "spawn_main" in " ".join(c.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, -signal.SIGKILL)
    assert "worker" in errors.lower()
