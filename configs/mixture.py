"""A mixture of three formats on one small model: how a run on MMEB, ShareGPT-4V and tfds is set up.

python -m crem_jax.data.emoji.example_files data/emoji         # the packaged emoji in all formats
crem prepare data/emoji/mmeb data/emoji/prepared               # MMEB format, as ArrayRecord shards
crem train --config=configs/mixture.py --workdir=runs/mixture  # :smoke ends in a minute

Copy this file and change what you like. The recipe it begins with is `crem_jax/configs/mixture.py`;
formats and mixtures: docs/data.md; all keys, with what they mean: docs/config.md.
"""

from crem_jax.configs import mixture


def get_config(arg: str = ""):
    config = mixture.get_config(arg)
    # Another source, and the share of the stream that it has:
    # config.data.sources.mine = dict(kind="jsonl", path="pairs.jsonl")
    # config.data.weights.mine = 2
    return config
