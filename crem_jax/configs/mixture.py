"""A mixture of three formats on one small model: how to set up a run on MMEB, ShareGPT-4V and tfds.

python -m crem_jax.data.emoji.example_files data/emoji         # the packaged emoji in all formats
crem prepare data/emoji/mmeb data/emoji/prepared               # MMEB format, as ArrayRecord shards
crem train --config=mixture --workdir=runs/mixture             # :smoke takes a minute

For full-size data sets, set their paths here and take the model, loss and optimiser of
`qwen2_vl_2b.py`.
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from crem_jax.configs.emoji import get_config as embedded
from crem_jax.configs.fields import ConfigError
from crem_jax.configs.schema import complete

EMOJI = Path(__file__).parents[1] / "assets" / "emoji" / "1.0.0"
"""The packaged emoji, in the layout of tensorflow-datasets."""


def get_config(arg: str = "") -> ConfigDict:
    config = embedded()
    config.steps = 400
    config.eval_every = config.checkpoint_every = 200
    config.model.vision.max_pixels = 48 * 48
    config.data = dict(
        sources=dict(
            mmeb=dict(kind="tfds", path="data/emoji/prepared"),
            sharegpt=dict(kind="sharegpt", path="data/emoji/talk.json"),
            tfds=dict(
                kind="tfds",
                path=str(EMOJI),
                split="train",
                features=dict(
                    query_image="image",
                    positive_text="{name}",
                    question="What is this?",
                    answer="{name}",
                    id="{emoji}",
                ),
            ),
        ),
        weights=dict(mmeb=2, sharegpt=1, tfds=1),
        batch=64,
        block=8,  # 8 consecutive samples of the global batch come from one source
        buckets=dict(
            text=dict(slots=48, patches=0, rows=128, target_slots=32, answers=12),
            picture=dict(slots=48, patches=36, rows=112, target_slots=48, answers=24),
        ),
        candidates=160,
        carry=16,
    )
    for option in filter(None, arg.split(",")):
        if option != "smoke":
            raise ConfigError(f"unknown config option {option!r}; expected smoke")
        config.steps, config.log_every = 4, 1
        config.eval_every = config.checkpoint_every = 4
        config.model.text.num_layers = config.model.vision.depth = config.model.unroll = 1
        config.data.batch = 16
        config.data.candidates, config.data.carry = 40, 4
        config.data.buckets.text.rows, config.data.buckets.picture.rows = 40, 28
    return complete(config)
