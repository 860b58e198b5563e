"""Orbax checkpoints: a model directory (what a run saves beside it: `train.checkpointer`).

DIR/crem.json        the model's configuration
DIR/tokenizer/       tokenizer and chat template
DIR/checkpoints/N/   params, and for a run also optimizer and data stream position
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from crem_jax import trees
from crem_jax.config import ModelConfig
from crem_jax.convert.huggingface import read_tokenizer
from crem_jax.data.chat_template import chat_template
from crem_jax.model import crem

CONFIG_FILE = "crem.json"


def save_model_files(directory: str | Path, config: ModelConfig, tokenizer: Any) -> None:
    """Writes everything of a model directory but the checkpoints."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.chat_template = chat_template(config)
    tokenizer.save_pretrained(directory / "tokenizer")
    (directory / CONFIG_FILE).write_text(json.dumps(config.to_dict(), indent=1) + "\n")


def save_model(
    directory: str | Path, config: ModelConfig, params: crem.Params, tokenizer: Any
) -> None:
    """Writes a whole model directory with one checkpoint, step 0, and waits for it."""
    with ocp.CheckpointManager(Path(directory).absolute() / "checkpoints") as manager:
        manager.save(0, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
    save_model_files(directory, config, tokenizer)


def load_config(directory: str | Path) -> ModelConfig:
    """Reads crem.json.

    Raises:
      ValueError: it is no JSON, or holds unknown keys.
    """
    path = Path(directory) / CONFIG_FILE
    try:
        return ModelConfig.from_dict(json.loads(path.read_text()))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def load_model(
    directory: str | Path, step: int | str = "best"
) -> tuple[ModelConfig, crem.Params, Any]:
    """(config, params, tokenizer) of a model directory.

    Args:
      step: "best" (by the metric it was trained for; the last if none was kept), "last", or a
        step number.

    Raises:
      FileNotFoundError: no such checkpoint. ValueError: it does not fit the configuration.
    """
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
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
            ),
            jax.eval_shape(lambda: crem.init(config, jax.random.key(0))),
        )
        params = _restore_params(manager, step, like, path / str(step))
    return config, params, tokenizer


def _restore_params(
    manager: ocp.CheckpointManager, step: int, like: crem.Params, where: Path
) -> crem.Params:
    """The parameters named in `like`; what else was trained with them stays on disk."""
    wanted = ocp.args.PyTreeRestore(
        like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=True,
    )
    try:
        stored = ocp.PyTreeCheckpointHandler().metadata(where / "params").tree
        stored = {name: stored[name] for name in like if name in stored}
        trees.check_same(stored, like, what=f"{where}, by {CONFIG_FILE},")
        return manager.restore(step, args=ocp.args.Composite(params=wanted)).params
    except trees.TreeError:
        raise
    except Exception as error:  # orbax and tensorstore have no common class for bad data
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{where}: is damaged: {reason}") from error


def score(metrics: dict[str, float]) -> float:
    """What orbax chooses the best checkpoint by."""
    return metrics["score"]
