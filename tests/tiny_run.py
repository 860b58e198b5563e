"""`configs/emoji.py` made tiny and fed with `toy.Toy`; as a script it trains in its own process.

python tests/tiny_run.py WORKDIR [steps]
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import toy
from ml_collections import ConfigDict

from crem_jax.data import registry

registry.SOURCES = {**registry.SOURCES, "toy": toy.Toy}
CONFIG = Path(__file__).parents[1] / "configs" / "emoji.py"


def tiny_config(steps: int = 12) -> ConfigDict:
    """A second of training after compilation; a checkpoint every 2 steps, every step logged."""
    spec = importlib.util.spec_from_file_location("emoji_config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.steps, config.log_every, config.eval_every = steps, 1, 2
    config.optim.update(name="adamw", warmup=2)
    config.model.text.update(
        hidden_size=32,
        intermediate_size=48,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        mrope_section=(2, 3, 3),
        max_positions=128,
    )
    config.model.vision.update(
        depth=1, embed_dim=16, num_heads=2, min_pixels=16 * 16, max_pixels=64 * 64
    )
    config.model.update(num_chorus=4, unroll=1)
    config.data = dict(
        sources=dict(toy=dict(kind="toy")),
        records=dict(toy.SPEC.records),
        buckets={name: vars(bucket) for name, bucket in toy.SPEC.buckets.items()},
        candidates=toy.SPEC.candidates,
    )
    return config


if __name__ == "__main__":
    from crem_jax.train.loop import train

    train(tiny_config(*map(int, sys.argv[2:])), sys.argv[1])
