"""The embedded default data: packaged emoji, scenes, their texts, and the small tokenizer."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from crem_jax.data.emoji import build, emoji, questions, scene, scenes, sign, train_tokenizer
from crem_jax.data.emoji.cutout import cut_out

TOKENIZER_DIR = emoji.DATA_DIR.parents[1] / "tokenizer"


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(7)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TOKENIZER_DIR)


@pytest.fixture(scope="module")
def train_scenes():
    generator = np.random.default_rng(11)
    return [scene.sample_scene(generator) for _ in range(400)]


@pytest.fixture(scope="module")
def heldout_scenes():
    source = scenes.Scenes("heldout")
    return [source.scene(i) for i in range(len(source))]


def test_the_package_has_every_emoji_and_holds_out_only_skin_tones():
    train, validation, heldout = map(emoji.load_emoji, emoji.SPLITS)
    assert (len(train), len(validation), len(heldout)) == (3232, 97, 214)
    assert all("skin tone" in e.name and e.split == "validation" for e in validation)
    assert not {e.emoji for e in train} & {e.emoji for e in validation}
    names = {e.name for e in train}
    assert not names & {e.name for e in heldout}
    concepts = {name.split(":")[0] for name in names}
    assert all("skin tone" in e.name and e.name.split(":")[0] in concepts for e in heldout)
    assert (emoji.DATA_DIR.parent / "NOTICE").is_file()


def test_reading_the_emoji_needs_no_tensorflow_and_is_silent():
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "from crem_jax.data.emoji.emoji import load_emoji\n"
        "load_emoji('heldout'); sys.exit('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="unknown emoji split 'test'"):
        emoji.load_emoji("test")
    with pytest.raises(ValueError, match="unknown scene split 'all'"):
        scenes.Scenes("all")


def test_a_cut_out_picture_composited_on_white_is_the_picture():
    y, x = np.mgrid[:32, :32]
    ring = np.abs(np.hypot(y - 16, x - 16) - 9)
    ink = (3.5 - ring).clip(0, 1)[..., None]
    picture = (255 - ink * (255 - np.array([200, 30, 40]))).round().astype(np.uint8)
    cut = cut_out(picture[None])[0].astype(np.float32)
    assert cut[0, 0, 3] == 0 and cut[16, 16, 3] == 255  # outside is clear, the hole stays white
    alpha = cut[..., 3:] / 255
    assert np.abs(cut[..., :3] * alpha + 255 * (1 - alpha) - picture).max() <= 2


def test_the_packaged_data_is_rebuilt_from_a_folder_of_pictures(tmp_path):
    (tmp_path / "images").mkdir()
    some = [*emoji.load_emoji("train")[:3], *emoji.load_emoji("heldout")[:2]]
    rows = []
    for one in some:
        image = f"images/{one.codepoints}.png"
        white = Image.new("RGBA", (96, 96), "white")
        white.alpha_composite(Image.fromarray(one.pixels))
        white.convert("RGB").save(tmp_path / image)
        fields = {k: getattr(one, k) for k in ("emoji", "name", "group", "subgroup", "split")}
        rows.append(json.dumps({**fields, "keywords": list(one.keywords), "image": image}))
    (tmp_path / "emoji.jsonl").write_text("\n".join(rows))
    built = build.main(str(tmp_path), str(tmp_path / "out"))
    assert built == tmp_path / "out" / "emoji" / "1.0.0"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["emoji"]
    again = [*emoji.read_emoji(built, "train"), *emoji.read_emoji(built, "heldout")]
    assert [(e.name, e.keywords, e.split) for e in again] == [
        (e.name, e.keywords, e.split) for e in some
    ]


def test_a_picture_of_the_wrong_size_is_refused_by_the_builder(tmp_path):
    Image.new("RGB", (95, 96)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: the picture is \(95, 96\), expected \(96, 96\)"):
        build.repack(tmp_path / "a.png")


def test_emoji_that_share_a_picture_are_positives_of_each_other():
    pictures = emoji.EmojiPictures("all")
    france = next(i for i in range(len(pictures)) if pictures[i].name == "flag: France")
    names = [item.text for item in pictures.record(france).positives]
    assert names == ["flag: France", "flag: Clipperton Island", "flag: St. Martin"]
    assert sum(len(emoji.same_picture_names(e)) > 1 for e in emoji.load_emoji("all")) == 21


def test_evaluation_pictures_are_fixed_and_training_pictures_are_fresh(rng):
    pictures = emoji.EmojiPictures("train", size=48)
    first, second = pictures.draw(5), pictures.draw(5)
    assert first.shape == (48, 48, 3) and first.dtype == np.uint8
    assert (first == second).all() and (first[0, 0] == 255).all()
    assert (pictures.draw(5, rng) != pictures.draw(5, rng)).any()
    again = [pictures.draw(5, np.random.default_rng(3)) for _ in range(2)]
    assert (again[0] == again[1]).all()


def test_emoji_records_ask_what_it_is_and_sometimes_which_group(rng):
    pictures = emoji.EmojiPictures()
    asked = {"What is this?": 0, "Which group?": 0}
    retrieved_by_group = 0
    for i in range(0, 3000, 3):
        record = pictures.record(i, rng)
        ((question, answer),) = record.turns
        asked[question] += 1
        truth = {"What is this?": pictures[i].name, "Which group?": pictures[i].group}
        assert answer == truth[question]
        retrieved_by_group += record.query.text == "Which group?"
    assert 30 < asked["Which group?"] < 90 and 30 < retrieved_by_group < 90


def test_clustered_order_is_a_permutation_in_runs_of_look_alikes(rng):
    pictures = emoji.EmojiPictures()
    clusters = pictures.clusters()
    owner = {int(i): c for c, members in enumerate(clusters) for i in members}
    order = pictures.clustered_order(rng, size=4)
    assert sorted(order) == list(range(len(pictures)))
    neighbours = np.mean([owner[a] == owner[b] for a, b in itertools.pairwise(order)])
    assert 0.65 < neighbours < 0.85
    by_name = {pictures[i].name: i for i in range(len(pictures))}
    cooks = {owner[by_name[n]] for n in ("cook", "man cook: dark skin tone", "woman cook")}
    assert len(cooks) == 1


def test_training_scenes_never_show_a_held_out_pair_or_a_held_out_picture(train_scenes):
    assert not any(scene.has_held_out_pair(s) for s in train_scenes)
    heldout = {e.name for e in emoji.load_emoji("heldout")}
    shown = {f"{t.name}: {t.tone} skin tone" for s in train_scenes for t in s.things if t.tone}
    assert shown and not shown & heldout


def test_held_out_scenes_have_a_held_out_pair_and_distinct_captions(heldout_scenes):
    assert len(heldout_scenes) == 256
    assert all(scene.has_held_out_pair(s) and len(s.things) >= 2 for s in heldout_scenes)
    assert len({questions.caption(s) for s in heldout_scenes}) == 256
    assert 40 < len(scene.held_out_pairs()) < 80


def test_held_out_records_do_not_depend_on_the_generator(rng):
    source = scenes.Scenes("heldout", negatives=31)
    one, other = source.record(9), source.record(9, rng)
    assert one.query.content_hash() == other.query.content_hash()
    assert one.turns == other.turns and len(one.negatives) == 31
    assert one.positives[0].text == questions.caption(source.scene(9))


def test_caption_edits_are_distinct_false_and_one_change_away(train_scenes, rng):
    for s in train_scenes[:100]:
        edits = questions.caption_edits(s, questions.MAX_EDITS, rng)
        true = questions.caption(s)
        assert len(set(edits)) == questions.MAX_EDITS and true not in edits
        for edit in edits:
            gone = Counter(true.split(", ")) - Counter(edit.split(", "))
            assert 1 <= sum(gone.values()) <= 2 and edit.count(",") == true.count(",")
    with pytest.raises(ValueError, match="32 caption edits asked for; expected 0 to 31"):
        questions.caption_edits(train_scenes[0], 32, rng)


def test_answers_are_true(train_scenes, rng):
    """Re-derives every answer from the caption alone."""
    for s in train_scenes:
        where = defaultdict(list)
        tone = {}
        for part in questions.caption(s).split(", "):
            label, cell = part.rsplit(" ", 2)[0], " ".join(part.rsplit(" ", 2)[1:])
            name = next(n for n in scene.NAMES if label.endswith(n))
            where[name].append(cell)
            tone[name] = label.removesuffix(name).strip()
        at = {cell: name for name, cells in where.items() for cell in cells}
        for kind, question, answer in questions.questions(s, rng):
            assert len(question.split()) <= 9 and question.endswith("?")
            if kind == "what":
                assert at[question[8:-1]] == answer
            elif kind == "where":
                assert where[question[13:-1]] == [answer]
            elif kind == "tone":
                assert tone[question[24:-1]] == answer
            elif kind == "count":
                cells = {questions.plural(n): len(c) for n, c in where.items()}
                cells["emoji"] = len(at)
                assert questions.NUMBERS[cells.get(question[9:-1], 0)] == answer
            else:
                assert _relation_holds(question, answer, where, at)


def _relation_holds(question, answer, where, at):
    word = next(w for w in ("left of", "right of", "above", "below") if f" {w} the " in question)
    head, other = question[:-1].split(f" {word} the ")
    (cell,) = where[other]
    side, opposite = {
        "left of": ("left", "right"),
        "right of": ("right", "left"),
        "above": ("top", "bottom"),
        "below": ("bottom", "top"),
    }[word]
    if head == "what is":
        return opposite in cell and [n for c, n in at.items() if side in c] == [answer]
    (subject,) = where[head.removeprefix("is the ")]
    assert (side in subject) != (side in cell)
    return answer == ("yes" if side in subject else "no")


def test_always_giving_the_commonest_answer_fails_more_than_half_of_the_questions(rng):
    answers = defaultdict(Counter)
    for s in (scene.sample_scene(rng) for _ in range(800)):
        for kind, _, answer in questions.questions(s, rng):
            answers[kind][answer] += 1
    assert set(answers) == {"what", "where", "count", "relation", "tone"}
    commonest = sum(c.most_common(1)[0][1] for c in answers.values())
    assert commonest < 0.5 * sum(c.total() for c in answers.values())


def test_scene_records_mix_captions_questions_and_crops(rng):
    source = scenes.Scenes(negatives=3, turns=3)
    records = [source.record(i, rng) for i in range(400)]
    finds = [r for r in records if r.query.text.startswith("find the ")]
    captions = [r for r in records if not r.query.text]
    assert 240 < len(captions) < 320 and 35 < len(finds) < 85
    assert all(len(r.negatives) == 3 for r in captions)
    for record in finds:
        (canvas,), (crop,) = record.query.images, record.positives[0].images
        corners = [canvas[y : y + 48, x : x + 48] for y in (0, 48) for x in (0, 48)]
        assert any((crop == corner).all() for corner in corners)
    assert all(len(r.turns) == 3 and len(dict(r.turns)) == 3 for r in records)
    seen = sum(("What do you see?" in dict(r.turns)) for r in records)
    assert 200 < seen < 280


def test_the_shipped_tokenizer_is_the_trained_one(tokenizer, tmp_path):
    train_tokenizer.train().save_pretrained(tmp_path)
    shipped = Path(TOKENIZER_DIR / "tokenizer.json").read_text(encoding="utf-8")
    assert shipped == (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    assert len(tokenizer) == train_tokenizer.ORDINARY_TOKENS + 30
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.parametrize(
    "text", ["café 日本 😀\n\n x", "<|chorus_3|>a tiger<|im_end|>", "don't 12"]
)
def test_the_tokenizer_writes_any_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_words_of_scenes_and_every_special_token_are_one_token_each(tokenizer):
    words = {w for text in (*scene.NAMES, *scene.CELLS, *questions.NUMBERS) for w in text.split()}
    words |= {"yes", "no", "user", "assistant", "red", "yellow", "\n"}
    spaced = {f" {word}" for word in words - {"\n"}}
    texts = [*words, *spaced, *train_tokenizer.SPECIAL_TOKENS]
    assert [t for t in texts if len(tokenizer(t).input_ids) != 1] == []


def test_signs_stand_in_free_cells_and_say_in_the_held_out_split_what_training_never_does(rng):
    signed = scenes.Scenes(text=1.0, turns=8)
    said = set()
    for i in range(300):
        record = signed.record(i, np.random.default_rng(i))
        said |= {answer for question, answer in record.turns if question == sign.SAY}
    assert said and said <= set(sign.texts("train")) and any(text.isalpha() for text in said)
    held_out = scenes.Scenes("heldout", text=1.0)
    for s in map(held_out.scene, range(60)):
        assert bool(s.sign) == (len(s.things) < 4)
        if not s.sign:
            continue
        assert s.sign.text in sign.texts("heldout") and s.sign.text not in sign.texts("train")
        assert f"sign {s.sign.text} {scene.CELLS[s.sign.cell]}" in questions.caption(s)
        assert ("sign", sign.SAY, s.sign.text) in questions.questions(s, rng)
        edits = questions.caption_edits(s, questions.MAX_EDITS, rng)
        true = questions.caption(s)
        assert len(set(edits)) == questions.MAX_EDITS and true not in edits
        assert all(edit.count("sign") == 1 for edit in edits)


def test_a_sign_is_drawn_in_its_cell_alone_and_fits():
    things = (scene.SceneObject(0, "tiger"),)
    plain = scene.Scene(things).draw(np.random.default_rng(1))
    for text in ("7", "888", "www"):
        signed = scene.Scene(things, sign.Sign(3, text)).draw(np.random.default_rng(1))
        changed = np.argwhere((np.abs(signed.astype(int) - plain) > 30).any(-1))
        assert changed.min() >= 48 and len(changed) > 100
        height, width = sign.board(text, 48).shape[:2]
        assert height <= 48 and width <= 48
    with pytest.raises(ValueError, match="sign's cell 0 is none of the free"):
        scene.Scene(things, sign.Sign(0, "7"))
    with pytest.raises(ValueError, match="text is 2; expected a share"):
        scenes.Scenes(text=2)
