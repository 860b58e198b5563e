"""Trains the small tokenizer that ships with the package, on the emoji and scene texts.

    python -m crem_jax.data.emoji.train_tokenizer OUT_DIR

It is Qwen2's tokenizer in the small: NFC, Qwen2's pre-tokenizer, byte-level BPE (any text can be
written), then Qwen2-VL's special tokens and the chorus tokens.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

from crem_jax.data.emoji.emoji import WHAT, WHICH_GROUP, load_emoji
from crem_jax.data.emoji.questions import NUMBERS, SEE, caption, plural, questions
from crem_jax.data.emoji.scene import CELLS, NAMES, TONES, sample_scene

ORDINARY_TOKENS = 2000
CHORUS_TOKENS = 16
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    *(f"<|chorus_{i}|>" for i in range(CHORUS_TOKENS)),
)
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SCENES = 5000
_COLOURS = "red orange yellow green blue purple brown black white pink"
_CHAT = (
    "user\nassistant\nsystem\nYou are a helpful assistant.",
    f"{WHAT}\n{WHICH_GROUP}\n{SEE}",
    "yes\nno\nfind the",
)


def texts() -> Iterator[str]:
    """The training texts; what the model must say most often comes most often."""
    for emoji in load_emoji("all"):
        yield from (emoji.name,) * 8
        yield from (emoji.group, emoji.subgroup, ", ".join(emoji.keywords))
    rng = np.random.default_rng(0)
    for _ in range(_SCENES):
        scene = sample_scene(rng)
        yield caption(scene)
        for _, question, answer in questions(scene, rng):
            yield from (question, answer)
    words = {w for text in (*NAMES, *CELLS, *NUMBERS, *TONES, _COLOURS) for w in text.split()}
    words |= {w for name in NAMES for w in plural(name).split()}
    for word in sorted(words | {w for text in _CHAT for w in text.split()}):
        yield from (word, f" {word}") * 500  # one token each, at the start of a text and inside it
    yield from _CHAT * 500


def train() -> PreTrainedTokenizerBase:
    """The tokenizer, the same for every call: ordinary tokens, then SPECIAL_TOKENS."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ORDINARY_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts(), trainer)
    model = json.loads(bpe.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for token in SPECIAL_TOKENS:
        vocabulary[token] = len(vocabulary)
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m crem_jax.data.emoji.train_tokenizer OUT_DIR")
    train().save_pretrained(sys.argv[1])
