"""Tiny random Qwen2-VL models of transformers (torch), and prompts built by hand for them.

The oracle side of the tests: nothing here uses our prompt builder, positions or mask.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from crem_jax.config import ModelConfig
from crem_jax.convert.huggingface import import_hf
from crem_jax.data.prompt import ContextRow, TargetRow, pad_contexts, pad_targets
from crem_jax.model import crem
from crem_jax.model.crem import Crem
from crem_jax.model.mask import compression_mask
from crem_jax.types import CHORUS, CONTEXT, PAD, TARGET, Context, Memory, Patches, Target

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
SPECIAL += ("<|image_pad|>", "<|video_pad|>")
END, IM_START, IM_END, VISION_START, VISION_END, IMAGE, VIDEO = range(256, 263)
VOCAB, K = 272, 6


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


def random_config(rng: np.random.Generator, tied: bool) -> Qwen2VLConfig:
    """Grouped-query ratio, head dimensions, M-RoPE sections and widths drawn at random."""
    half = int(rng.choice([4, 6, 8]))
    groups, ratio = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    cuts = np.sort(rng.choice(np.arange(1, half), 2, replace=False))
    vision_heads, vision_dim = int(rng.integers(1, 4)), int(rng.choice([4, 8, 12]))
    hidden = groups * ratio * half * 2
    theta = float(rng.choice([1e4, 1e6]))
    return Qwen2VLConfig(
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
            "depth": 2,
            "embed_dim": vision_heads * vision_dim,
            "hidden_size": hidden,
            "num_heads": vision_heads,
            "mlp_ratio": int(rng.integers(2, 5)),
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=tied,
    )


def random_model(rng: np.random.Generator, tied: bool) -> Qwen2VLForConditionalGeneration:
    """Weights of unit gain and biases of some size: every tensor shows in the output."""
    model = Qwen2VLForConditionalGeneration(random_config(rng, tied)).eval().requires_grad_(False)
    model.set_attn_implementation("eager")
    for name, tensor in model.named_parameters():
        noise = torch.from_numpy(rng.standard_normal(tuple(tensor.shape)).astype(np.float32))
        if tensor.ndim > 1:
            tensor.copy_(noise / tensor[0].numel() ** 0.5)
        else:
            tensor.copy_(0.2 * noise + (1.0 if name.endswith("weight") else 0.0))
    return model


@dataclasses.dataclass(frozen=True)
class Oracle:
    """One model in both libraries. `config` counts the last spare rows as its chorus."""

    torch_model: Qwen2VLForConditionalGeneration
    directory: Path
    config: ModelConfig
    params: dict


@functools.cache
def oracle(root: Path, seed: int, tied: bool) -> Oracle:
    """A random model, written by transformers and read by us."""
    directory = root / f"hf-{seed}-{tied}"
    model = random_model(np.random.default_rng([seed, tied]), tied)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    config, params, _ = import_hf(directory)
    config = config.replace(num_chorus=K, first_chorus_id=VOCAB - K)
    return Oracle(model, directory, config, jax.tree.map(jnp.asarray, params))


@dataclasses.dataclass(frozen=True)
class Row:
    """A sample `[V, T, U, Q, A]`: pictures first, then text, the chorus and the target."""

    context: tuple[int, ...]
    target: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    pixels: tuple[np.ndarray, ...]

    def sequence(self, chorus: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """tokens [n], positions [n, 3] and regions [n], from the paper's rule, token by token."""
        tokens = [*self.context, *chorus, *self.target]
        regions = [CONTEXT] * len(self.context) + [CHORUS] * len(chorus)
        regions += [TARGET] * len(self.target)
        positions, start, picture, i = [], 0, 0, 0
        while i < len(tokens):
            if tokens[i] != IMAGE:
                positions.append((start,) * 3)
                start, i = start + 1, i + 1
                continue
            rows, columns = (side // 2 for side in self.grids[picture])
            positions += [
                (start, start + r, start + c) for r in range(rows) for c in range(columns)
            ]
            start, i, picture = start + max(rows, columns), i + rows * columns, picture + 1
        return np.array(tokens), np.array(positions), np.array(regions)

    def packed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels [p, values], places [p, 2] and picture numbers [p] of all patches."""
        places, numbers = [], []
        for number, (height, width) in enumerate(self.grids, start=1):
            for r in range(0, height, 2):
                for c in range(0, width, 2):
                    places += [(r, c), (r, c + 1), (r + 1, c), (r + 1, c + 1)]
            numbers += [number] * (height * width)
        pixels = np.concatenate([np.zeros((0, 48), np.uint8), *self.pixels])
        return pixels, np.array(places, np.int32).reshape(-1, 2), np.array(numbers, np.int32)

    def halves(self) -> tuple[ContextRow, TargetRow]:
        """What `pad_contexts` and `pad_targets` take."""
        tokens, position, _ = self.sequence(())
        n = len(self.context)
        context = ContextRow(tokens[:n], position[:n], *self.packed())
        return context, TargetRow(tokens[n:], np.full(len(self.target), -1))


def random_row(
    rng: np.random.Generator,
    grids: tuple[tuple[int, int], ...] = (),
    text: int = 3,
    target: int = 4,
) -> Row:
    """Random bytes around pictures of the given patch grids (even numbers)."""

    def words(count: int) -> list[int]:
        return [int(token) for token in rng.integers(0, 256, count)]

    context = [IM_START, *words(2)]
    for height, width in grids:
        context += [VISION_START, *[IMAGE] * (height * width // 4), VISION_END]
    pixels = tuple(rng.integers(0, 256, (h * w, 48), dtype=np.uint8) for h, w in grids)
    return Row((*context, *words(text)), tuple(words(target)), grids, pixels)


def rows_of_every_kind(rng: np.random.Generator) -> list[Row]:
    """One picture, pictures of different sizes, text only; lengths drawn at random."""

    def length() -> int:
        return int(rng.integers(1, 6))

    kinds = [((2, 4),), ((4, 2), (2, 2), (4, 4)), (), ((4, 4), (2, 6))]
    return [random_row(rng, grids, length(), length()) for grids in kinds]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Whole sequences padded on one side: numpy [B, W], positions [B, W, 3], packed patches."""

    rows: list[Row]
    tokens: np.ndarray
    position: np.ndarray
    region: np.ndarray
    patches: Patches


def whole(rows: list[Row], chorus: tuple[int, ...], width: int, patches: int, side: str) -> Batch:
    """Pads on the "left" or the "right"."""
    shape = (len(rows), width)
    tokens, position = np.full(shape, END), np.zeros((*shape, 3), np.int32)
    region = np.full(shape, PAD)
    pixels = np.zeros((len(rows), patches, 48), np.uint8)
    places = np.zeros((len(rows), patches, 2), np.int32)
    picture = np.zeros((len(rows), patches), np.int32)
    for i, row in enumerate(rows):
        sequence = row.sequence(chorus)
        n = len(sequence[0])
        at = slice(0, n) if side == "right" else slice(width - n, width)
        tokens[i, at], position[i, at], region[i, at] = sequence
        packed = row.packed()
        p = len(packed[2])
        pixels[i, :p], places[i, :p], picture[i, :p] = packed
    return Batch(rows, tokens, position, region, Patches(pixels, places, picture))


@functools.partial(jax.jit, static_argnums=0)
def one_pass(
    config: ModelConfig, params: dict, tokens, position, region, patches, z
) -> tuple[jax.Array, jax.Array]:
    """Hidden states and logits of whole sequences under the compression-aware mask."""

    def run(model: Crem):
        x = model.backbone.embed(tokens)
        x = model.compressor._insert(x, tokens, model.vision(patches))
        index = jnp.arange(tokens.shape[1])
        visible = compression_mask(index, region, index, region, z)
        hidden, _ = model.backbone(x, position, visible)
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
