"""Writes and reads model directories (`train.run.checkpointer` adds a run's own state).

DIR/crem.json        the model's configuration
DIR/tokenizer/       tokenizer and chat template
DIR/checkpoints/N/   params; for a run also the optimizer state and the position in the data stream
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from crem_jax import lazy_array, trees
from crem_jax.checkpoints import lazy_orbax
from crem_jax.config import ModelConfig
from crem_jax.convert.huggingface import check_same_bits, read_tokenizer
from crem_jax.data.chat_template import chat_template
from crem_jax.errors import CremError
from crem_jax.files import atomic_directory, atomic_files, read_json, write_json
from crem_jax.model import crem

CONFIG_FILE = "crem.json"

NO_DAMAGE = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED")
"""Status codes of read errors that do not mean that a checkpoint is damaged."""


def save_model_files(directory: str | Path, config: ModelConfig, tokenizer: Any) -> None:
    """Writes the config, tokenizer and chat template of a model directory, each file atomically."""
    tokenizer.chat_template = chat_template(config)
    with atomic_files(Path(directory) / "tokenizer") as partial:
        tokenizer.save_pretrained(partial)
    write_json(Path(directory) / CONFIG_FILE, config.to_dict())


def save_model(
    directory: str | Path,
    config: ModelConfig,
    params: crem.Params,
    tokenizer: Any,
    *,
    verify: bool = False,
    on_bytes: lazy_orbax.OnBytes | None = None,
) -> None:
    """Writes a model directory with one checkpoint, step 0, atomically.

    Args:
      params: arrays of any kind; LazyArrays are read and written piece by piece.
      verify: read everything back and compare, before the directory is put in place.
      on_bytes: called with the number of bytes of weights written since the last call.

    Raises:
      CremError: the directory already has files in it, or what is read back differs.
    """
    params = jax.tree.map(lazy_array.of, params)
    with atomic_directory(directory) as partial:
        handlers = {"params": lazy_orbax.handler(on_bytes)}
        path = partial / "checkpoints"
        with ocp.CheckpointManager(path, item_handlers=handlers) as manager:
            manager.save(0, args=ocp.args.Composite(params=ocp.args.PyTreeSave(params)))
        if verify:
            stored, wanted = lazy_orbax.load(path / "0" / "params"), trees.flatten(params)
            check_same_bits(trees.flatten(stored), wanted, source=str(directory))
        save_model_files(partial, config, tokenizer)


def load_config(directory: str | Path) -> ModelConfig:
    """Reads crem.json.

    Raises:
      CremError: it is not JSON, lacks a key, or has unknown keys or values of the wrong type.
    """
    path = Path(directory) / CONFIG_FILE
    values = read_json(path)
    try:
        return ModelConfig.from_dict(values)
    except CremError as error:
        raise CremError(f"{path}: {error}") from error
    except KeyError as error:
        raise CremError(f"{path}: lacks the key {error}") from error
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise CremError(f"{path}: has a value of the wrong type: {error}") from error


def load_model(
    directory: str | Path,
    step: int | str = "best",
    *,
    dtype: str = "float32",
    shardings: crem.Params | None = None,
) -> tuple[ModelConfig, crem.Params, Any]:
    """Loads a model directory: (config, params, tokenizer).

    Args:
      step: "best" (by the run's own metric; the last step if none was recorded), "last", or a step
        number.
      dtype: type of the parameters.
      shardings: shardings of the parameters; None puts them on this process's first device.

    Raises:
      FileNotFoundError: no such checkpoint. CremError: it does not fit the configuration.
    """
    config, tokenizer, where = _find(directory, step)
    like = _abstract(config)
    if shardings is None:
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: one, like)
    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
        like,
        shardings,
    )
    wanted = ocp.args.PyTreeRestore(
        like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=True,  # what else was trained with them stays on disk
    )
    with _reading(where):
        stored = ocp.PyTreeCheckpointHandler().metadata(where).tree
    _check_fits(stored, like, where)
    with _reading(where), ocp.PyTreeCheckpointer() as checkpointer:
        params = checkpointer.restore(where, args=wanted)
    return config, params, tokenizer


def open_model(
    directory: str | Path, step: int | str = "best"
) -> tuple[ModelConfig, crem.Params, Any]:
    """As `load_model`, with the parameters as LazyArrays of their stored type."""
    config, tokenizer, where = _find(directory, step)
    with _reading(where):
        stored = lazy_orbax.load(where)
    return config, _check_fits(stored, _abstract(config), where), tokenizer


def _find(directory: str | Path, step: int | str) -> tuple[ModelConfig, Any, Path]:
    """The config, the tokenizer, and the path of a step's parameters."""
    directory = Path(directory)
    config = load_config(directory)
    tokenizer = read_tokenizer(directory / "tokenizer")
    path = directory.absolute() / "checkpoints"
    if not path.is_dir():
        raise FileNotFoundError(f"{directory} has no checkpoint yet")
    options = ocp.CheckpointManagerOptions(read_only=True, best_fn=score)
    with ocp.CheckpointManager(path, options=options) as manager:
        steps = manager.all_steps()
        if not steps:
            raise FileNotFoundError(f"{directory} has no checkpoint yet")
        if step == "best":
            best = manager.best_step()
            step = max(steps) if best is None else best
        elif step == "last":
            step = max(steps)
        elif step not in steps:
            raise FileNotFoundError(f"{directory} has no checkpoint of step {step}, only {steps}")
    return config, tokenizer, path / str(step) / "params"


def _abstract(config: ModelConfig) -> crem.Params:
    return jax.eval_shape(lambda: crem.init(config, jax.random.key(0)))


def _check_fits(stored: crem.Params, like: crem.Params, where: Path) -> crem.Params:
    """The stored parameters under the keys of `like`, checked to have its paths and shapes."""
    stored = {name: stored[name] for name in like if name in stored}
    trees.check_same(stored, like, what=f"{where.parent}, by {CONFIG_FILE},")
    return stored


@contextlib.contextmanager
def _reading(where: Path) -> Iterator[None]:
    """Turns errors of orbax into CremError; only calls to orbax belong inside."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # orbax and tensorstore have no common class for bad data
        if any(word in str(error) for word in NO_DAMAGE):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CremError(f"{where.parent}: is damaged: {reason}") from error


def score(metrics: dict[str, float]) -> float:
    """The value by which orbax ranks checkpoints; higher is better."""
    return metrics["score"]
