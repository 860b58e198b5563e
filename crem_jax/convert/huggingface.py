"""Reads and writes Hugging Face model directories: weights, configs, tokenizer, template, card."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from crem_jax import lazy_array
from crem_jax.config import ConfigError, ModelConfig, VisionConfig
from crem_jax.convert import config_json, table
from crem_jax.convert.card import model_card
from crem_jax.convert.safetensors_io import (
    DTYPES,
    Weights,
    write_json,
    write_weights,
)
from crem_jax.convert.sentence_transformers import write_sentence_transformers
from crem_jax.convert.table import WeightsError
from crem_jax.data.chat_template import chat_template
from crem_jax.files import atomic_directory
from crem_jax.lazy_array import LazyArray
from crem_jax.model import crem

EXAMPLE = "compressed_generation.py"


def open_hf(
    directory: str | os.PathLike,
) -> tuple[ModelConfig, crem.Params, PreTrainedTokenizerFast]:
    """Opens the directory of a Qwen2-VL, Qwen2.5-VL or CREM model.

    Returns:
      The config, the parameters as LazyArrays of their stored type, and the tokenizer.

    Raises:
      WeightsError: a file is missing or damaged, or the tensors do not fit the config.
      ConfigError: the config needs something that this library does not implement.
    """
    directory = Path(directory)
    config = config_json.from_hf(
        _read_json(directory / "config.json"),
        _read_json(directory / "generation_config.json", required=False),
        _read_json(directory / "preprocessor_config.json", required=False),
    )
    weights = Weights(directory)
    params = table.from_hf(config, weights, source=str(directory), locate=weights.files.__getitem__)
    return config, params, read_tokenizer(directory)


def read_tokenizer(directory: str | os.PathLike) -> PreTrainedTokenizerFast:
    """The tokenizer of a model directory.

    Raises:
      WeightsError: it does not exist or cannot be read.
    """
    directory = Path(directory)
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise WeightsError(f"{directory}: has no tokenizer.json")
    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception on damaged files
        raise WeightsError(f"{directory}: the tokenizer cannot be read: {error}") from error


def export_hf(
    config: ModelConfig,
    params: crem.Params,
    tokenizer: PreTrainedTokenizerFast,
    directory: str | os.PathLike,
    *,
    dtype: str | None = None,
    card: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    verify: bool = False,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Writes a model directory that plain transformers opens, atomically.

    Args:
      params: a tree of arrays of any kind (numpy, JAX, lazy) that fits the config.
      dtype: type of the written weights, "float32" or "bfloat16"; None is that of the embedding.
      card: facts for the model card, see `model_card`.
      overwrite: replace a directory that has files in it.
      verify: read everything back and compare before the directory appears.
      on_bytes: called with the number of bytes of weights written since the last call.

    Raises:
      WeightsError: the parameters do not fit the config, the directory is not empty, or what is
        read back differs.
      ConfigError: an ordinary token takes the place of the chorus (`model.chorus_token`).
    """
    if config.eos_token_id in config.chorus_ids:
        raise ConfigError(
            "this model reads the token that ends a turn in place of a chorus "
            "(model.chorus_token); such a baseline has no export"
        )
    tensors = table.to_hf(config, params)
    dtype = dtype or str(tensors[table.EMBEDDING].dtype)
    config = config.replace(dtype=dtype) if dtype in DTYPES else config
    with atomic_directory(directory, overwrite=overwrite) as partial:
        write_weights(
            partial, tensors, dtype=dtype, max_shard_bytes=max_shard_bytes, on_bytes=on_bytes
        )
        if verify:
            wanted = {name: tensor.astype(DTYPES[dtype]) for name, tensor in tensors.items()}
            check_same_bits(Weights(partial), wanted, source=str(directory))
        tokenizer.save_pretrained(str(partial))
        template = tokenizer.chat_template
        if config.num_chorus or not template:
            template = chat_template(config)
        (partial / "chat_template.jinja").write_text(template, "utf-8")
        write_json(partial / "generation_config.json", generation_config(config))
        write_json(partial / "preprocessor_config.json", preprocessor_config(config.vision))
        (partial / "README.md").write_text(model_card(config, card), "utf-8")
        if config.num_chorus:
            write_sentence_transformers(partial, config, tokenizer)
            example = resources.files("crem_jax").joinpath("assets", EXAMPLE).read_text("utf-8")
            (partial / EXAMPLE).write_text(example, "utf-8")
        write_json(partial / "config.json", config_json.to_hf(config))


def check_same_bits(
    got: Mapping[str, LazyArray], wanted: Mapping[str, LazyArray], *, source: str
) -> None:
    """Compares two sets of arrays with the same names, bit by bit.

    Raises:
      WeightsError: some differ; the message names them and `source`.
    """
    differing = [name for name in wanted if not lazy_array.same(got[name], wanted[name])]
    if differing:
        raise WeightsError(f"{source}: read back, {', '.join(differing)} differ from the source")


def generation_config(config: ModelConfig) -> dict[str, Any]:
    """generation_config.json: both end tokens end an answer, and chorus tokens are suppressed."""
    values: dict[str, Any] = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(dict.fromkeys((config.eos_token_id, config.pad_token_id))),
        "pad_token_id": config.pad_token_id,
    }
    if config.num_chorus:
        values["suppress_tokens"] = list(config.chorus_ids)
    return values


def preprocessor_config(vision: VisionConfig) -> dict[str, Any]:
    """preprocessor_config.json, as transformers 5's Qwen2VLImageProcessor writes it."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(vision.image_mean),
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": list(vision.image_std),
        "merge_size": vision.merge_size,
        "patch_size": vision.patch_size,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": vision.max_pixels, "shortest_edge": vision.min_pixels},
        "temporal_patch_size": vision.temporal_patch_size,
    }


def _read_json(path: Path, required: bool = True) -> dict[str, Any]:
    if not path.is_file():
        if required:
            raise WeightsError(f"{path.parent}: has no {path.name}")
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: holds a {type(values).__name__}, expected an object")
    return values
