"""Your own data on a small model from scratch; `:2b` is the full recipe on Qwen2-VL-2B.

crem train --config=own --config.data.sources.mine.path=pairs.jsonl --workdir=runs/mine

Other kinds of sources and their arguments: docs/data.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from crem_jax.configs.emoji import get_config as embedded
from crem_jax.configs.fields import ConfigError
from crem_jax.configs.qwen2_vl import recipe
from crem_jax.configs.schema import complete

SOURCES = dict(mine=dict(kind="jsonl", path="pairs.jsonl"))


def get_config(arg: str = "") -> ConfigDict:
    if arg == "2b":
        config = recipe("2b", lr=2e-5)
        config.data.sources, config.data.records = SOURCES, dict(mine=1024)
        return complete(config)
    if arg not in ("", "smoke"):
        raise ConfigError(f"unknown config option {arg!r}; expected 2b or smoke")
    config = embedded()
    config.evaluate = config.best_metric = ""  # no evaluation data yet
    config.steps = 200
    config.eval_every = config.checkpoint_every = 100
    config.model.vision.max_pixels = 64 * 64  # small, to be quick on a CPU
    config.data = dict(
        sources=SOURCES,
        records=dict(mine=32),
        buckets=dict(
            text=dict(slots=64, patches=0, rows=96),
            picture=dict(slots=64, patches=64, rows=32, target_slots=64, answers=32),
        ),
        candidates=96,
        carry=8,
    )
    if arg == "smoke":
        config.steps, config.log_every = 4, 1
        config.eval_every = config.checkpoint_every = 4
        config.model.text.num_layers = config.model.vision.depth = config.model.unroll = 1
    return complete(config)
