"""Exports LoRA adapters in PEFT's format, without the base model that they were trained on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from crem_jax import lazy_array, trees
from crem_jax.config import ConfigError, ModelConfig
from crem_jax.convert import table
from crem_jax.convert.safetensors_io import write_json, write_weights
from crem_jax.data.chat_template import chat_template
from crem_jax.files import atomic_directory
from crem_jax.lazy_array import LazyArray
from crem_jax.model.lora import CHORUS_DELTA

_WEIGHTS = "adapter_model.safetensors"


def export_adapter(
    config: ModelConfig,
    params: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    directory: str | os.PathLike,
    *,
    base: str,
    overwrite: bool = False,
) -> None:
    """Writes an adapter directory for `peft.PeftModel.from_pretrained(base_model, directory)`.

    The chorus tokens' rows of the embedding are included as PEFT's trainable tokens, so the base
    may be a plain model whose vocabulary has spare rows for them. Tokenizer and chat template are
    written to the same directory.

    Args:
      config: a model with `lora`. params: its parameters, adapters included (see `model.lora`).
      base: name or path of the base model, recorded in the adapter's config.
      overwrite: replace a directory that already has files in it.

    Raises:
      ConfigError: the model has no adapters. WeightsError: the directory has files in it.
    """
    if config.lora is None:
        raise ConfigError("the model has no adapters; expected a run trained with model.lora")
    leaves = {path: lazy_array.of(leaf) for path, leaf in trees.flatten(params).items()}
    stems = [path.removesuffix("lora_a") for path in leaves if path.endswith("/lora_a")]
    tensors = dict(pair for stem in stems for pair in _matrices(leaves, stem))
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": "|".join(_pattern(_module(stem)) for stem in stems),
        "inference_mode": True,
    }
    if CHORUS_DELTA in leaves:
        first, count = config.first_chorus_id, config.num_chorus
        rows = leaves["backbone/embedding"][first : first + count].astype(np.float32)
        place = "base_model.model.model.language_model.embed_tokens.token_adapter"
        rows = rows + np.asarray(leaves[CHORUS_DELTA], np.float32)
        tensors[f"{place}.trainable_tokens_delta"] = lazy_array.of(rows)
        settings["trainable_token_indices"] = {"embed_tokens": list(config.chorus_ids)}
    with atomic_directory(directory, overwrite=overwrite) as partial:
        (written,) = write_weights(partial, tensors, max_shard_bytes=1 << 62)
        os.replace(partial / written, partial / _WEIGHTS)
        tokenizer.save_pretrained(str(partial))
        (partial / "chat_template.jinja").write_text(chat_template(config), "utf-8")
        write_json(partial / "adapter_config.json", settings)


def _matrices(leaves: dict[str, LazyArray], stem: str) -> Iterator[tuple[str, LazyArray]]:
    """Name -> PEFT's lora_A [rank, in] and lora_B [out, rank] of an adapted kernel's layers."""
    a, b = np.asarray(leaves[f"{stem}lora_a"]), np.asarray(leaves[f"{stem}lora_b"])
    module = _module(stem)
    if "{layer}" not in module:
        a, b = a[None], b[None]
    rank = a.shape[-1]
    for layer, (down, up) in enumerate(zip(a, b, strict=True)):
        name = f"base_model.model.{module.format(layer=layer)}"
        yield f"{name}.lora_A.weight", lazy_array.of(down.reshape(-1, rank).T)
        yield f"{name}.lora_B.weight", lazy_array.of(up.reshape(rank, -1).T)


def _module(stem: str) -> str:
    """transformers' name of the module of a kernel, with "{layer}" for the layer number."""
    return table.in_memory(table.HF_NAMES[f"{stem}kernel"]).removesuffix(".weight")


def _pattern(module: str) -> str:
    return re.escape(module).replace(re.escape("{layer}"), r"\d+")
