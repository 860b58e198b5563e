"""One run reads MMEB's, ShareGPT-4V's and tfds' formats; the packaged emoji come in all of them."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections import Counter
from pathlib import Path

import pytest

from crem_jax.commands.recipe import read_recipe
from crem_jax.configs.schema import TrainConfig
from crem_jax.data.batches.stream import Stream
from crem_jax.data.emoji.example_files import write
from crem_jax.data.sources.registry import SOURCES, make_source, make_sources
from tests.support import toy
from tests.support.cli_runner import crem

CONFIGS = Path(__file__).parents[2] / "configs"
COUNT = 60


@pytest.fixture(scope="module")
def formats(tmp_path_factory) -> Path:
    """60 emoji in every format, and those of MMEB's prepared."""
    from crem_jax.cli import main

    root = write(tmp_path_factory.mktemp("emoji") / "emoji", COUNT)
    assert main(["prepare", str(root / "mmeb"), str(root / "prepared"), "--workers", "1"]) == 0
    return root


def overrides(formats: Path) -> list[str]:
    """The paths of `configs/mixture.py`, and a model of one layer."""
    return [
        f"--config.data.sources.mmeb.path={formats / 'prepared'}",
        f"--config.data.sources.sharegpt.path={formats / 'talk.json'}",
    ]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_the_sources_of_every_config_exist_and_take_their_arguments(path):
    data = TrainConfig.of(read_recipe(str(path))).data
    for source in data.sources.values():
        inspect.signature(SOURCES[source.kind]).bind(**source.arguments())
    assert data.names == sorted(data.sources)


def test_all_formats_say_the_same(formats):
    own, mmeb, prepared, talk = (
        make_source(*source)
        for source in (
            ("jsonl", {"path": formats / "pairs.jsonl"}),
            ("mmeb", {"path": formats / "mmeb", "subset": "Emoji_i2t"}),
            ("tfds", {"path": formats / "prepared"}),
            ("sharegpt", {"path": formats / "talk.json"}),
        )
    )
    assert (len(own), len(mmeb), len(prepared), len(talk)) == (COUNT, COUNT, 2 * COUNT, COUNT)
    for i in range(COUNT):
        names = [item.text for item in own.record(i).positives]
        assert mmeb.record(i).positives[0].text == prepared.record(i).positives[0].text == names[0]
        wrong = [item.text for item in own.record(i).negatives]
        assert [item.text for item in mmeb.record(i).negatives] == wrong
        assert not set(wrong) & set(names)
        image = Path(own.record(i).query.images[0]).read_bytes()
        assert prepared.record(i).query.images == (image,)
        assert prepared.record(COUNT + i).positives[0].images == (image,)
        if i % 10:
            assert Path(talk.record(i).query.images[0]).read_bytes() == image
            assert talk.record(i).turns[0] == ("What is this?", names[0])
        else:
            assert talk.record(i).query.text == f"Which group? {names[0]}"
            assert talk.problems(i) == mmeb.problems(i) == []


def test_a_batch_of_the_mixture_has_its_share_of_every_format(formats):
    data = TrainConfig.of(read_recipe("mixture:smoke", overrides(formats))).data
    sources = make_sources(data.sources)
    vision = dataclasses.replace(toy.config().vision, min_pixels=48 * 48, max_pixels=48 * 48)
    stream = Stream(sources, data.spec, toy.prompter(vision=vision), seed=1)
    seen: Counter[str] = Counter()
    for step in range(8):
        batch, packed = stream.make(step)
        assert packed.skipped == () and packed.unplaced == ()
        assert (batch.query_row >= 0).sum() == sum(bool(r.positives) for r in stream.records(step))
        seen.update(stream.spec.names[ref.source] for ref in stream.refs(step))
    assert seen.total() == 8 * 16 and min(seen.values()) >= 16 and set(seen) == set(sources)
    assert seen["mmeb"] > max(seen["sharegpt"], seen["tfds"])


@pytest.mark.slow
def test_a_mixture_of_three_formats_trains_end_to_end(formats, tmp_path, capsys):
    command = ["train", f"--config={CONFIGS / 'mixture.py'}:smoke", f"--workdir={tmp_path / 'run'}"]
    done = crem(capsys, *command, *overrides(formats), "--config.evaluate=", "--json")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] and rows[-1]["data_skipped"] == 0
    command = ["find", tmp_path / "run", "a cat", "--in", formats / "photos", "--json"]
    found = crem(capsys, *command, "--out", tmp_path / "find.png")
    assert len(found.json["results"]) == 5


@pytest.mark.slow
def test_your_own_pairs_train_end_to_end(formats, tmp_path, capsys):
    source = f"--config.data.sources.mine.path={formats / 'pairs.jsonl'}"
    command = ["train", f"--config={CONFIGS / 'own.py'}:smoke", f"--workdir={tmp_path / 'run'}"]
    done = crem(capsys, *command, source, "--json")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["step"] == 4
