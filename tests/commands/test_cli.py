"""The face of `crem`, and find, tell, import and export, on a small untrained model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import crem_jax
from crem_jax import trees
from crem_jax.cli import VERBS, main
from tests.support.cli_runner import crem


@pytest.fixture(scope="module")
def model(tiny_model_dir) -> crem_jax.Model:
    return crem_jax.load(tiny_model_dir)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Six pictures in a folder and a subfolder of it, a damaged one, a hidden one, and a text."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more" / ".thumbs").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, suffix in enumerate(("png", "jpg", "webp", "gif", "bmp", "TIF")):
        pixels = rng.integers(0, 256, (20 + 9 * i, 31, 3), dtype=np.uint8)
        where = folder if i % 2 else folder / "more"
        Image.fromarray(pixels).save(where / f"[red] {i}.{suffix}")
    (folder / "broken.jpg").write_bytes((folder / "[red] 1.jpg").read_bytes()[:200])
    Image.new("RGB", (9, 9)).save(folder / "more" / ".thumbs" / "hidden.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


# the face


def test_help_and_import_are_quick_because_they_load_no_jax():
    code = (
        "import sys, crem_jax; from crem_jax.cli import main, VERBS\n"
        "[main([*verb.split(), '--help']) for verb in ['', *VERBS]]; main(['--version'])\n"
        "assert not {'jax', 'transformers', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_crem_alone_lists_its_verbs_and_each_shows_examples(capsys):
    bare = crem(capsys)
    assert bare.code == 0 and all(f"  {verb} " in bare.out for verb in VERBS)
    for verb in VERBS:
        shown = crem(capsys, *verb.split(), "--help")
        assert shown.code == 0 and f"examples:\n  crem {verb} " in shown.out
    assert crem(capsys, "--version").out == f"crem {crem_jax.__version__}\n"


def test_wrong_usage_is_one_line_on_stderr(capsys):
    for argv, reason in (
        (["fnid"], "crem: 'fnid' is no verb; did you mean 'find'?\n"),
        (["tell", "m"], "crem tell: expected IMAGE, or --in LIBRARY --id X\n"),
        (["tell", "m", "i", "--top_p", "0"], "'0' is not a number above 0 and at most 1"),
        (["tell", "m", "i", "--k", "4"], "crem tell: --k 4 needs --compressed"),
        (["find", "m", "w", "--in", ".", "--top", "-1"], "'-1' is not a whole number of at least"),
        (["find", "m", "--in", "."], "crem find: nothing to find; expected words, --image FILE"),
        (["train", "--config=c", "--workdir=w", "--lr=1"], "crem train: unknown argument --lr=1"),
    ):
        got = crem(capsys, *argv)
        assert got.code == 2 and got.out == "" and got.err.count("\n") == 1, argv
        assert reason in got.err


def test_debug_raises_what_is_otherwise_one_line(capsys, monkeypatch, tmp_path):
    argv = ["find", str(tmp_path), "word", "--in", str(tmp_path / "none")]
    assert crem(capsys, *argv).code == 2
    with pytest.raises(FileNotFoundError):
        main([*argv, "--debug"])
    monkeypatch.setenv("CREM_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(argv)


# find


def test_find_ranks_a_folder_as_encode_does(capsys, tiny_model_dir, model, photos, tmp_path):
    out = tmp_path / "grid.png"
    argv = ["find", tiny_model_dir, "a tree", "--in", photos, "--out", out, "--k", 2, "--top", 4]
    got = crem(capsys, *argv, "--json")
    paths = sorted(photos.rglob("[[]red]*"))
    scores = model.encode(paths, k=2) @ model.encode(["a tree"], k=2)[0]
    order = np.argsort(-scores)[:4]
    assert [hit["file"] for hit in got.json["results"]] == [str(paths[i]) for i in order]
    np.testing.assert_allclose([h["score"] for h in got.json["results"]], scores[order], atol=1e-5)
    (skipped,) = got.json["skipped"]
    assert skipped["file"] == str(photos / "broken.jpg") and "is truncated" in skipped["reason"]
    assert got.err == f"crem find: skipped {skipped['reason']}\n"
    assert Image.open(out).width > 300


def test_find_by_a_prefix_of_the_embedding_normalises_it_anew(
    capsys, tiny_model_dir, model, photos, tmp_path
):
    argv = ["find", tiny_model_dir, "a tree", "--in", photos, "--out", tmp_path / "g.png"]
    got = crem(capsys, *argv, "--dim", 8, "--k", 3, "--json").json
    assert (got["dim"], got["k"]) == (8, 3)
    best = Path(got["results"][0]["file"])
    short, whole = (model.encode(["a tree", best], k=3, dim=dim) for dim in (8, None))
    prefix = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(short, prefix, atol=1e-5)
    np.testing.assert_allclose(got["results"][0]["score"], prefix[0] @ prefix[1], atol=1e-5)


def test_a_picture_finds_itself_and_the_table_names_it(
    capsys, tiny_model_dir, photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    image = photos / "[red] 1.jpg"
    got = crem(capsys, "find", "--in", photos, "--image", image, tiny_model_dir)
    first = next(line for line in got.out.splitlines() if " 1 │" in line)
    assert "1.000" in first and str(image) in first
    assert Path("find.png").exists()


def test_words_and_a_picture_are_one_query(capsys, tiny_model_dir, model, photos, tmp_path):
    image = photos / "more" / "[red] 0.png"
    argv = ["--image", image, "--in", photos, "the tree", "--out", tmp_path / "g.png", "--json"]
    got = crem(capsys, "find", tiny_model_dir, *argv)
    (query,) = model.encode([{"image": image, "text": "the tree"}])
    score = query @ model.encode([Path(got.json["results"][0]["file"])])[0]
    np.testing.assert_allclose(got.json["results"][0]["score"], score, atol=1e-5)


# tell


def test_tell_says_what_generate_says(capsys, tiny_model_dir, model, photos):
    image = photos / "[red] 3.gif"
    argv = ["tell", tiny_model_dir, image, "--max_new_tokens", 6]
    item = {"image": image, "text": "What is this?"}
    (greedy,) = model.generate([item], max_new_tokens=6)
    assert crem(capsys, *argv).out == f"{greedy}\n"
    drawn = ["--temperature", 2, "--top_p", 0.9, "--seed", 7]
    how = {"temperature": 2, "top_p": 0.9, "seed": 7}
    (sampled,) = model.generate([item], max_new_tokens=6, **how)
    assert crem(capsys, *argv, *drawn).out == f"{sampled}\n"


def test_tell_answers_a_question_from_a_few_chorus_tokens(capsys, tiny_model_dir, model, photos):
    image = photos / "[red] 3.gif"
    argv = ["--max_new_tokens", 6, "--compressed", "--k", 3, "is it a tree?", "--json"]
    item = {"image": image, "text": "is it a tree?"}
    assert crem(capsys, "tell", tiny_model_dir, image, *argv).json == {
        "answer": "".join(model.stream(item, compressed=True, k=3, max_new_tokens=6)),
        "image": str(image),
        "question": "is it a tree?",
        "compressed": True,
        "k": 3,
        "sinks": 0,
    }


# import, export


def test_export_and_import_give_the_model_back_with_a_card_of_its_run(
    capsys, tiny_model_dir, model, tmp_path
):
    run = tmp_path / "my-run"
    run.symlink_to(tiny_model_dir, target_is_directory=True)
    (tiny_model_dir / "summary.json").write_text(json.dumps({"scene_p1": 0.875}))
    recipe = {"steps": 12, "optim": {"lr": 0.5}}
    recipe["data"] = {"sources": {"birds": {"split": "train"}}, "records": {"birds": 3}}
    (tiny_model_dir / "recipe.json").write_text(json.dumps(recipe))
    hf, back = tmp_path / "hf", tmp_path / "back"
    try:
        assert crem(capsys, "export", run, hf).code == 0
    finally:
        (tiny_model_dir / "summary.json").unlink()
        (tiny_model_dir / "recipe.json").unlink()
    card = (hf / "README.md").read_text()
    for fact in ("| scene_p1 | 0.875 |", "steps: 12", "optim: lr 0.5", "birds: split train; 3 rec"):
        assert fact in card
    said = crem(capsys, "import", hf, back, "--verify", "--json").json
    assert said.pop("seconds") > 0
    assert said.pop("bytes") == sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert said == {
        "model": str(back),
        "num_chorus": 4,
        "had_chorus": True,
        "verified": True,
    }
    loaded = crem_jax.load(back)
    assert loaded.config == model.config
    for path, leaf in trees.flatten(model.params).items():
        np.testing.assert_array_equal(trees.flatten(loaded.params)[path], leaf)
    again = crem(capsys, "import", hf, back)
    assert again.code == 2 and f"{back}: already has files" in again.err
    full = crem(capsys, "export", back, hf, "--dtype", "bfloat16")
    assert full.code == 2 and "already has files in it" in full.err
    assert crem(capsys, "export", back, hf, "--dtype", "bfloat16", "--overwrite").code == 0
    np.testing.assert_allclose(
        crem_jax.load(hf).encode(["a tree"]), model.encode(["a tree"]), atol=0.05
    )


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux only")
@pytest.mark.parametrize("given", [None, "glibc.malloc.check=0"])
def test_training_starts_anew_with_huge_pages_unless_the_user_has_set_malloc(given):
    code = (
        "import os; from crem_jax.commands.memory import use_huge_pages\n"
        "print(os.getpid()); import sys; sys.stdout.flush(); use_huge_pages()\n"
        "print(os.environ['GLIBC_TUNABLES'])"
    )
    env = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    env |= {"GLIBC_TUNABLES": given} if given else {}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    *pids, setting = done.stdout.split()
    assert setting == (given or "glibc.malloc.hugetlb=1")
    assert len(pids) == (1 if given else 2) and len(set(pids)) == 1
