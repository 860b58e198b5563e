"""What earlier versions made opens in this one: a run, its library and its export of December 2026.

`tests/fixtures/2026-12.tar.xz` holds run/ (a tiny model at step 2 of 4), library/ (three pictures),
export/ (Hugging Face format), pictures/, and expected.json: what that version made of them.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import crem_jax
from crem_jax import library
from tests.support.cli_runner import crem

FIXTURE = Path(__file__).parents[1] / "fixtures" / "2026-12.tar.xz"
TINY = {
    "model.text.hidden_size": 32,
    "model.text.intermediate_size": 48,
    "model.text.num_heads": 2,
    "model.text.num_kv_heads": 2,
    "model.text.mrope_section": (2, 3, 3),
    "model.vision.embed_dim": 16,
    "model.vision.num_heads": 2,
    "model.vision.mlp_ratio": 2,
    "model.num_chorus": 4,
    "data.buckets.label.slots": 20,
    "data.buckets.text.slots": 30,
    "data.buckets.picture.slots": 22,
    "data.buckets.scene.slots": 58,
    "eval_every": 4,
    "checkpoint_every": 2,
    "evaluate": "",
    "best_metric": "",
}
"""Keys in which the run differs from `configs/emoji.py:smoke`."""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("older")
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(directory, filter="data")
    return directory


@pytest.fixture(scope="module")
def expected(files) -> dict:
    return json.loads((files / "expected.json").read_text())


@pytest.fixture(scope="module")
def model(files) -> crem_jax.Model:
    return crem_jax.load(files / "run")


@pytest.fixture(scope="module")
def items(files) -> list:
    pictures = sorted((files / "pictures").glob("*.png"))
    return ["a tiger", "a red square", *({"image": picture} for picture in pictures)]


def test_an_older_run_gives_the_embeddings_it_gave(model, items, expected):
    np.testing.assert_allclose(model.encode(items), expected["embeddings"], atol=1e-5)


def test_an_older_export_gives_the_embeddings_it_gave(files, items, expected):
    found = crem_jax.load(files / "export").encode(items)
    np.testing.assert_allclose(found, expected["embeddings"], atol=1e-5)


def test_the_fingerprint_of_a_model_stays(model, expected):
    assert model.fingerprint == expected["fingerprint"]


def test_an_older_library_is_found_in_and_asked(files, model, expected):
    older = library.open(files / "library")
    older.check_model(model)
    hits = older.search(model.encode(["a tiger"])[0], top=3)
    assert [hit.entry.id for hit in hits] == [name for name, _ in expected["found"]]
    scores = [score for _, score in expected["found"]]
    np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-4)
    names = sorted(name for name, _ in expected["found"])
    answers = model.ask(older.memories(names), ["What is this?"] * 3, max_new_tokens=6)
    asked = [{"image": files / "pictures" / name, "text": "What is this?"} for name in names]
    assert answers == model.generate(asked, compressed=True, max_new_tokens=6)


def test_an_older_library_takes_more(files, model, tmp_path, capsys):
    place = tmp_path / "library"
    shutil.copytree(files / "library", place)
    done = crem(capsys, "index", files / "run", files / "pictures", "--library", place, "--json")
    assert done.code == 0, done.err
    assert done.json["entries"] == 3 and done.json["unchanged"] == 3


def test_an_older_run_goes_on_where_it_was(files, tmp_path, capsys, expected):
    run = tmp_path / "run"
    shutil.copytree(files / "run", run)
    flags = [f"--config.{key}={value}" for key, value in TINY.items()]
    done = crem(capsys, "train", "--config=configs/emoji.py:smoke", f"--workdir={run}", *flags)
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line, then in zip(lines[2:], expected["metrics"], strict=True):
        for name in ("loss", "retrieval", "generation", "grad_norm"):
            assert line[name] == pytest.approx(then[name], rel=1e-3), name
