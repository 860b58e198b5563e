"""A small model on the packaged tokenizer, and a synthetic data set it can learn."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from crem_jax.config import ModelConfig, TextConfig, VisionConfig
from crem_jax.configs.schema.data import BatchSpec, BucketSpec
from crem_jax.convert.chorus import chorus_tokens
from crem_jax.data.inputs.prompt import Prompter
from crem_jax.data.records import Item, Record
from crem_jax.train.start import TOKENIZER_DIR

WORDS = ("red", "green", "blue", "grey", "a bird", "two cats", "a tree", "the sun", "rain", "snow")


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(TOKENIZER_DIR)


def config(**changes) -> ModelConfig:
    """Hidden size 32, two layers of two heads, patches of 8 x 8 pixels, K = 4."""
    token = tokenizer().convert_tokens_to_ids
    base = ModelConfig(
        text=TextConfig(
            vocab_size=2048,
            hidden_size=32,
            intermediate_size=48,
            num_layers=2,
            num_heads=2,
            num_kv_heads=2,
            mrope_section=(2, 3, 3),
            max_positions=128,
        ),
        vision=VisionConfig(
            depth=1, embed_dim=16, num_heads=2, patch_size=8, min_pixels=16 * 16, max_pixels=64 * 64
        ),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        bos_token_id=token("<|endoftext|>"),
        eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|endoftext|>"),
        num_chorus=4,
        first_chorus_id=token(chorus_tokens(1)[0]),
        temperature=0.1,
        system_prompt="",
    )
    return base.replace(**changes)


def prompter(**changes) -> Prompter:
    return Prompter(config(**changes), tokenizer())


SPEC = BatchSpec(
    buckets={
        "text": BucketSpec(slots=20, patches=0, rows=24),
        "picture": BucketSpec(slots=20, patches=8, rows=8, target_slots=40, answers=20),
    },
    records={"toy": 8},
    candidates=24,
)
"""Room for everything in eight records of `Toy`."""


@dataclasses.dataclass(frozen=True)
class Toy:
    """Coloured pictures of 16 x 16 or 16 x 32 pixels with a caption, a near miss and two questions.

    Attributes:
      size: number of records; each has its own picture and caption.
    """

    size: int = 40

    def __len__(self) -> int:
        return self.size

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        """Record `index`, with noise on its picture if `rng` is given."""
        word = WORDS[index % len(WORDS)]
        pixels = np.zeros((16, 16 + 16 * (index % 2), 3), np.uint8)
        pixels[:] = np.random.default_rng(index).integers(0, 200, 3)
        if rng is not None:
            pixels += rng.integers(0, 20, pixels.shape, dtype=np.uint8)
        return Record(
            id=f"toy-{index}",
            query=Item(images=(pixels,)),
            positives=(Item(f"{word} {index}"), Item(f"number {index}")),
            negatives=(Item(f"{word} {index + 1000}"),),
            turns=(("What is it?", word), ("Which number?", str(index))),
            source="toy",
        )
