"""`crem train` and `crem eval`: overrides, timing, resuming, summary and report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from crem_jax.commands import timing
from crem_jax.commands.recipe import read_recipe
from crem_jax.commands.timing import TrainingClock, read_timing
from crem_jax.evaluate import registry
from crem_jax.files import WriteFailed
from crem_jax.report import emoji as emoji_report
from crem_jax.report import run as run_report
from tests.support.cli_runner import crem

CONFIG = str(Path(__file__).parents[2] / "configs" / "emoji.py")
MEASURED = (
    *("heldout_name_p1", "heldout_name_p5", "heldout_picture_p1", "scene_p1", "scene_hard_p1"),
    *("scene_vqa_native", "scene_vqa_compressed", "scene_vqa_majority"),
    *("describe_seen_exact_native", "describe_seen_exact_compressed"),
)
SCORES = dict.fromkeys(MEASURED, 0.5) | {"elastic": {1: 0.25, 4: 0.5}}


@pytest.fixture
def pretend(monkeypatch):
    """An evaluation and a show that cost nothing; the real ones have tests of their own."""
    fake = SimpleNamespace(
        quick=lambda model: {"validation_name_p5": 0.5}, evaluate=lambda m: SCORES
    )
    monkeypatch.setattr(registry, "EVALUATORS", {"emoji": fake})
    monkeypatch.setattr(run_report, "SHOWS", {"emoji": lambda workdir, model: [workdir / "seen"]})


def test_overrides_take_the_type_of_the_key():
    flags = ["--config.optim.lr=1e-4", "--config.steps", "7", "--config.loss.symmetric=false"]
    config = read_recipe(f"{CONFIG}:smoke,arm=retrieval_only", flags)
    assert config.optim.lr == 1e-4 and config.steps == 7 and config.loss.symmetric is False
    assert config.loss.generation == 0


SMALL = """
from crem_jax.configs import emoji

def get_config(arg):
    config = emoji.get_config(arg)
    size = dict(hidden_size=32, intermediate_size=32, num_layers=1, num_heads=1, num_kv_heads=1)
    config.model.text.update(size)
    config.model.vision.update(depth=1, embed_dim=32, num_heads=1)
    for unused in ("sources.scenes", "records.scenes", "buckets.text", "buckets.scene"):
        section, key = unused.split(".")
        del config.data[section][key]
    return config
"""
"""The packaged recipe for a smaller model that sees no scenes: quick to compile."""


def test_train_then_eval_and_the_same_command_trains_no_further(
    capsys, tmp_path, pretend, monkeypatch
):
    run, config = tmp_path / "run", tmp_path / "small.py"
    config.write_text(SMALL)
    command = ["train", f"--config={config}:smoke,arm=retrieval_only", f"--workdir={run}"]
    command += ["--config.steps=4", "--config.eval_every", "4", "--config.optim.name=adamw"]
    command += ["--log=tensorboard", "--profile=1"]
    done = crem(capsys, *command, "--json").json
    assert done["eval/validation_name_p5"] == 0.5 and done["peak_rss_mb"] > 100
    assert done["files"] == [str(run / "curves.png"), str(run / "seen")]
    assert done["train_seconds"] == read_timing(run)["train_seconds"] > 0
    (events,) = (run / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()
    assert list((run / "profile").rglob("*.xplane.pb"))

    assert "was trained already" in crem(capsys, *command).out
    assert read_timing(run)["train_seconds"] == done["train_seconds"]
    other = crem(capsys, *command, "--config.seed=5")
    assert other.code == 2 and "another config (different: seed)" in other.err

    monkeypatch.setenv("CREM_START", str(time.time() - 1000))
    summary = crem(capsys, "eval", run, "--json").json
    costs = {"train_seconds", "total_seconds", "peak_rss_mb"}
    assert set(summary) == {*MEASURED, *costs, "elastic"}
    assert summary == json.loads((run / "summary.json").read_text())
    assert summary["train_seconds"] == done["train_seconds"]
    assert 1000 <= summary["total_seconds"] < 1200
    assert summary["elastic"] == {"1": 0.25, "4": 0.5}
    monkeypatch.delenv("CREM_START")
    table = crem(capsys, "eval", run, "--step", "last", "--out", tmp_path / "x.json")
    assert "0.500 │ scene_hard_p1" in table.out
    assert json.loads((tmp_path / "x.json").read_text())["total_seconds"] < 1000


def test_a_model_that_was_not_trained_here_has_no_training_time(
    capsys, tiny_model_dir, tmp_path, pretend
):
    got = crem(capsys, "eval", tiny_model_dir, "--out", tmp_path / "s.json", "--json").json
    assert got["train_seconds"] is None and got["peak_rss_mb"] > 100


def test_the_clock_adds_up_the_parts_of_a_run_and_counts_the_killed_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("crem_jax.commands.timing._WRITE_EVERY", 0.01)
    with pytest.raises(RuntimeError), TrainingClock(tmp_path):
        time.sleep(0.3)
        assert read_timing(tmp_path)["train_seconds"] >= 0.1
        raise RuntimeError
    with TrainingClock(tmp_path):
        time.sleep(0.2)
    assert 0.5 <= read_timing(tmp_path)["train_seconds"] < 5


def test_a_clock_that_cannot_write_says_so_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("crem_jax.commands.timing._WRITE_EVERY", 0.01)
    (tmp_path / "timing.json").mkdir()
    monkeypatch.setattr(timing, "read_timing", lambda directory: {})
    with pytest.raises(WriteFailed, match="Is a directory"), TrainingClock(tmp_path) as clock:
        time.sleep(0.1)
        assert clock._thread.is_alive()


class Guesser:
    """Embeds by content and answers "tiger" to everything."""

    config = SimpleNamespace(num_chorus=4)

    def encode(self, items):
        seeds = [abs(hash(str(np.asarray(item).tobytes()))) % 2**32 for item in items]
        vectors = np.stack([np.random.default_rng(s).standard_normal(8) for s in seeds])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def generate(self, items, compressed=False):
        return ["tiger"] * len(items)


def test_the_report_shows_finds_answers_and_pictures_named_by_content(tmp_path):
    written = emoji_report.show(tmp_path, Guesser())
    assert [path.name for path in written] == ["retrieval.png", "answers.png", "pictures"]
    assert all(path.exists() for path in written)
    names = {path.stem for path in (tmp_path / "pictures").iterdir()}
    assert {"tiger", "pizza", "cactus-top-left-pizza-bottom-right"} <= names
    assert len(names) == 72
