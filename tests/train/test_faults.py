"""What a run does when its disk, its numbers or its checkpoints are not what they should be."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from crem_jax import distributed
from crem_jax.checkpoints.model_directory import load_config, save_model_files
from crem_jax.convert.huggingface import read_tokenizer
from crem_jax.files import WriteFailed
from crem_jax.train.objective.step import TrainState
from crem_jax.train.run import recipe
from crem_jax.train.run.checkpointer import Checkpointer
from crem_jax.train.run.faults import (
    Diverged,
    FiniteWatch,
    Preempted,
    Preemption,
    check_room,
    check_workdir,
)
from crem_jax.train.run.meter import Meter, Trace
from crem_jax.train.run.metrics import MetricsLog, TensorBoard, WandB, means, read_metrics
from crem_jax.train.run.workdir import RunDirectory
from crem_jax.types import PAD, Batch, Context
from tests.support.cli_runner import crem


class Counter:
    """A data stream that counts, with the part of its state called `name`."""

    def __init__(self, name: str = "0-of-1"):
        self.name, self.value = name, 0

    def get_state(self) -> dict:
        return {self.name: {"value": self.value}}

    def set_state(self, state: dict) -> None:
        self.value = state[self.name]["value"]


def state_of(step: int, size: int = 64) -> TrainState:
    values = jnp.full((size,), float(step))
    return TrainState(jnp.int32(step), {"w": values}, {"mu": {"w": 2 * values}})


def like(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


@pytest.fixture
def three_saves(tmp_path) -> Path:
    """Checkpoints of steps 1, 2, 3, of which two are kept."""
    checkpointer, stream = Checkpointer(tmp_path / "checkpoints"), Counter()
    for step in (1, 2, 3):
        stream.value = step
        checkpointer.save(step, state_of(step), stream)
    checkpointer.close()
    return tmp_path


def restored(directory: Path, stream: Counter) -> tuple[int, float, bool]:
    checkpointer = Checkpointer(directory / "checkpoints")
    state, step, moved = checkpointer.restore(like(state_of(0)), stream)
    np.testing.assert_array_equal(state.opt_state["mu"]["w"], 2 * state.params["w"])
    checkpointer.close()
    return step, float(state.params["w"][0]), moved


def cut(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {
    "files cut off": lambda step: cut(step),
    "parameters lost": lambda step: shutil.rmtree(step / "params"),
    "optimiser cut off": lambda step: cut(step / "optimizer"),
    "stream's state cut off": lambda step: cut(step / "data"),
    "data files lost": lambda step: [shutil.rmtree(d) for d in (step / "params").rglob("d")],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before_it(three_saves, damage, capsys):
    DAMAGES[damage](three_saves / "checkpoints" / "3")
    stream = Counter()
    assert restored(three_saves, stream) == (2, 2.0, True)
    assert stream.value == 2
    assert "checkpoint 3 is damaged" in capsys.readouterr().err
    assert (three_saves / "checkpoints-damaged" / "3").is_dir()
    checkpointer = Checkpointer(three_saves / "checkpoints")
    checkpointer.save(3, state_of(3), Counter())
    checkpointer.close()
    assert restored(three_saves, Counter())[0] == 3


def test_when_every_checkpoint_is_damaged_the_run_does_not_start_over(three_saves):
    for step in (2, 3):
        cut(three_saves / "checkpoints" / str(step))
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged: 3: .*; 2: "):
        restored(three_saves, Counter())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        PermissionError("not yours"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
        ValueError("PERMISSION_DENIED: Error reading gs://bucket/run"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_no_damage_is_raised_and_the_checkpoint_stays(three_saves, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(Checkpointer, "_read", fail)
    with pytest.raises(type(error)):
        restored(three_saves, Counter())
    monkeypatch.undo()
    assert restored(three_saves, Counter())[0] == 3


def test_a_checkpoint_that_cannot_be_read_once_is_read_again(three_saves, monkeypatch):
    read, failures = Checkpointer._read, [OSError("connection reset")]

    def flaky(*arguments):
        if failures:
            raise failures.pop()
        return read(*arguments)

    monkeypatch.setattr(Checkpointer, "_read", flaky)
    assert restored(three_saves, Counter()) == (3, 3.0, True)
    assert not (three_saves / "checkpoints-damaged").exists()


def test_a_stream_of_other_shards_is_left_where_it_is(three_saves):
    stream = Counter("1-of-4")
    assert restored(three_saves, stream) == (3, 3.0, False)
    assert stream.value == 0


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_those_before_it_stay(three_saves):
    checkpointer = Checkpointer(three_saves / "checkpoints")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = jax.random.normal(jax.random.key(0), (1 << 18,))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        with pytest.raises(WriteFailed, match=r"a checkpoint could not be written to .*points"):
            checkpointer.save(4, TrainState(jnp.int32(4), {"w": noise}, ()), Counter())
            checkpointer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert restored(three_saves, Counter())[0] == 3


def test_a_disk_without_room_is_refused_before_the_run_starts(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path / "checkpoints", "eval/p1")
    state = state_of(0, 1000)
    # The step and two arrays of 1,000 numbers; two last, one best, and one on its way.
    needed = checkpointer.bytes_needed(like(state))
    assert needed == 4 * (4 + 2 * 4000)
    checkpointer.save(1, state, Counter(), {"eval/p1": 0.5})
    checkpointer.close()
    again = Checkpointer(tmp_path / "checkpoints", "eval/p1")
    assert again.bytes_needed(like(state)) == needed * 3 / 4
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed - 1))
    with pytest.raises(OSError, match=r"has 3.2e-05 GB free; .* need up to 3.2e-05 GB"):
        check_room(tmp_path, needed)
    check_room(tmp_path, needed - 1)


def test_a_workdir_that_cannot_be_written_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"--workdir .*file/run cannot be written: Not a directory"):
        check_workdir(tmp_path / "file" / "run")
    check_workdir(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []


def test_so_many_bad_steps_in_a_row_end_the_run_and_name_the_records():
    watch = FiniteWatch(3, lambda step: [f"toy:{step}-{i}" for i in range(40)])
    assert watch.check(4, np.array([1, 0, 0, 1])) == 2
    assert watch.check(6, np.array([1, 0])) == 1
    with pytest.raises(
        Diverged, match=r"3 steps in a row .* Records of step 8: toy:7-0, .* 8 more"
    ):
        watch.check(8, np.array([0, 0]))
    forever = FiniteWatch(0, lambda step: [])
    assert forever.check(50, np.zeros(50)) == 50


def test_sigterm_is_noticed_and_what_handled_it_before_handles_it_again():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.stop_requested(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.stop_requested(2)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("spec", ["on", "host,2,0", "host:1,2,2", "host:1,2"])
def test_another_way_to_join_processes_is_refused(spec):
    with pytest.raises(ValueError, match=r"is not auto, off or HOST:PORT,N,I"):
        distributed.start(spec)


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, False),  # a shell inside an allocation
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_processes_of_a_cluster_know_it(environment, several):
    assert distributed._is_one_of_several(environment | {"JAX_PLATFORMS": "cpu"}) == several
    if "SLURM_STEP_NODELIST" in environment:
        environment["SLURM_NTASKS"] = "16"
        assert distributed._is_one_of_several(environment)


def test_means_leave_out_what_is_not_finite():
    steps = [dict(loss=1.0, z=np.nan, finite=1), dict(loss=np.inf, z=np.nan, finite=0)]
    assert means(steps) == {"loss": 1.0}


def test_a_log_of_no_file_writes_nothing(tmp_path):
    log = MetricsLog(None)
    log.write(1, {"loss": 1.0})
    log.close()


def test_tensorboard_gets_every_metric(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, [TensorBoard(tmp_path, 0, {})])
    log.write(1, {"loss": 2.0, "eval/p1": 0.5})
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes() and b"eval/p1" in events.read_bytes()


@pytest.mark.parametrize(("writer", "module"), [(TensorBoard, "tensorboardX"), (WandB, "wandb")])
def test_a_writer_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch, writer, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ValueError, match=rf"needs {module}: pip install 'crem_jax\["):
        writer(tmp_path, 0, {})


def test_the_meter_counts_tokens_waiting_and_utilisation(monkeypatch):
    region = np.full((2, 10), PAD)
    region[0, :5] = 0
    context = Context(np.zeros((2, 10), np.int32), np.zeros((2, 10, 3), np.int32), region)
    none = np.zeros(0, np.int32)
    meter = Meter(samples=4, flops=6.0, peak=12.0)
    for _ in range(3):
        meter.count(Batch({"text": context}, {}, none, none, none, none))
    meter._waited, now = 0.5, meter._since + 2.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    got = meter.read()
    assert got["samples_per_second"] == 6 and got["tokens_per_second"] == 7.5
    assert got["data_wait"] == 0.25 and got["utilisation"] == 0.75
    assert got["memory_gb"] > 0.05


def test_a_trace_of_the_steps_asked_for_is_written_and_none_otherwise(tmp_path):
    step = jax.jit(lambda x: x + 1)
    for steps in (0, 2):
        with Trace(tmp_path / str(steps), 2, steps) as trace:
            for number in range(1, 6):
                trace.at(number)
                step(number)
    assert not (tmp_path / "0").exists()
    assert list((tmp_path / "2").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        (Preempted(7), 75, "saved at step 7 on SIGTERM"),
        (Diverged("not finite"), 2, "not finite"),
        (WriteFailed("a checkpoint could\nnot"), 1, "crem train: a checkpoint could not\n"),
    ],
)
def test_the_exit_code_says_whether_the_same_command_goes_on(
    capsys, monkeypatch, tmp_path, end, code, told
):
    def train(*_, **__):
        raise end

    monkeypatch.setattr("crem_jax.train.loop.train", train)
    config = Path(__file__).parents[2] / "configs" / "emoji.py"
    done = crem(capsys, "train", f"--config={config}:smoke", f"--workdir={tmp_path}")
    assert done.code == code and told in done.err


@pytest.mark.parametrize(
    ("error", "code"), [(WriteFailed("full"), 1), (OSError("full"), 2), (RuntimeError("full"), 1)]
)
def test_one_process_of_several_ends_with_the_same_code(monkeypatch, capsys, error, code):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as stop, distributed.job("off"):
        raise error
    assert stop.value.code == code
    told = capsys.readouterr().err
    assert "process 0 of 2" in told
    assert ("Traceback" in told) == (type(error) is RuntimeError)


def test_metrics_on_a_full_disk_are_an_error_of_writing(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    monkeypatch.setattr(log._log, "_file", open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    with pytest.raises(WriteFailed, match=r"metrics\.jsonl: No space left on device"):
        log.write(1, {"loss": 1.0})


def test_an_unknown_place_for_metrics_is_refused(capsys, tmp_path):
    done = crem(capsys, "train", "--config=x.py", f"--workdir={tmp_path}", "--log=csv")
    assert done.code == 2 and "--log 'csv' is not one of tensorboard, wandb" in done.err


def test_a_bucket_gets_the_small_files_and_gives_them_back(tmp_path):
    """The bucket is a directory here; the names of checkpoints in it are left alone."""
    bucket = epath.Path(tmp_path / "bucket")
    for part in ("one", "two"):
        run = RunDirectory("gs://bucket/run", mirror=tmp_path / part)
        run.remote, run.checkpoints = bucket, bucket / "checkpoints"
        run.pull()
        if part == "one":
            (run.checkpoints / "5").mkdir(parents=True)
            (run.local / "metrics.jsonl").write_text('{"step": 1}\n')
            (run.local / "tokenizer").mkdir()
            (run.local / "tokenizer" / "a.json").write_text(json.dumps([1]))
            run.push(now=False)
            assert not (bucket / "metrics.jsonl").exists()
            run.push()
    assert read_metrics(run.local / "metrics.jsonl") == [{"step": 1}]
    assert (run.local / "tokenizer" / "a.json").read_text() == "[1]"
    assert not (run.local / "checkpoints").exists()
    assert not run.is_local and RunDirectory(tmp_path).is_local


@pytest.fixture
def bucket(tmp_path) -> RunDirectory:
    """A run whose bucket is a directory, with small files to push."""
    run = RunDirectory("gs://bucket/run", mirror=tmp_path / "mirror")
    run.remote = epath.Path(tmp_path / "bucket")
    run.pull()
    for name in ("a.json", "metrics.jsonl", ".timing.json.partial"):
        (run.local / name).write_text(name)
    return run


def test_files_that_are_being_written_or_vanish_are_not_pushed(bucket, monkeypatch):
    read = Path.read_bytes

    def vanish(path):
        if path.name == "a.json":
            path.unlink()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", vanish)
    bucket.push()
    assert [path.name for path in bucket.remote.glob("*")] == ["metrics.jsonl"]


def test_a_bucket_that_does_not_answer_is_tried_again_and_must_in_the_end(
    bucket, monkeypatch, capsys
):
    def fail(*_):
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(bucket, "_copy_up", fail)
    bucket.push(must=False)
    assert "gs://bucket/run cannot be written: reset by peer; this" in capsys.readouterr().err
    with pytest.raises(WriteFailed, match="gs://bucket/run cannot be written: reset by peer"):
        bucket.push()
    monkeypatch.undo()
    bucket.push()
    assert (bucket.remote / "a.json").read_text() == "a.json"


def test_every_process_has_the_small_files_and_gives_back_those_it_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr("crem_jax.train.run.workdir._MIRRORS", tmp_path / "mirrors")
    bucket, runs = epath.Path(tmp_path / "bucket"), []
    (tmp_path / "bucket").mkdir()
    for name in ("crem.json", "bad_records-1.jsonl"):
        (tmp_path / "bucket" / name).write_text("before")
    for index in (0, 1):
        monkeypatch.setattr(distributed, "share", lambda index=index: (index, 2))
        monkeypatch.setattr(distributed, "is_main", lambda index=index: not index)
        run = RunDirectory("gs://bucket/run")
        run.remote = bucket
        run.pull()
        assert (run.local / "crem.json").read_text() == "before"
        runs.append(run)
    assert runs[0].local != runs[1].local
    (runs[1].local / "bad_records-1.jsonl").write_text("after, longer")
    os.utime(runs[1].local / "bad_records-1.jsonl", (1, 1))
    for run in reversed(runs):  # process 0 last: what it has not changed must not win
        run.push()
    assert (bucket / "bad_records-1.jsonl").read_text() == "after, longer"


def test_a_kill_leaves_the_small_files_as_they_were(tmp_path, tiny_model_dir, monkeypatch):
    """Cut off where a file that has been written takes the place of the one before it."""

    def kill(*_):
        raise KeyboardInterrupt

    run = shutil.copytree(tiny_model_dir, tmp_path / "run")
    config, tokenizer = load_config(run), read_tokenizer(run / "tokenizer")
    recipe.write(run, {"seed": 1}, {}, 0)
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr(os, "replace", kill)
    for write in (
        lambda: recipe.write(run, {"seed": 1}, {}, 5),
        lambda: MetricsLog(run / "metrics.jsonl", 1),
        lambda: save_model_files(run, config.replace(temperature=0.5), tokenizer),
    ):
        with pytest.raises(KeyboardInterrupt):
            write()
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_start_after_a_kill_writes_the_files_and_leaves_nothing_else(tmp_path, tiny_model_dir):
    run = shutil.copytree(tiny_model_dir, tmp_path / "run")
    (run / ".tokenizer.partial").mkdir()
    (run / ".tokenizer.partial" / "tokenizer.json").write_text('{"cut')
    before = {path.relative_to(tiny_model_dir) for path in tiny_model_dir.rglob("*")}
    config = load_config(run).replace(temperature=0.5)
    save_model_files(run, config, read_tokenizer(run / "tokenizer"))
    assert load_config(run) == config and read_tokenizer(run / "tokenizer")
    assert {path.relative_to(run) for path in run.rglob("*")} == before


def test_a_recipe_that_was_cut_off_is_named(tmp_path):
    recipe.write(tmp_path, {"seed": 1}, {}, 0)
    recipe.write(tmp_path, {"seed": 1}, {}, 3)
    recipe.refuse_another(tmp_path, {"seed": 1})
    starts = json.loads((tmp_path / "recipe.json").read_text())["made_with"]
    assert [start["from_step"] for start in starts] == [0, 3]
    cut(tmp_path)
    with pytest.raises(ValueError, match=r"recipe\.json is no JSON \(.*\); remove it to go on"):
        recipe.refuse_another(tmp_path, {"seed": 1})


def test_the_commit_is_gits_or_that_of_the_copy(tmp_path):
    assert recipe.git_commit(tmp_path) is None
    (tmp_path / "COMMIT").write_text("abc+\n")
    assert recipe.git_commit(tmp_path) == "abc+"
    (tmp_path / "file").write_text("1")
    author = ("-c", "user.name=x", "-c", "user.email=x@x")
    for words in (("init", "-q"), ("add", "file"), (*author, "commit", "-qm", "x"), ("tag", "v1")):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    commit = recipe.git_commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (tmp_path / "file").write_text("2")
    assert recipe.git_commit(tmp_path) == commit + "+"
