"""An export in other people's libraries, each in a fresh process that cannot import crem_jax."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from crem_jax.convert.huggingface import export_hf
from crem_jax.data.records import Item
from crem_jax.evaluate.mteb import CremEncoder
from crem_jax.inference import decoding
from crem_jax.inference.batches import context_batches, pad_questions
from crem_jax.inference.model import Model, load
from crem_jax.inference.sampling import Sampling
from crem_jax.inference.streaming import answer_text
from crem_jax.model import crem
from tests.support import mteb_tasks, toy

OUTSIDE = Path(__file__).parents[1] / "support" / "outside.py"
CONFIG = Path(__file__).parents[2] / "configs" / "emoji.py"
QUESTION = "What <|im_end|> is it?"
GREEDY = Sampling()

compress = jax.jit(crem.compress, static_argnums=0)


@pytest.fixture(
    scope="module",
    params=[
        "qwen2_vl",
        pytest.param("qwen2_5_vl", marks=pytest.mark.slow),
        pytest.param("emoji", marks=pytest.mark.slow),
    ],
)
def model(request, seed, tmp_path_factory):
    """Random, or trained for a few steps on the emoji."""
    if request.param == "emoji":
        run = tmp_path_factory.mktemp("runs") / "emoji"
        command = ["train", f"--config={CONFIG}:smoke", f"--workdir={run}"]
        subprocess.run([sys.executable, "-m", "crem_jax", *command], check=True)
        return load(run)
    config = toy.config(system_prompt="You find\n'things'.")
    if request.param == "qwen2_5_vl":
        vision = {"style": "qwen2_5_vl", "depth": 2, "window_size": 32}
        vision = dataclasses.replace(config.vision, full_attention_layers=(1,), **vision)
        config = config.replace(vision=vision)
    params = jax.jit(functools.partial(crem.init, config))(jax.random.key(seed))
    return Model(config, params, toy.tokenizer())


@pytest.fixture(scope="module")
def export(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("ecosystem") / "export"
    export_hf(model.config, model.params, model.tokenizer, directory, card={"name": "A model"})
    return directory


@pytest.fixture(scope="module")
def items(seed, tmp_path_factory):
    """Texts, pictures and both; sizes that resize up and down, modes, EXIF, special tokens."""
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("pictures")

    def picture(height: int, width: int, name: str, mode: str = "RGB", **save) -> str:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / name, **save)
        return str(folder / name)

    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    one = picture(32, 48, "one.png")
    small, large = picture(9, 13, "small.png"), picture(130, 97, "large.png")
    turned = picture(24, 64, "turned.jpg", exif=exif)
    grey, palette = picture(40, 40, "grey.png", "L"), picture(33, 20, "palette.png", "P")
    entries = [
        ("a tiger", []),
        ("<|im_end|> and <|chorus_0|>, <|image_pad|>\n\n étoile 虎  ", []),
        ("", [one]),
        ("", [large]),
        ("", [turned]),
        ("", [palette]),
        ("find the <|vision_start|> key", [small]),
        ("\n\nwhich is older?", [grey, one]),
        ("a <|im_start|>rocket", []),
    ]
    return [{"text": text, "images": images} for text, images in entries]


@pytest.fixture(scope="module")
def outside(export, items, tmp_path_factory):
    """The results of a function of outside.py; all of them start at once."""
    folder = tmp_path_factory.mktemp("outside")
    given = {"items": items, "question": QUESTION}
    (folder / "inputs.json").write_text(json.dumps(given))
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    processes = {}
    for name in ("in_transformers", "in_sentence_transformers", "in_mteb", "in_torch"):
        with open(folder / f"{name}.log", "w") as log:
            command = [sys.executable, "-I", OUTSIDE, name, export, folder / "inputs.json"]
            processes[name] = subprocess.Popen(
                [*command, folder / f"{name}.npz"], env=env, stdout=log, stderr=log
            )

    def results(name: str) -> dict[str, np.ndarray]:
        assert processes[name].wait() == 0, (folder / f"{name}.log").read_text()[-3000:]
        with np.load(folder / f"{name}.npz") as arrays:
            return dict(arrays)

    yield results
    for process in processes.values():
        process.kill()


def paths(items: list[dict]) -> list[dict]:
    return [{**item, "images": [Path(path) for path in item["images"]]} for item in items]


def assert_same_embeddings(got: np.ndarray, expected: np.ndarray) -> None:
    worst = np.abs(got - expected).max(axis=1)
    print("max abs difference of each item:", *(f"{value:.1e}" for value in worst))
    assert worst.max() <= 1e-5


def test_transformers_gives_our_embeddings(model, outside, items):
    results = outside("in_transformers")
    assert_same_embeddings(results["embeddings"], model.encode(paths(items)))


def test_sentence_transformers_gives_our_embeddings(model, outside, items):
    results = outside("in_sentence_transformers")
    assert results["processor"] == "Qwen2VLImageProcessorPil"
    assert_same_embeddings(results["embeddings"], model.encode(paths(items)))
    assert_same_embeddings(results["embeddings of 2"], model.encode(paths(items), k=2))


def test_compressed_answers_in_torch_are_ours_token_by_token(model, outside, items):
    results = outside("in_torch")
    asked = [model.runner.prompter.question(QUESTION)]
    question = pad_questions(asked, 1, model.config.pad_token_id)
    ends = {model.config.eos_token_id, model.config.pad_token_id}
    assert len(results) == 9
    for i, item in enumerate(paths(items[-3:])):
        row = model.runner.prepare(Item.of(item))
        ((_, context),) = context_batches([row], model.config)
        memory = compress(model.config, model.params, context)
        for k in (1, 3, 4):
            said = decoding.generate(
                model.config, model.params, memory.chorus_only(k), *question, GREEDY, 12
            )[0].tolist()
            end = next((n + 1 for n, token in enumerate(said) if token in ends), None)
            assert results[f"{i} {k}"].tolist() == said[:end], (item, k)


def test_the_model_card_does_what_it_says(model, outside, items):
    results = outside("in_mteb")
    assert results["blocks"] == 4
    (picture,) = paths(items)[2]["images"]
    given = ["a tiger", "a rocket", picture, {"image": picture, "text": "find the key"}]
    got = [*results["words"], *results["pictures"]]
    assert_same_embeddings(np.stack(got), model.encode(given))
    assert_same_embeddings(results["embedding"][None], model.encode([picture]))
    asked = {"image": picture, "text": "What is this?"}
    (told,) = model.generate([asked], compressed=True, k=1, max_new_tokens=32)
    assert answer_text(model.config, model.tokenizer, results["said"]) == told
    assert results["passed"]
    ran = {modality: status for status, modality, _ in json.loads(str(results["summary"]))}
    assert "skipped" not in (ran["text"], ran["image"])


def test_mteb_gives_the_same_scores_through_us_and_through_sentence_transformers(model, outside):
    ours = mteb_tasks.scores(CremEncoder(model, "my/model"))
    theirs = json.loads(str(outside("in_mteb")["scores"]))
    assert sorted(ours) == sorted(theirs) and len(ours) == 5
    assert 0 < ours["Noise"]["ndcg_at_10"] < 1
    for task, expected in theirs.items():
        assert ours[task] == pytest.approx(expected, abs=1e-6, nan_ok=True), task
