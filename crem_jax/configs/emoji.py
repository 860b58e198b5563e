"""The embedded default: CREM from scratch on emoji pictures and scenes, on a laptop CPU.

crem train --config=emoji --workdir=runs/emoji
crem train --config=emoji:smoke --workdir=runs/smoke        # under a minute
crem train --config=emoji:arm=retrieval_only --workdir=…    # an ablation arm
crem train --config=emoji:chorus=16 --workdir=…             # 16 chorus tokens
"""

from __future__ import annotations

from ml_collections import ConfigDict

from crem_jax.configs.fields import ConfigError
from crem_jax.configs.schema import complete, default_config

FIRST_CHORUS = 2014
"""Row of the packaged tokenizer's first chorus token; the rows after it are free."""

ARMS = {
    "retrieval_only": dict(generation=0.0),
    "generation_only": dict(retrieval=0.0, p_compressed=0.0),
    "joint_no_compression": dict(p_compressed=0.0),
    "prompt_only": dict(retrieval=0.0),
    "strategy_only": dict(),
    "crem": dict(),
}
"""The arms of the paper's Table 3 by their losses; those of WITHOUT_CHORUS also have no chorus:
the end-of-turn token takes its place (docs/ablation.md)."""

WITHOUT_CHORUS = ("retrieval_only", "generation_only", "joint_no_compression", "strategy_only")


def get_config(arg: str = "") -> ConfigDict:
    options = [part for part in arg.split(",") if part]
    config = default_config()
    config.steps = 1120
    config.log_every = 20
    config.eval_every = 560
    config.checkpoint_every = 560
    config.best_metric = "eval/validation_name_p5"
    config.evaluate = "emoji"

    config.model.update(
        text=dict(
            vocab_size=2048,
            hidden_size=128,
            intermediate_size=256,
            num_layers=3,
            num_heads=4,
            num_kv_heads=4,
            mrope_section=(2, 7, 7),
            max_positions=1024,
            rope_theta=10.0,  # sequences are short, and positions on a 6 x 6 grid must differ
        ),
        vision=dict(
            depth=3,
            embed_dim=96,
            num_heads=3,
            patch_size=8,
            rope_theta=100.0,
            mlp_ratio=3,
            min_pixels=48 * 48,
            max_pixels=96 * 96,
            image_mean=(0.6, 0.6, 0.6),
            image_std=(0.3, 0.3, 0.3),
        ),
        num_chorus=8,
        temperature=0.05,
        system_prompt="",
        unroll=3,
    )
    config.data.update(
        sources=dict(
            emoji=dict(kind="emoji", split="train"),
            scenes=dict(kind="scenes", split="train", negatives=5, turns=3, text=0.0),
        ),
        records=dict(emoji=64, scenes=20),
        buckets=dict(
            label=dict(slots=24, patches=0, rows=112),
            text=dict(slots=34, patches=0, rows=36),
            picture=dict(slots=26, patches=36, rows=68, target_slots=28, answers=19),
            scene=dict(slots=62, patches=144, rows=20, target_slots=56, answers=28),
        ),
        candidates=180,
    )
    config.loss.update(generation=1.5, p_compressed=0.5, elastic=0.5, elastic_k="halves")
    config.optim.update(
        name="muon",
        lr=4e-3,
        adam_lr=4e-3,
        warmup=20,
        decay="cosine",
        final=0.0,
        b1=0.9,
        b2=0.98,
        eps=1e-8,
        weight_decay=0.05,
        clip=1.0,
    )

    for option in options:
        name, _, value = option.partition("=")
        if option == "smoke":
            config.steps, config.log_every = 4, 1
            config.eval_every = config.checkpoint_every = 4
            config.model.text.num_layers = config.model.vision.depth = config.model.unroll = 1
            config.data.records = dict(emoji=8, scenes=2)
            config.data.candidates = 14
            for bucket, rows in dict(label=14, text=4, picture=9, scene=2).items():
                config.data.buckets[bucket].rows = rows
        elif name == "arm" and value in ARMS:
            config.loss.update(ARMS[value])
            if value in WITHOUT_CHORUS:
                _chorus(config, "eos")
        elif name == "chorus" and (value == "eos" or (value.isdecimal() and int(value))):
            _chorus(config, value)
        elif option == "system":
            _system_prompt(config)
        elif option == "heterogeneous":
            _heterogeneous(config)
        else:
            raise ConfigError(
                f"unknown config option {option!r}; expected smoke, arm=<{'|'.join(ARMS)}>, "
                "chorus=<K|eos>, system or heterogeneous"
            )
    return complete(config)


def _chorus(config: ConfigDict, count: str) -> None:
    """Sets K chorus tokens, or the end-of-turn token in their place."""
    k = 1 if count == "eos" else int(count)
    config.model.chorus_token = "<|im_end|>" if count == "eos" else ""
    if k == 1:
        config.loss.elastic = 0.0  # there is nothing to truncate
    for bucket in config.data.buckets.values():
        bucket.slots += k - config.model.num_chorus
    config.model.num_chorus = k
    rows = FIRST_CHORUS + k
    config.model.text.vocab_size = max(config.model.text.vocab_size, -(-rows // 128) * 128)


def _system_prompt(config: ConfigDict) -> None:
    config.model.system_prompt = "You are a helpful assistant."
    for bucket in config.data.buckets.values():
        bucket.slots += 16


def _heterogeneous(config: ConfigDict) -> None:
    """The same numbers of pairs and conversations, but no record has both."""
    data = config.data
    for source, bucket in (("emoji", "picture"), ("scenes", "scene")):
        arguments = data.sources[source].to_dict()
        data.sources[f"{source}_told"] = dict(arguments, only="turns")
        data.sources[source] = dict(arguments, only="retrieval")
        data.records[f"{source}_told"] = data.records[source]
        data.buckets[bucket].rows += data.records[source]
