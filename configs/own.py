"""Your own data on a small model from scratch; `:2b` is the full recipe on Qwen2-VL-2B.

crem train --config=configs/own.py --config.data.sources.mine.path=pairs.jsonl --workdir=runs/mine

Copy this file and change what you like. The recipe it begins with is `crem_jax/configs/own.py`;
kinds of sources: docs/data.md; all keys, with what they mean: docs/config.md.
"""

from crem_jax.configs import own


def get_config(arg: str = ""):
    config = own.get_config(arg)  # "", "smoke" or "2b"
    # Where the pairs are, and how many of them a step has:
    # config.data.sources = dict(mine=dict(kind="jsonl", path="pairs.jsonl"))
    # config.data.records = dict(mine=32)
    # Room for longer texts and larger pictures:
    # config.data.buckets.text.slots = config.data.buckets.picture.slots = 128
    # config.data.buckets.picture.patches = 144
    # config.model.vision.max_pixels = 96 * 96
    # To start from a model that is there, in place of random weights:
    # config.init_from = "runs/mine"
    return config
