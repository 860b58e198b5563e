"""What a person can get wrong, and the one sentence that says so.

Damaged weights and pictures in all their variety: test_convert_errors.py and test_image.py; here is
how they reach the user.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import crem_jax
from crem_jax.cli import main
from crem_jax.convert.huggingface import export_hf
from crem_jax.data.images.decode import PictureError
from crem_jax.data.inputs.padding import PromptError

CONFIG = str(Path(__file__).parents[2] / "configs" / "emoji.py")
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def model(tiny_model_dir) -> crem_jax.Model:
    return crem_jax.load(tiny_model_dir)


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory) -> Path:
    """A Hugging Face directory of a Qwen2-VL without chorus tokens."""
    directory = tmp_path_factory.mktemp("plain") / "qwen"
    config = model.config.replace(num_chorus=0, first_chorus_id=-1)
    export_hf(config, jax.device_get(model.params), model.tokenizer, directory)
    return directory


@pytest.fixture
def exported(model, tmp_path) -> Path:
    """A Hugging Face directory to damage."""
    export_hf(model.config, jax.device_get(model.params), model.tokenizer, tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def folder(picture) -> Path:
    (picture.parent / "folder").mkdir()
    return Path(shutil.copy(picture, picture.parent / "folder")).parent


@pytest.fixture
def refuses(capsys):
    """Asserts that `crem` ends with code 2 and one line on stderr that has these words."""

    def check(argv: list, *words: str) -> None:
        capsys.readouterr()
        assert main([str(arg) for arg in argv]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"crem {argv[0]}: ") and err.count("\n") == 1
        for word in words:
            assert word in err

    return check


# pictures


@pytest.mark.parametrize("kept, complaint", [(None, "is truncated or damaged"), (0, "is empty")])
def test_a_damaged_picture_is_named(
    refuses, tiny_model_dir, model, picture, folder, kept, complaint
):
    data = picture.read_bytes()
    bad = picture.with_name("bad.png")
    bad.write_bytes(data[: len(data) // 2 if kept is None else kept])
    refuses(["tell", tiny_model_dir, bad], f"crem tell: {bad}: {complaint}")
    refuses(["find", tiny_model_dir, "--image", bad, "--in", folder], f"{bad}: {complaint}")
    for call in (model.encode, model.generate):
        with pytest.raises(PictureError, match=f"bad.png: {complaint}"):
            call([{"image": bad, "text": "what?"}])


def test_what_is_no_picture_and_what_is_not_there_are_named(refuses, tiny_model_dir, tmp_path):
    note = tmp_path / "note.png"
    note.write_text("hello")
    refuses(["tell", tiny_model_dir, note], f"{note}: is not a picture")
    refuses(["tell", tiny_model_dir, tmp_path / "no.png"], f"{tmp_path / 'no.png'}: does not exist")
    refuses(["tell", tiny_model_dir, tmp_path], f"{tmp_path}: is a folder, not a picture")


@pytest.mark.parametrize("size", [(1, 1), (20_000, 20), (20, 20_000)])
def test_the_smallest_and_the_longest_pictures_work(capsys, tiny_model_dir, model, tmp_path, size):
    path = tmp_path / "odd.png"
    Image.new("RGB", size, "teal").save(path)
    (vector,) = model.encode([path])
    np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-5)
    assert main(["tell", str(tiny_model_dir), str(path), "--max_new_tokens", "6"]) == 0
    capsys.readouterr()
    out = str(tmp_path / "grid.png")
    argv = ["find", str(tiny_model_dir), "a tree", "--in", str(tmp_path), "--out", out, "--json"]
    assert main(argv) == 0
    (hit,) = json.loads(capsys.readouterr().out)["results"]
    assert hit["file"] == str(path)


# folders


def test_folders_without_pictures_are_refused(refuses, tiny_model_dir, tmp_path, picture):
    def find(folder):
        return ["find", tiny_model_dir, "a tree", "--in", folder]

    empty = tmp_path / "empty"
    refuses(find(empty), f"folder {empty} does not exist")
    empty.mkdir()
    (empty / "notes.txt").touch()
    refuses(find(empty), f"folder {empty} has no pictures (.jpg, .jpeg, .png")
    refuses(find(picture), f"{picture} is a file; expected a folder of pictures")
    for name in ("a.png", "b.jpg"):
        (empty / name).write_text("no picture")
    refuses(find(empty), "none of the 2 pictures can be read", f"{empty / 'a.png'}: is not a pict")


# prompts


def test_empty_prompts_are_refused(refuses, tiny_model_dir, model, picture, folder):
    refuses(["tell", tiny_model_dir, picture, " "], "the question is empty; expected some text")
    refuses(["find", tiny_model_dir, " ", "--in", folder], "text or at least one picture")
    with pytest.raises(PromptError, match="the question is empty"):
        model.generate([{"image": picture, "text": ""}])
    with pytest.raises(ValueError, match="an item needs text or at least one picture"):
        model.encode(["a tree", ""])
    with pytest.raises(ValueError, match="expected a list of items, got a str"):
        model.encode("a tree")


def test_prompts_longer_than_the_model_are_refused(refuses, tiny_model_dir, model, picture, folder):
    words = "umbrella " * 200
    for argv in (
        ["find", tiny_model_dir, words, "--in", folder],
        ["tell", tiny_model_dir, picture, words],
    ):
        refuses(argv, "128 positions", "begins 'umbrella umbrella")
    with pytest.raises(PromptError, match="more than the model's 128 positions"):
        model.encode([{"image": picture, "text": words}])
    with pytest.raises(PromptError, match="the model has 128 positions"):
        model.generate([{"image": picture, "text": words}])


def test_k_and_dim_out_of_range_are_refused(refuses, tiny_model_dir, model, picture, folder):
    for argv in (
        ["find", tiny_model_dir, "a tree", "--in", folder],
        ["tell", tiny_model_dir, picture, "--compressed"],
    ):
        refuses([*argv, "--k", 5], "k = 5 is not in 1..4 (chorus tokens)")
    refuses(
        ["find", tiny_model_dir, "a tree", "--in", folder, "--dim", 33], "dim = 33 is not in 1..32"
    )
    with pytest.raises(ValueError, match=r"k = 0 is not in 1\.\.4"):
        model.encode(["a tree"], k=0)
    with pytest.raises(ValueError, match="k = 2 needs compressed=True"):
        model.generate([{"image": picture, "text": "what?"}], k=2)


# models


def damaged(directory: Path, change) -> Path:
    values = load_file(directory / "model.safetensors")
    change(values)
    save_file(values, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda v: v.pop(NORM), f"missing (1): {NORM}"),
        (lambda v: v.update(more=np.zeros(2)), "extra (1): more"),
        (lambda v: v.update({NORM: np.zeros(3)}), f"{NORM} has shape [3], expected [32]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(refuses, exported, picture, change, complaint):
    damaged(exported, change)
    refuses(["tell", exported, picture], str(exported), complaint)
    refuses(["import", exported, picture.with_name("out")], complaint)
    assert not picture.with_name("out").exists()


def test_truncated_weights_are_named(refuses, exported, picture):
    file = exported / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refuses(["tell", exported, picture], f"{file}: is truncated or damaged")


def test_what_is_no_model_says_so(refuses, picture, tmp_path, tiny_model_dir):
    nowhere = tmp_path / "nowhere"
    refuses(["tell", nowhere, picture], f"{nowhere} is no model: it has neither crem.json")
    refuses(["import", nowhere, tmp_path / "out"], f"{nowhere}: has no config.json")
    refuses(["eval", nowhere], f"{nowhere} is no model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refuses(["tell", tmp_path, picture], "model_type 'bert' is not one of qwen2_vl")
    refuses(["export", tiny_model_dir, tmp_path / "x", "--step", 7], "no checkpoint of step 7")


def test_a_model_directory_that_contradicts_itself_says_so(
    refuses, picture, tmp_path, tiny_model_dir
):
    copy = Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))
    values = json.loads((copy / "crem.json").read_text())
    (copy / "crem.json").write_text(json.dumps({**values, "colour": 1}))
    refuses(["tell", copy, picture], f"{copy / 'crem.json'}: unknown key model.colour")
    (copy / "crem.json").write_text("{")
    refuses(["tell", copy, picture], f"{copy / 'crem.json'}: is no JSON")
    for part, key, found in (
        ("text", "num_heads", 0),
        ("text", "hidden_size", "wide"),
        ("vision", "embed_dim", None),
    ):
        other = {**values, part: {**values[part], key: found}}
        (copy / "crem.json").write_text(json.dumps(other))
        complaint = f"{copy / 'crem.json'}: has a value of the wrong type"
        refuses(["tell", copy, picture], complaint)
    checkpoint = copy / "checkpoints" / "0"
    for key, value, complaint in (
        (
            "intermediate_size",
            56,
            "wrong shape (3): backbone/layers/mlp/down/kernel has shape [1, 48, 32], expected "
            "[1, 56, 32], backbone/layers/mlp/gate/kernel has shape [1, 32, 48], expected "
            "[1, 32, 56], backbone/layers/mlp/up/kernel has shape [1, 32, 48], expected "
            "[1, 32, 56]",
        ),
        ("tie_embeddings", False, "missing (1): backbone/head"),
    ):
        other = {**values, "text": {**values["text"], key: value}}
        (copy / "crem.json").write_text(json.dumps(other))
        refuses(["tell", copy, picture], f"{checkpoint}, by crem.json, does not fit: {complaint}")
    (copy / "crem.json").write_text(json.dumps(values))
    largest = max(checkpoint.rglob("ocdbt*/d/*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    refuses(["tell", copy, picture], f"{checkpoint}: is damaged: ")
    shutil.rmtree(copy / "checkpoints")
    refuses(["tell", copy, picture], f"{copy} has no checkpoint yet")


def test_a_model_without_chorus_tells_natively_and_says_why_it_cannot_find(
    capsys, refuses, plain, picture, folder, tmp_path
):
    why = "this model cannot find: it has no chorus tokens (a plain backbone). Give it some with"
    refuses(["find", plain, "a tree", "--in", folder], why)
    refuses(["tell", plain, picture, "--compressed"], "has no chorus tokens to answer from; ask it")
    assert main(["tell", str(plain), str(picture), "--max_new_tokens", "6"]) == 0
    item = {"image": picture, "text": "What is this?"}
    answer = "".join(crem_jax.load(plain).stream(item, max_new_tokens=6))
    assert capsys.readouterr().out == f"{answer}\n"
    for chorus, found in ((0, 2), (2, 0)):
        out = tmp_path / f"imported-{chorus}"
        assert main(["import", str(plain), str(out), "--chorus", str(chorus)]) == 0
        grid = str(tmp_path / "grid.png")
        assert main(["find", str(out), "a tree", "--in", str(folder), "--out", grid]) == found


# configs


def test_an_unknown_config_key_is_named_with_its_neighbours(refuses, tmp_path):
    command = ["train", f"--config={CONFIG}:smoke", f"--workdir={tmp_path / 'run'}"]
    refuses([*command, "--config.optim.lrr=1"], "unknown config key 'optim.lrr'", "optim.lr")
    refuses([*command, "--config.lr=1"], "unknown config key 'lr'", "near matches: optim.lr")
    refuses(
        [*command, "--config.loss.zebra=1"], "'loss.zebra'", "loss.elastic, loss.elastic_k, loss."
    )
    refuses([*command, "--config.steps=many"], "--config.steps=many: expected a whole number")
    assert not (tmp_path / "run").exists()


def test_a_config_that_makes_no_sense_names_the_key(refuses, tmp_path):
    def train(body: str) -> list[str]:
        (tmp_path / "c.py").write_text(
            "import importlib.util as u\n"
            f"spec = u.spec_from_file_location('emoji', {CONFIG!r})\n"
            "emoji = u.module_from_spec(spec); spec.loader.exec_module(emoji)\n"
            "def get_config():\n    config = emoji.get_config('smoke')\n"
            f"    {body}\n    return config\n"
        )
        return ["train", f"--config={tmp_path / 'c.py'}", f"--workdir={tmp_path / 'run'}"]

    refuses(train("config.model.text.colour = 1"), "unknown key model.text.colour; known keys: ")
    refuses(
        train("config.loss.colour = 1"),
        "unknown key loss.colour; known keys: cache_vision, chunk_rows, ",
    )
    refuses(train("config.data.sources.emoji.kind = 'moji'"), "data.sources.emoji.kind 'moji' is")
    refuses(train("config.evaluate = 'moji'"), "config.evaluate 'moji' is not one of emoji, or ''")
    refuses(["train", f"--config={CONFIG}:smok", "--workdir=w"], "unknown config option 'smok'")
    refuses(["train", "--config=none.py", "--workdir=w"], "config file none.py does not exist")
    (tmp_path / "d.py").touch()
    refuses(["train", f"--config={tmp_path / 'd.py'}", "--workdir=w"], "d.py has no get_config()")
    assert not (tmp_path / "run").exists()
