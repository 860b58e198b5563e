"""Prompts are the tokens of the saved chat template, split where the chorus ends."""

from __future__ import annotations

import copy
import threading

import jinja2
import numpy as np
import pytest
from PIL import Image

from crem_jax.convert.chorus import chorus_tokens
from crem_jax.data.chat_template import chat_template
from crem_jax.data.inputs.padding import PromptError, pad_contexts
from crem_jax.data.inputs.prompt import Prompter
from crem_jax.data.records import Item
from crem_jax.types import CHORUS, CONTEXT, PAD
from tests.support import samples, toy

SYSTEMS = ["", "You are a helpful assistant.", 'It\'s\na \\ "quoted" one.']

PICTURES = [[], [(16, 32)], [(32, 16), (16, 16), (48, 64)]]
WORDS = ["a tiger, 2 cats", "", "\n\n two lines\n"]
ITEMS = [(sizes, words) for sizes in PICTURES for words in WORDS if sizes or words]

QWEN2_VL = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template published with Qwen2-VL-2B-Instruct, byte for byte."""


def text(value: str) -> dict:
    return {"type": "text", "text": value}


IMAGE, VIDEO, CHORUS_PART = {"type": "image"}, {"type": "video"}, {"type": "chorus"}


def user(*content) -> dict:
    return {"role": "user", "content": list(content)}


def said(role: str, content: str) -> dict:
    return {"role": role, "content": content}


CONVERSATIONS = {
    "user": [said("user", "hello")],
    "system": [said("system", "Be brief."), said("user", "hello"), said("assistant", "hi")],
    "turns": [said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "")],
    "image": [user(IMAGE, text("what?")), said("assistant", "a cat")],
    "image url": [user({"type": "image_url", "image_url": "x.png"}, text("what?"))],
    "images": [
        user(text("from "), IMAGE, text(" to "), IMAGE),
        said("assistant", "b"),
        user(IMAGE),
    ],
    "video": [user(VIDEO, text("what?")), said("assistant", "x"), user(VIDEO, IMAGE)],
}


def saved_tokenizer(prompter: Prompter):
    """As `crem train` and `crem export` save it."""
    tokenizer = copy.copy(prompter.tokenizer)
    tokenizer.chat_template = chat_template(prompter.config)
    return tokenizer


def template_tokens(prompter: Prompter, messages: list[dict], pads: list[int] = (), **options):
    """The saved template's tokens, with the n-th <|image_pad|> repeated as its picture needs."""
    rendered = saved_tokenizer(prompter).apply_chat_template(messages, tokenize=False, **options)
    ids = copy.copy(prompter.tokenizer)(rendered, split_special_tokens=False)["input_ids"]
    counts, tokens = iter(pads), []
    for token in ids:
        is_image = token == prompter.config.image_token_id
        tokens += [token] * (next(counts) if is_image else 1)
    return tokens


@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": True}, {"add_vision_id": True}])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_an_ordinary_chat_is_rendered_as_by_qwen2_vl(name, options):
    ours = saved_tokenizer(toy.prompter(system_prompt="You are a helpful assistant."))
    got = ours.apply_chat_template(CONVERSATIONS[name], tokenize=False, **options)
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    expected = environment.from_string(QWEN2_VL).render(messages=CONVERSATIONS[name], **options)
    assert got == expected


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(("sizes", "words"), ITEMS, ids=repr)
def test_context_chorus_and_target_are_the_tokens_of_the_saved_template(system, sizes, words):
    prompter = toy.prompter(system_prompt=system)
    images = tuple(np.zeros((*size, 3), np.uint8) for size in sizes)
    pads = [h * w // 256 for h, w in sizes]
    context = prompter.context(Item(words, images)).tokens.tolist()
    chorus = list(prompter.config.chorus_ids)
    part = [IMAGE] * len(images) + [text(words), CHORUS_PART]

    turns = [("What is it?", "A red bird."), ("And why?", "yes")]
    messages = [user(*part, text(turns[0][0])), said("assistant", turns[0][1])]
    messages += [said("user", turns[1][0]), said("assistant", turns[1][1])]
    whole = context + chorus + prompter.target(turns).tokens.tolist()
    line_break = prompter.user_tokens("\n")
    assert (*whole, *line_break) == tuple(template_tokens(prompter, messages, pads))

    asked = context + chorus + prompter.question("What is it?").tolist()
    got = template_tokens(prompter, messages[:1], pads, add_generation_prompt=True)
    assert asked == got

    end = [prompter.config.eos_token_id, *line_break]
    embedded = template_tokens(prompter, [user(*part[:-1])], pads, chorus=True)
    assert embedded == context + chorus + end


def test_chorus_switch_puts_the_chorus_in_once_and_pictures_first():
    tokenizer = saved_tokenizer(toy.prompter())
    chorus = "".join(chorus_tokens(4))
    for name, messages in CONVERSATIONS.items():
        plain = tokenizer.apply_chat_template(messages, tokenize=False)
        switched = tokenizer.apply_chat_template(messages, tokenize=False, chorus=True)
        assert "chorus" not in plain
        assert switched.count(chorus) == 1, name
        if name == "images":
            first = user(IMAGE, IMAGE, text("from "), text(" to "))
            plain = tokenizer.apply_chat_template([first, *messages[1:]], tokenize=False)
        assert switched.replace(chorus, "") == plain
    placed = [user(text("a"), CHORUS_PART, IMAGE)]
    kept = tokenizer.apply_chat_template(placed, tokenize=False, chorus=True)
    assert f"a{chorus}<|vision_start|>" in kept and kept.count(chorus) == 1


def test_chorus_switch_takes_the_number_of_chorus_tokens():
    tokenizer = saved_tokenizer(toy.prompter())
    for k in range(1, 5):
        switched = tokenizer.apply_chat_template([user(text("a"))], tokenize=False, chorus=k)
        assert f"a{''.join(chorus_tokens(k))}<|im_end|>" in switched
    for k in (-1, 0, 5):
        with pytest.raises(jinja2.TemplateError, match=rf"chorus={k} is not in 1\.\.4"):
            tokenizer.apply_chat_template([user(text("a"))], tokenize=False, chorus=k)


def test_a_question_without_context_opens_like_an_ordinary_chat():
    prompter = toy.prompter(num_chorus=0)
    got = prompter.context(None).tokens.tolist() + prompter.question("Who are you?").tolist()
    messages = [said("user", "Who are you?")]
    assert got == template_tokens(prompter, messages, add_generation_prompt=True)


def test_a_question_after_others_is_the_beginning_of_their_conversation():
    prompter = toy.prompter()
    turns = [("one?", "two"), ("three?", "four")]
    question = prompter.question("five?", turns)
    whole = prompter.target([*turns, ("five?", "six")])
    np.testing.assert_array_equal(question, whole.tokens[: len(question)])
    assert (whole.label[len(question) - 1 :] >= 0).any() and whole.label[len(question) - 2] < 0


def test_special_tokens_typed_by_users_stay_plain_text():
    prompter = toy.prompter()
    typed = "<|im_end|> <|image_pad|><|chorus_0|><|vision_start|> <|im_start|>system"
    special = set(prompter.tokenizer.all_special_ids)
    allowed = {*prompter.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])}
    item = prompter.context(Item(typed)).tokens.tolist()
    assert {token for token in item if token in special} == {min(allowed)}
    assert item.count(min(allowed)) == 1
    target = prompter.target([(typed, typed)]).tokens.tolist()
    assert {token for token in target if token in special} == allowed
    assert len([token for token in target if token in special]) == 3
    assert typed in prompter.tokenizer.decode(item)


def test_prompts_made_in_many_threads_stay_the_same():
    expected = toy.prompter().context(Item("a tiger")).tokens.tolist()
    wrong, done = [], threading.Event()

    def other():
        prompter, n = toy.prompter(), 0
        while not done.is_set():
            prompter.user_tokens(f"words {n}, and more of them")
            n += 1

    thread = threading.Thread(target=other)
    thread.start()
    try:
        for _ in range(300):
            got = toy.prompter().context(Item("a tiger")).tokens.tolist()
            wrong += [got] if got != expected else []
    finally:
        done.set()
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "sizes", [[(16, 16)], [(32, 16), (16, 64), (48, 48)], [(64, 16), (16, 16)]], ids=str
)
def test_positions_follow_the_papers_rule_for_several_pictures(sizes):
    prompter = toy.prompter()
    images = tuple(np.zeros((*size, 3), np.uint8) for size in sizes)
    row = prompter.context(Item("some words after", images))
    grids = tuple((h // 8, w // 8) for h, w in sizes)
    image = prompter.config.image_token_id
    stand_in = [samples.IMAGE if token == image else 0 for token in row.tokens]
    expected = samples.Row(tuple(stand_in), (), grids, ())
    np.testing.assert_array_equal(row.position, expected.sequence(())[1])
    _, places, numbers = samples.Row((), (), grids, ()).packed()
    np.testing.assert_array_equal(row.patch_position, places)
    np.testing.assert_array_equal(row.picture, numbers)

    context = pad_contexts([row], prompter.config, len(row.tokens) + 7, 64)
    with_chorus = samples.Row((*stand_in, 0, 0, 0, 0), (), grids, ())
    real = context.region[0] != PAD
    np.testing.assert_array_equal(context.position[0, real], with_chorus.sequence(())[1])
    regions = [CONTEXT] * len(row.tokens) + [PAD] * 3 + [CHORUS] * 4
    assert context.region[0].tolist() == regions


def test_patches_of_an_array_are_those_of_the_same_picture(rng):
    prompter = toy.prompter()
    pixels = rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)
    for a, b in zip(
        prompter.patches(pixels), prompter.patches(Image.fromarray(pixels)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_strip_keeps_within_max_pixels_where_shapes_are_static():
    soft = toy.prompter()
    hard = Prompter(soft.config, soft.tokenizer, hard_max=True)
    strip, square = (np.zeros((*size, 3), np.uint8) for size in ((20, 2000), (30, 50)))
    vision = soft.config.vision
    most = vision.max_pixels // vision.patch_size**2
    assert len(soft.patches(strip)[0]) > most >= len(hard.patches(strip)[0])
    np.testing.assert_array_equal(soft.patches(square)[0], hard.patches(square)[0])


def test_an_over_long_prompt_is_refused_with_its_size_and_beginning():
    prompter = toy.prompter()
    fits = prompter.context(Item(" cat" * 100)).tokens
    room = prompter.config.text.max_positions - prompter.config.num_chorus
    assert len(fits) <= room
    with pytest.raises(PromptError, match=r"more than the model's 128 positions.*begins ' cat cat"):
        prompter.context(Item(" cat" * 200))


def test_the_longest_prompt_that_fits_ends_on_the_last_position():
    prompter = toy.prompter()
    head = len(prompter.context(Item(" cat")).tokens) - 1
    count = 128 - prompter.config.num_chorus - head
    row = prompter.context(Item(" cat" * count))
    context = pad_contexts([row], prompter.config, 128, 0)
    assert context.position.max() == 127
    with pytest.raises(PromptError, match="129 positions, chorus included"):
        prompter.context(Item(" cat" * (count + 1)))


def test_a_row_that_does_not_fit_its_bucket_is_refused():
    prompter = toy.prompter()
    row = prompter.context(Item(images=(np.zeros((32, 32, 3), np.uint8),)))
    with pytest.raises(ValueError, match=r"4 chorus tokens and 16 patches .* 8 slots and 16"):
        pad_contexts([row], prompter.config, 8, 16)
    with pytest.raises(ValueError, match=r"16 patches does not fit a bucket of 40 slots and 12"):
        pad_contexts([row], prompter.config, 40, 12)
