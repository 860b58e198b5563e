"""The common part of the Qwen2-VL recipes: sizes, data, losses, optimiser and options.

crem plan  --config=qwen2_vl_2b --topology=v5e:16x16             # what it needs, before renting
crem train --config=qwen2_vl_2b --workdir=gs://bucket/run --config.init_from=models/2b
crem train --config=qwen2_vl_2b:lora,chips=8 --workdir=runs/lora
crem train --config=qwen2_vl_2b:smoke --workdir=runs/smoke       # random weights, a minute
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from crem_jax.configs.fields import ConfigError
from crem_jax.configs.schema import complete, default_config

CHIPS = 256
"""Chips the batch is sized for: each holds all of its rows at once. `chips=N` is for fewer."""

FEW_CHIPS = dict(small=1280, medium=192, large=64)
"""Rows of the picture buckets that need not divide by 256, and so follow the sizes of pictures:
with 1,100 real ones 23 % of all patches in a step are padding, where CHIPS chips have 44 %."""

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


def recipe(size: str, arg: str = "", lr: float = 2e-5) -> ConfigDict:
    """The recipe of a model size.

    Args:
      size: "2b" or "7b". arg: options separated by commas, see `OPTIONS`.
      lr: peak learning rate of full fine-tuning.

    Raises:
      ConfigError: an unknown option.
    """
    config = default_config()
    config.steps = 5000
    config.log_every = 10
    config.eval_every = 500
    config.checkpoint_every = 250
    config.evaluate = ""
    config.mesh = (1, -1, 1)  # data, fsdp, tensor; -1: all remaining devices
    config.init_from = f"models/qwen2-vl-{size}"

    config.model.update(
        text=dict(TEXT[size]),
        vision=dict(VISION),
        num_chorus=16,
        temperature=0.02,
        dtype="bfloat16",
        remat="full",
    )
    config.data.update(
        # 1,024 retrieval pairs, a quarter of them with questions about the same picture
        # (homogeneous), and 256 conversations about other pictures (heterogeneous).
        sources=dict(
            mmeb=dict(kind="mmeb", path="data/mmeb-train", cap="vlm2vec-v2"),
            questions=dict(kind="jsonl", path="data/mmeb-train_qa.jsonl"),  # `crem synthesize`
            sharegpt4v=dict(
                kind="sharegpt",
                path="data/sharegpt4v/sharegpt4v_instruct_gpt4-vision_cap100k.json",
                image_root="data/sharegpt4v",
            ),
        ),
        records=dict(mmeb=768, questions=256, sharegpt4v=256),
        buckets=dict(
            label=dict(slots=128, patches=0, rows=768),
            text=dict(slots=512, patches=0, rows=512),
            # Most pictures have some 270 vision tokens by Qwen2-VL's rule (288 fit 1,152 patches).
            small=dict(slots=512, patches=1152, rows=1024, target_slots=384, answers=256),
            medium=dict(slots=768, patches=2048, rows=256, target_slots=384, answers=256),
            large=dict(slots=1536, patches=5120, rows=256, target_slots=512, answers=384),
        ),
        candidates=2048,
        carry=256,
        workers=8,
    )
    config.loss.update(
        retrieval=1.0,
        generation=1.0,
        p_compressed=0.5,
        elastic=0.5,
        elastic_k="halves",
        dims=(256, 512, 1024),
        learn_temperature=False,
        symmetric=False,
        z_loss=0.0,
        vocab_chunk=20_000,
        chunk_rows=dict.fromkeys(config.data.buckets, 0),  # set by `chips=N`
        cache_vision=False,
    )
    config.optim.update(
        name="adamw",
        lr=lr,
        warmup=100,
        decay="linear",
        final=0.0,
        b1=0.9,
        b2=0.98,
        eps=1e-8,
        weight_decay=0.01,
        clip=1.0,
        mu_dtype="bfloat16",  # the first moment; the second needs float32
        rates=(),
        frozen_dtype="float32",
    )
    for option in sorted(filter(None, arg.split(",")), key=lambda option: option != "smoke"):
        name, _, value = option.partition("=")
        if name not in OPTIONS or bool(value) != (name == "chips"):
            known = ", ".join(f"{n}=N" if n == "chips" else n for n in OPTIONS)
            raise ConfigError(f"unknown config option {option!r}; expected some of {known}")
        OPTIONS[name](config, *([value] if value else []))
    return complete(config)


def _smoke(config: ConfigDict) -> None:
    """Random weights of a tiny shape on the packaged emoji: the whole recipe in a minute."""
    config.init_from = ""
    config.steps, config.log_every = 4, 1
    config.eval_every = config.checkpoint_every = 4
    config.model.text, config.model.vision = SMOKE_TEXT, SMOKE_VISION
    config.model.update(num_chorus=4, dtype="float32", remat="none")
    config.loss.update(dims=(16, 32), vocab_chunk=512)
    config.data = dict(
        sources=dict(
            emoji=dict(kind="emoji", split="train"),
            scenes=dict(kind="scenes", split="train", negatives=1, turns=2),
        ),
        records=dict(emoji=8, scenes=4),
        buckets=dict(
            label=dict(slots=96, patches=0, rows=24),
            small=dict(slots=80, patches=36, rows=8, target_slots=28, answers=19),
            medium=dict(slots=112, patches=144, rows=8, target_slots=56, answers=28),
        ),
        candidates=20,
    )
    config.loss.chunk_rows = dict(label=8, small=4, medium=4)


def _frozen_vision(config: ConfigDict) -> None:
    """Freezes the vision tower: no gradient, no moments, one forward pass instead of two."""
    config.optim.rates = (*config.optim.rates, ("vision/.*", 0.0))
    config.optim.frozen_dtype = "bfloat16"
    config.loss.cache_vision = True


def _lora(config: ConfigDict) -> None:
    """LoRA on the decoder's projections, as in VLM2Vec; all else but the chorus is frozen."""
    config.model.lora = dict(
        rank=16,
        alpha=64.0,
        targets=("backbone/layers/(q|k|v|o|mlp/(gate|up|down))/kernel",),
    )
    config.optim.lr = 5e-5
    config.optim.frozen_dtype = "bfloat16"
    config.loss.cache_vision = True


def _chips(config: ConfigDict, count: str) -> None:
    """The same batch on fewer chips, in chunks of as many rows a chip as with CHIPS chips."""
    if not count.isdecimal() or int(count) < 1 or CHIPS % int(count):
        raise ConfigError(f"config option chips={count}: {CHIPS} is no multiple of that")
    buckets = config.data.buckets
    held = {name: bucket.rows // CHIPS for name, bucket in buckets.items()}
    for name, rows in FEW_CHIPS.items():
        if int(count) <= 64 and held.get(name):  # not the small ones of `smoke`
            buckets[name].rows = rows
    config.loss.chunk_rows = {name: rows * int(count) for name, rows in held.items()}


OPTIONS: Mapping[str, Callable[..., None]] = {
    "smoke": _smoke,
    "lora": _lora,
    "frozen_vision": _frozen_vision,
    "chips": _chips,
}
"""Options of the recipes, by what follows the colon: `FILE.py:lora,chips=8`."""
