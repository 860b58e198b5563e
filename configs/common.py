"""What the Qwen2-VL recipes share: sizes, data, losses, optimiser, and the options of both.

A recipe names a size and its differences:

crem plan  --config=configs/qwen2_vl_2b.py --topology=v5e:16x16      # what it needs, before renting
crem train --config=configs/qwen2_vl_2b.py --workdir=gs://bucket/run --config.init_from=models/2b
crem train --config=configs/qwen2_vl_2b.py:smoke --workdir=runs/smoke  # random weights, a minute
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

CHIPS = 256
"""The recipes' batches divide over this many chips; `crem plan --sweep` says what else fits."""

QUERIES = 1024
"""Retrieval pairs in a global batch, as in the peers' recipes."""

VISION = dict(
    depth=32,
    embed_dim=1280,
    num_heads=16,
    mlp_ratio=4,
    patch_size=14,
    min_pixels=256 * 28 * 28,
    max_pixels=1280 * 28 * 28,
)

TEXT = {
    "2b": dict(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_layers=28,
        num_heads=12,
        num_kv_heads=2,
        mrope_section=(16, 24, 24),
        tie_embeddings=True,
    ),
    "7b": dict(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        mrope_section=(16, 24, 24),
        tie_embeddings=False,
    ),
}

SMOKE_TEXT = dict(
    vocab_size=2048,
    hidden_size=64,
    intermediate_size=96,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    mrope_section=(4, 6, 6),
    max_positions=1024,
)
SMOKE_VISION = dict(
    depth=1,
    embed_dim=32,
    num_heads=2,
    mlp_ratio=2,
    patch_size=8,
    min_pixels=48 * 48,
    max_pixels=96 * 96,
)


def recipe(size: str, arg: str = "", **optim: Any) -> ConfigDict:
    """The recipe of a model size.

    Args:
      size: "2b" or "7b". arg: options separated by commas, see `OPTIONS`. optim: what differs.

    Raises:
      ValueError: an unknown option.
    """
    config = ConfigDict()
    config.seed = 0
    config.steps = 5000
    config.log_every = 10
    config.eval_every = 500
    config.checkpoint_every = 250
    config.max_nonfinite = 10  # so many skipped steps in a row end the run
    config.peak_flops = 0.0  # of one device, for the utilisation; 0 is what is known of its kind
    config.best_metric = ""
    config.evaluate = ""
    config.mesh = (1, -1, 1)  # data, fsdp, tensor; -1 is whatever is left
    config.init_from = f"models/qwen2-vl-{size}"

    config.model = dict(
        text=dict(TEXT[size]),
        vision=dict(VISION),
        num_chorus=16,
        temperature=0.02,
        dtype="bfloat16",
        remat="full",
    )
    config.data = dict(
        sources=dict(
            mmeb=dict(kind="mmeb", path="data/mmeb-train", cap="vlm2vec-v2"),
            sharegpt4v=dict(
                kind="sharegpt",
                path="data/sharegpt4v/sharegpt4v_instruct_gpt4-vision_cap100k.json",
                image_root="data/sharegpt4v",
            ),
        ),
        records=dict(mmeb=QUERIES, sharegpt4v=CHIPS),
        buckets=dict(
            label=dict(slots=128, patches=0, rows=2 * QUERIES),
            text=dict(slots=512, patches=0, rows=QUERIES),
            picture=dict(slots=640, patches=2048, rows=QUERIES, target_slots=256, answers=128),
            large=dict(slots=1536, patches=5120, rows=QUERIES, target_slots=512, answers=384),
        ),
        candidates=2 * QUERIES,
    )
    config.loss = dict(
        retrieval=1.0,
        generation=1.0,
        p_compressed=0.5,
        elastic=0.5,
        learn_temperature=False,
        symmetric=False,
    )
    config.optim = dict(
        name="adamw",
        lr=2e-5,
        warmup=100,
        decay="linear",
        final=0.0,
        b1=0.9,
        b2=0.98,
        eps=1e-8,
        weight_decay=0.01,
        clip=1.0,
    )
    config.optim.update(optim)
    for option in filter(None, arg.split(",")):
        if option not in OPTIONS:
            raise ValueError(
                f"unknown config option {option!r}; expected some of {', '.join(OPTIONS)}"
            )
        OPTIONS[option](config)
    return config


def _smoke(config: ConfigDict) -> None:
    """Random weights of a tiny shape on the packaged emoji: all of the recipe in a minute."""
    config.init_from = ""
    config.steps, config.log_every = 4, 1
    config.eval_every = config.checkpoint_every = 4
    config.model.text, config.model.vision = SMOKE_TEXT, SMOKE_VISION
    config.model.update(num_chorus=4, dtype="float32", remat="none")
    config.data = dict(
        sources=dict(
            emoji=dict(kind="emoji", split="train"),
            scenes=dict(kind="scenes", split="train", negatives=1, turns=2),
        ),
        records=dict(emoji=8, scenes=4),
        buckets=dict(
            label=dict(slots=64, patches=0, rows=16),
            text=dict(slots=96, patches=0, rows=8),
            picture=dict(slots=80, patches=36, rows=8, target_slots=28, answers=19),
            large=dict(slots=112, patches=144, rows=8, target_slots=56, answers=28),
        ),
        candidates=20,
    )


OPTIONS = {"smoke": _smoke}
