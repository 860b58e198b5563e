"""Tiny random models of transformers (torch), and both libraries run on one sample."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from crem_jax import lazy_array
from crem_jax.config import ModelConfig
from crem_jax.convert.huggingface import open_hf
from crem_jax.data.inputs.padding import pad_contexts, pad_targets
from crem_jax.model import crem
from crem_jax.model.crem import Crem
from crem_jax.types import CONTEXT, PAD, TARGET, Context, Memory, Target
from tests.support.samples import END, IM_END, IMAGE, VIDEO, VISION_END, VISION_START, Batch, Row

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
SPECIAL += ("<|image_pad|>", "<|video_pad|>")
VOCAB, K = 272, 6

TorchConfig = Qwen2VLConfig | Qwen2_5_VLConfig
TorchModel = Qwen2VLForConditionalGeneration | Qwen2_5_VLForConditionalGeneration
STYLES = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
}

KINDS = {
    "tied": (True, "qwen2_vl"),
    "untied": (False, "qwen2_vl"),
    "qwen2_5": (False, "qwen2_5_vl"),
}
"""(tied, style) of the models that most tests run on."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and Qwen2-VL's special tokens: 263 tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
    return tokenizer


def random_config(rng: np.random.Generator, tied: bool, style: str = "qwen2_vl") -> TorchConfig:
    """Grouped-query ratio, head dimensions, M-RoPE sections, widths and windows drawn at random."""
    half = int(rng.choice([4, 6, 8]))
    groups, ratio = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    cuts = np.sort(rng.choice(np.arange(1, half), 2, replace=False))
    # Among narrower vectors some are so short that the norm magnifies torch's own rounding.
    vision_heads, vision_dim = int(rng.integers(1, 4)), int(rng.choice([8, 12, 16]))
    hidden = groups * ratio * half * 2
    theta = float(rng.choice([1e4, 1e6]))
    embed_dim = vision_heads * vision_dim
    if style == "qwen2_vl":
        tower = {
            "depth": 2,
            "embed_dim": embed_dim,
            "hidden_size": hidden,
            "mlp_ratio": int(rng.integers(2, 5)),
        }
    else:
        tower = {
            "depth": 3,
            "hidden_size": embed_dim,
            "out_hidden_size": hidden,
            "intermediate_size": int(rng.integers(5, 30)),
            "fullatt_block_indexes": [int(rng.integers(3))],
            "window_size": int(rng.choice([8, 16, 20, 24])),
            "tokens_per_second": int(rng.integers(1, 5)),
        }
    return STYLES[style][0](
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": hidden,
            "intermediate_size": int(rng.integers(3, 8)) * 8,
            "num_hidden_layers": 2,
            "num_attention_heads": groups * ratio,
            "num_key_value_heads": groups,
            "max_position_embeddings": 512,
            "rms_norm_eps": float(rng.choice([1e-5, 1e-6])),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": theta,
                "mrope_section": [int(n) for n in np.diff([0, *cuts, half])],
            },
            "bos_token_id": END,
            "eos_token_id": IM_END,
            "pad_token_id": END,
            "tie_word_embeddings": tied,
        },
        vision_config={
            "num_heads": vision_heads,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **tower,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=tied,
    )


def random_model(rng: np.random.Generator, tied: bool, style: str = "qwen2_vl") -> TorchModel:
    """Weights of unit gain and biases of some size, so that every tensor shows in the output; the
    vocabulary's tables have half of that, for logits around 1."""
    model = STYLES[style][1](random_config(rng, tied, style)).eval().requires_grad_(False)
    model.set_attn_implementation("eager")
    for name, tensor in model.named_parameters():
        noise = torch.from_numpy(rng.standard_normal(tuple(tensor.shape)).astype(np.float32))
        if tensor.ndim > 1:
            gain = 0.5 if len(tensor) == VOCAB else 1.0
            tensor.copy_(gain * noise / tensor[0].numel() ** 0.5)
        else:
            tensor.copy_(0.2 * noise + (1.0 if name.endswith("weight") else 0.0))
    return model


@dataclasses.dataclass(frozen=True)
class Oracle:
    """One model in both libraries. `config` counts the last spare rows as its chorus."""

    torch_model: TorchModel
    directory: Path
    config: ModelConfig
    params: dict


def read(directory: Path) -> tuple:
    """Config, parameters as float32 numpy arrays, and tokenizer of a Hugging Face directory."""
    config, params, tokenizer = open_hf(directory)
    return config, lazy_array.materialise(params, np.float32), tokenizer


@functools.cache
def oracle(root: Path, seed: int, tied: bool, style: str = "qwen2_vl") -> Oracle:
    """A random model, written by transformers and read by us."""
    directory = root / f"hf-{style}-{seed}-{tied}"
    model = random_model(np.random.default_rng([seed, tied]), tied, style)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    config, params, _ = read(directory)
    config = config.replace(num_chorus=K, first_chorus_id=VOCAB - K)
    return Oracle(model, directory, config, jax.tree.map(jnp.asarray, params))


def whole_mask(region: jax.Array, z: jax.Array) -> jax.Array:
    """The paper's mask of whole sequences. region: int32 [B, T], z: bool [B] -> bool [B, T, T]."""
    slots = region.shape[1]
    causal = jnp.tril(jnp.ones((slots, slots), bool)) & (region != PAD)[:, None, :]
    hidden = (region == TARGET)[:, :, None] & (region == CONTEXT)[:, None, :]
    return causal & ~(z[:, None, None] & hidden)


@functools.partial(jax.jit, static_argnums=0)
def one_pass(
    config: ModelConfig, params: dict, tokens, position, region, patches, z
) -> tuple[jax.Array, jax.Array]:
    """Hidden states and logits of whole sequences under the compression-aware mask."""

    def run(model: Crem):
        x = model.backbone.embed(tokens)
        x = model.compressor._insert(x, tokens, model.vision(patches))
        hidden, _ = model.backbone(x, position, whole_mask(region, z))
        return hidden, model.logits(hidden)

    return Crem(config).apply({"params": params}, method=run)


def ours(o: Oracle, batch: Batch, z) -> tuple[np.ndarray, np.ndarray]:
    """`one_pass` of a batch. z: one bool or [B]."""
    z = jnp.broadcast_to(jnp.asarray(z), (len(batch.rows),))
    out = one_pass(o.config, o.params, batch.tokens, batch.position, batch.region, batch.patches, z)
    return np.asarray(out[0]), np.asarray(out[1])


def torch_pictures(rows: list[Row], config: ModelConfig) -> dict[str, torch.Tensor]:
    """pixel_values and image_grid_thw as Qwen2-VL's image processor gives them."""
    pixels = np.concatenate([np.zeros((0, 48), np.uint8)] + [p for row in rows for p in row.pixels])
    if not len(pixels):
        return {}
    vision = config.vision
    channels = pixels.reshape(-1, 3, 1, 16).astype(np.float32) / 255
    mean = np.reshape(vision.image_mean, (3, 1, 1)).astype(np.float32)
    std = np.reshape(vision.image_std, (3, 1, 1)).astype(np.float32)
    values = np.broadcast_to((channels - mean) / std, (len(pixels), 3, 2, 16))
    grids = [(1, *grid) for row in rows for grid in row.grids]
    return {
        "pixel_values": torch.from_numpy(values.reshape(len(pixels), -1).copy()),
        "image_grid_thw": torch.tensor(grids),
    }


def torch_inputs(batch: Batch, config: ModelConfig) -> dict[str, torch.Tensor]:
    """The ordinary call of transformers: 2-D mask, its own positions."""
    tokens = torch.from_numpy(batch.tokens)
    return {
        "input_ids": tokens,
        "attention_mask": torch.from_numpy((batch.region != PAD).astype(np.int64)),
        "mm_token_type_ids": (tokens == IMAGE).int(),
        **torch_pictures(batch.rows, config),
    }


def drawn_mask(batch: Batch, z: np.ndarray) -> torch.Tensor:
    """The paper's M[i, j] as a 4-D additive mask, written cell by cell."""
    count, width = batch.tokens.shape
    mask = np.full((count, 1, width, width), np.finfo(np.float32).min, np.float32)
    for b in range(count):
        for i in range(width):
            for j in range(i + 1):
                hidden = z[b] and batch.region[b, i] == TARGET and batch.region[b, j] == CONTEXT
                if batch.region[b, j] != PAD and not hidden:
                    mask[b, 0, i, j] = 0
    return torch.from_numpy(mask)


def theirs(o: Oracle, batch: Batch, z: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states after the final norm and logits of torch; with z under the paper's mask."""
    inputs = torch_inputs(batch, o.config)
    if z is not None:
        inputs["attention_mask"] = drawn_mask(batch, z)
        inputs["position_ids"] = torch.from_numpy(batch.position).permute(2, 0, 1)
    hidden = o.torch_model.model(**inputs).last_hidden_state
    return hidden.numpy(), o.torch_model.lm_head(hidden).numpy()


def split(
    o: Oracle, rows: list[Row], slots: int, patches: int, target_slots: int
) -> tuple[Context, Target]:
    """The same samples in two halves, as `compress` and `decode` take them."""
    contexts, targets = zip(*(row.halves() for row in rows), strict=True)
    return (
        pad_contexts(contexts, o.config, slots, patches),
        pad_targets(targets, o.config, target_slots, answers=1),
    )


compress = jax.jit(crem.compress, static_argnums=0)
decode = jax.jit(crem.decode, static_argnums=0)
logits = jax.jit(crem.logits, static_argnums=0)


def answers(o: Oracle, memory: Memory, target: Target, z) -> np.ndarray:
    """Logits [B, T, V] of the target region. z: one bool or [B]."""
    z = jnp.broadcast_to(jnp.asarray(z, bool), memory.next_position.shape)
    return np.asarray(logits(o.config, o.params, decode(o.config, o.params, memory, target, z)[0]))
