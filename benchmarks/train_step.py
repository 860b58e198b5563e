"""Our joint training step beside the same step in torch: same weights, same batch, same loss.

    python benchmarks/train_step.py --json            # on a GPU: Qwen2-VL-2B, four sequences
    python benchmarks/train_step.py --quick --json    # a small model, on any CPU

A step compresses packed sequences of a picture, text and 16 chorus tokens, answers from them, and
trains all parameters with InfoNCE plus language modelling, half of the answers without sight of
the context. Both sides keep float32 parameters and AdamW's moments. On a GPU both compute in
bfloat16 and rematerialise every layer; ours runs cuDNN's flash attention, torch its
scaled-dot-product attention over transformers' Qwen2-VL with the mask of the whole sequence. The
first losses must agree. The sides run one after the other: two states of 2B would not fit together.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import qwen  # first: it chooses the device

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from crem_jax.config import ModelConfig
from crem_jax.configs.schema.data import BucketSpec
from crem_jax.flops import model_flops
from crem_jax.model import crem
from crem_jax.train.objective import joint_loss
from crem_jax.train.objective.step import TrainState, train_step
from crem_jax.train.run.meter import device_peak
from crem_jax.types import CHORUS, Batch, Context, Target

LIMIT = 2e-2 if qwen.GPU else 1e-4
"""Of the relative difference of the first losses."""

LR, BETAS, EPS, DECAY = 1e-5, (0.9, 0.98), 1e-8, 0.01
SEED = 0
LOSS = joint_loss.LossConfig(elastic=0.0, symmetric=False, temperature=0.02, p_compressed=0.5)


def make_batch(config: ModelConfig, size: dict, rows: int) -> tuple[Batch, dict[str, torch.Tensor]]:
    """Every sequence is a query, a candidate and a conversation; and what torch needs of it."""
    context, asked = qwen.inputs(config, size, rows)
    rng = np.random.default_rng(rows + 1)
    width, answers = size["target"], size["answers"]
    chorus = np.tile(config.chorus_ids, (rows, 1)).astype(np.int32)
    start = np.asarray(context.position).max() + 1
    more = start + np.arange(qwen.CHORUS + width)[None, :, None].repeat(3, axis=2)
    more = np.tile(more, (rows, 1, 1)).astype(np.int32)
    region = np.full((rows, qwen.CHORUS), CHORUS, np.int32)
    context = Context(
        tokens=np.concatenate([context.tokens, chorus], axis=1),
        position=np.concatenate([context.position, more[:, : qwen.CHORUS]], axis=1),
        region=np.concatenate([context.region, region], axis=1),
        patches=context.patches,
    )
    tokens = rng.integers(0, config.image_token_id, (rows, width), dtype=np.int32)
    slot = np.tile(np.arange(width - answers - 1, width - 1, dtype=np.int32), (rows, 1))
    target = Target(
        tokens=tokens,
        valid=np.ones((rows, width), bool),
        answer_slot=slot,
        answer=np.take_along_axis(tokens, slot + 1, axis=1),
    )
    found = np.stack([np.arange(rows) + 1, np.ones(rows)], axis=1).astype(np.uint32)
    batch = Batch(
        contexts={"sequence": context},
        targets={"sequence": target},
        query_row=np.arange(rows, dtype=np.int32),
        positive_hash=found[:, None],
        candidate_row=np.roll(np.arange(rows, dtype=np.int32), -1),
        candidate_hash=found,
    )
    key = jax.random.fold_in(jax.random.key(SEED), 0)
    z = np.asarray(joint_loss.draw(batch, key, config, LOSS).z["sequence"])
    slots = context.tokens.shape[1]
    mask = np.tril(np.ones((rows, 1, slots + width, slots + width), bool))
    mask[z, :, slots:, : slots - qwen.CHORUS] = False
    ids = np.concatenate([context.tokens, tokens], axis=1)
    positions = np.concatenate([context.position, more[:, qwen.CHORUS :]], axis=1)
    theirs = {
        "input_ids": torch.from_numpy(ids).long(),
        "attention_mask": torch.from_numpy(mask),
        "position_ids": torch.from_numpy(positions).permute(2, 0, 1).long(),
        "mm_token_type_ids": torch.from_numpy(ids == config.image_token_id).int(),
        "answer_slot": torch.from_numpy(slots + slot).long(),
        "answer": torch.from_numpy(target.answer).long(),
    }
    theirs = {key: value.to(qwen.DEVICE) for key, value in theirs.items()}
    pictures = {key: asked[key] for key in ("pixel_values", "image_grid_thw")}
    return jax.device_put(batch), theirs | pictures


def ours(config: ModelConfig, params: crem.Params, batch: Batch) -> Callable[[], float]:
    """A step that returns its loss once it is done."""
    optimizer = optax.adamw(LR, *BETAS, EPS, weight_decay=DECAY)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    update = jax.jit(
        functools.partial(
            train_step,
            seed=SEED,
            model=config,
            loss=LOSS,
            optimizer=optimizer,
            learning_rate=optax.constant_schedule(LR),
        ),
        donate_argnums=0,
    )

    def run() -> float:
        nonlocal state
        state, metrics = update(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return run


def theirs(model, asked: dict[str, torch.Tensor], slots: int) -> Callable[[], float]:
    """The same step in torch, over the whole sequence at once."""
    model = model.train().requires_grad_(True)
    if qwen.GPU:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(
        model.parameters(), LR, BETAS, EPS, weight_decay=DECAY, fused=qwen.GPU
    )
    answer_slot, answer = asked.pop("answer_slot"), asked.pop("answer")
    allowed = asked.pop("attention_mask")
    dtype = torch.bfloat16 if qwen.GPU else torch.float32
    mask = torch.zeros(allowed.shape, dtype=dtype, device=qwen.DEVICE)
    mask = mask.masked_fill_(~allowed, torch.finfo(dtype).min)
    rows = torch.arange(len(answer), device=qwen.DEVICE)

    def run() -> float:
        with torch.autocast(qwen.DEVICE, torch.bfloat16, enabled=qwen.GPU):
            hidden = model.model(**asked, attention_mask=mask, use_cache=False).last_hidden_state
            told = hidden.gather(1, answer_slot[..., None].expand(-1, -1, hidden.shape[-1]))
            logits = model.lm_head(told)
        chorus = hidden[:, slots - qwen.CHORUS : slots].float().mean(dim=1)
        embedding = torch.nn.functional.normalize(chorus, dim=-1)
        scores = embedding @ embedding.roll(-1, 0).T / LOSS.temperature
        retrieval = torch.nn.functional.cross_entropy(scores, rows)
        generation = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), answer.flatten()
        )
        loss = LOSS.retrieval * retrieval + LOSS.generation * generation
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def measure(run: Callable[[], float], turns: int) -> tuple[float, float]:
    """First loss, and the median seconds of the turns after it."""
    first = run()
    run()
    return first, statistics.median(qwen.seconds(run) for _ in range(turns))


def gib(count: float | None) -> float | None:
    return None if count is None else count / 2**30


def side(took: float, rows: int, flops: float, peak: float | None, memory: Any) -> dict[str, Any]:
    return {
        "step_ms": 1e3 * took,
        "samples_per_second": rows / took,
        "model_tflops_per_second": flops / took / 1e12,
        "utilisation": flops / took / peak if peak else None,
        "peak_gib": gib(memory),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, three turns")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--batch", type=int, default=None, help="sequences (default 4; 2 if quick)")
    parser.add_argument("--turns", type=int, default=None, help="steps timed (default 10)")
    arguments = parser.parse_args()
    size = qwen.SIZES["quick" if arguments.quick else "2b" if qwen.GPU else "full"]
    rows = arguments.batch or (2 if arguments.quick else 4)
    turns = arguments.turns or (3 if arguments.quick else 10)
    model = qwen.torch_model(size)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        del model
        config, params = qwen.ours_of(directory)
        config = config.replace(num_chorus=qwen.CHORUS, first_chorus_id=size["vocab"] - qwen.CHORUS)
        if qwen.GPU:
            config = config.replace(dtype="bfloat16", remat="full")
        batch, asked = make_batch(config, size, rows)
        slots = batch.contexts["sequence"].tokens.shape[1]
        bucket = BucketSpec(slots, size["grid"] ** 2, rows, size["target"], size["answers"])
        flops = model_flops(config, [bucket]).training()
        peak = device_peak()
        print(f"{rows} sequences of {slots} + {size['target']} slots on {qwen.machine()}")

        first, took = measure(ours(config, params, batch), turns)
        stats = jax.devices()[0].memory_stats() or {}
        mine = side(took, rows, flops, peak, stats.get("peak_bytes_in_use"))
        del params
        jax.clear_caches()

        if qwen.GPU:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        model = qwen.torch_model(size)
        their_first, took = measure(theirs(model, asked, slots), turns)
        memory = torch.cuda.max_memory_allocated() if qwen.GPU else None
        other = side(took, rows, flops, peak, memory)
    apart = abs(first - their_first) / abs(their_first)
    if not apart <= LIMIT:
        sys.exit(f"first losses {first:.5f} and {their_first:.5f} differ by {apart:.1e} > {LIMIT}")
    for name, found in (("ours", mine), ("torch", other)):
        used = f"{100 * found['utilisation']:.1f} % utilisation" if peak else "no peak known"
        room = f"{found['peak_gib']:.1f} GiB" if found["peak_gib"] else "memory unknown"
        print(
            f"{name:>5}: {found['step_ms']:8.1f} ms, {found['samples_per_second']:7.2f} samples/s, "
            f"{used}, {room}"
        )
    ratio = other["step_ms"] / mine["step_ms"]
    print(f"torch/ours {ratio:.2f}; first losses differ by {apart:.0e}")
    if arguments.json:
        figures = {"machine": qwen.machine(), "batch": rows, "ours": mine, "torch": other}
        losses = {"first_loss": first, "loss_difference": apart}
        print(json.dumps(figures | losses | {"speedup": ratio}))


if __name__ == "__main__":
    main()
