"""Opens model directories of either kind: crem's own (a run or an import), or Hugging Face's.

Adapters are merged into their kernels on opening.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from crem_jax import lazy_array
from crem_jax.checkpoints import model_directory
from crem_jax.config import ModelConfig
from crem_jax.convert.huggingface import open_hf
from crem_jax.model import crem
from crem_jax.model.lora import merge_lora

Parts = tuple[ModelConfig, crem.Params, Any]
"""Config, parameters, tokenizer."""


def load_parts(
    directory: str | Path,
    step: int | str = "best",
    *,
    dtype: str = "float32",
    shardings: crem.Params | None = None,
) -> Parts:
    """Loads a model into memory.

    Args:
      step: of a run: "best", "last" or a number.
      dtype: type of the parameters.
      shardings: shardings of the parameters, as from `mesh.param_shardings`; each process reads
        only its own shards. None puts them on this process's first device.

    Raises:
      FileNotFoundError, CremError: it is not a model directory, or is damaged; the message says
        how.
    """
    if _is_run(directory) and model_directory.load_config(directory).lora is None:
        return model_directory.load_model(directory, step, dtype=dtype, shardings=shardings)
    config, params, tokenizer = open_parts(directory, step)
    if shardings is None:
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: first, params)
    return config, lazy_array.materialise(params, dtype, shardings), tokenizer


def open_parts(directory: str | Path, step: int | str = "best") -> Parts:
    """As `load_parts`, with the parameters as LazyArrays of their stored type."""
    if _is_run(directory):
        config, params, tokenizer = model_directory.open_model(directory, step)
        return *merge_lora(config, params), tokenizer
    return open_hf(directory)


def _is_run(directory: str | Path) -> bool:
    if (Path(directory) / model_directory.CONFIG_FILE).exists():
        return True
    if (Path(directory) / "config.json").exists():
        return False
    raise FileNotFoundError(
        f"{directory} is no model: it has neither {model_directory.CONFIG_FILE} (a run of "
        "`crem train` or `crem import`) nor config.json (a Hugging Face directory)"
    )
