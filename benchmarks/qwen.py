"""What the benchmarks beside transformers' torch share: the device, the models and the prompts.

Import this first: on a CPU it pins the process to one core before the libraries start their
threads. A GPU is used if torch sees one, unless JAX_PLATFORMS=cpu.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

GPU = torch.cuda.is_available() and os.environ.get("JAX_PLATFORMS") != "cpu"
CORE = max(os.sched_getaffinity(0))
if GPU:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # torch needs memory too
else:
    os.sched_setaffinity(0, {CORE})
    torch.set_num_threads(1)
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration  # noqa: E402

from crem_jax import lazy_array  # noqa: E402
from crem_jax.config import ModelConfig  # noqa: E402
from crem_jax.convert import config_json, table  # noqa: E402
from crem_jax.convert.safetensors_io import Weights  # noqa: E402
from crem_jax.model import crem  # noqa: E402
from crem_jax.types import CONTEXT, Context, Patches  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"
CHORUS = 16
SIZES = {
    "2b": dict(
        vocab=151_936,
        hidden=1536,
        mlp=8960,
        layers=28,
        heads=12,
        sections=[16, 24, 24],
        vision=1280,
        vision_heads=16,
        depth=32,
        grid=64,
        text=238,
        target=256,
        answers=128,
        batches=(1, 4),
    ),
    "full": dict(
        vocab=2048,
        hidden=512,
        mlp=1536,
        layers=8,
        heads=8,
        sections=[8, 12, 12],
        vision=256,
        vision_heads=4,
        depth=4,
        grid=32,
        text=64,
        target=64,
        answers=32,
        batches=(1, 4),
    ),
    "quick": dict(
        vocab=2048,
        hidden=128,
        mlp=384,
        layers=2,
        heads=2,
        sections=[8, 12, 12],
        vision=64,
        vision_heads=1,
        depth=2,
        grid=8,
        text=16,
        target=16,
        answers=8,
        batches=(1,),
    ),
}
"""2b is Qwen2-VL-2B with a packed sequence of `crem plan`: 1,280 slots and 256 of the target."""


def image_token(size: dict) -> int:
    return size["vocab"] - 48


def machine() -> str:
    """What the figures were measured on."""
    return torch.cuda.get_device_name() if GPU else f"core {CORE}, load {os.getloadavg()[0]:.1f}"


def torch_model(size: dict) -> Qwen2VLForConditionalGeneration:
    """A Qwen2-VL with two key/value heads and random float32 weights of unit gain."""
    torch.manual_seed(0)
    image = image_token(size)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": size["vocab"],
            "hidden_size": size["hidden"],
            "intermediate_size": size["mlp"],
            "num_hidden_layers": size["layers"],
            "num_attention_heads": size["heads"],
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": size["sections"],
            },
            "tie_word_embeddings": True,
            "bos_token_id": image + 4,
            "eos_token_id": image + 5,
            "pad_token_id": image + 4,
        },
        vision_config={
            "depth": size["depth"],
            "embed_dim": size["vision"],
            "hidden_size": size["hidden"],
            "num_heads": size["vision_heads"],
            "mlp_ratio": 4,
            "patch_size": 14,
        },
        image_token_id=image,
        video_token_id=image + 1,
        vision_start_token_id=image + 2,
        vision_end_token_id=image + 3,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    with torch.device(DEVICE):
        model = Qwen2VLForConditionalGeneration(config).eval().requires_grad_(False)
    for tensor in model.parameters():
        if tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
    return model


def ours_of(directory: str) -> tuple[ModelConfig, crem.Params]:
    """The saved model as ours."""
    config = config_json.from_hf(json.loads((Path(directory) / "config.json").read_text()))
    weights = Weights(Path(directory))
    params = lazy_array.materialise(table.from_hf(config, weights, source=directory), np.float32)
    return config, jax.tree.map(jnp.array, params)


def inputs(config: ModelConfig, size: dict, batch: int) -> tuple[Context, dict[str, torch.Tensor]]:
    """The same prompts for both: one square picture each, then text."""
    rng = np.random.default_rng(batch)
    grid, merge = size["grid"], config.vision.merge_size
    side = grid // merge
    vision = side * side
    image = [config.image_token_id] * vision
    row = [config.vision_start_token_id, *image, config.vision_end_token_id]
    text = rng.integers(0, config.image_token_id, (batch, size["text"]))
    tokens = np.concatenate([np.tile(row, (batch, 1)), text], axis=1).astype(np.int32)
    corner = np.indices((1, side, side)).reshape(3, -1).T + 1
    after = np.arange(side + 1, side + 2 + size["text"])[:, None].repeat(3, axis=1)
    position = np.concatenate([np.zeros((1, 3), int), corner, after]).astype(np.int32)
    blocks = np.indices((side, side, merge, merge)).reshape(4, -1)
    places = np.stack([merge * blocks[0] + blocks[2], merge * blocks[1] + blocks[3]], axis=-1)
    pixels = rng.integers(0, 256, (batch, grid * grid, config.vision.patch_values), dtype=np.uint8)
    context = Context(
        tokens=tokens,
        position=np.tile(position, (batch, 1, 1)),
        region=np.full(tokens.shape, CONTEXT, np.int32),
        patches=Patches(
            pixels=pixels,
            position=np.tile(places.astype(np.int32), (batch, 1, 1)),
            picture=np.ones((batch, grid * grid), np.int32),
        ),
    )
    mean, std = (
        np.reshape(values, (3, 1, 1)).astype(np.float32)
        for values in (config.vision.image_mean, config.vision.image_std)
    )
    values = (pixels.reshape(-1, 3, 1, config.vision.patch_size**2) / np.float32(255) - mean) / std
    twice = np.repeat(values, config.vision.temporal_patch_size, axis=2)
    ids = torch.from_numpy(tokens).long()
    asked = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": torch.from_numpy(twice.reshape(len(twice), -1)),
        "image_grid_thw": torch.tensor([[1, grid, grid]] * batch),
    }
    return jax.device_put(context), {key: value.to(DEVICE) for key, value in asked.items()}


def seconds(run: Callable[[], object]) -> float:
    """Of one call, the device's work included; `run` of JAX must wait for itself."""
    start = time.perf_counter()
    run()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - start
