"""TrainConfig: a whole run, its sections and their keys."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from crem_jax.configs.fields import REQUIRED, ConfigError, check, field
from crem_jax.configs.schema import tree
from crem_jax.configs.schema.data import DataConfig
from crem_jax.configs.schema.loss import LossSection
from crem_jax.configs.schema.model import ModelSection
from crem_jax.configs.schema.optim import OptimConfig

EVAL = "eval/"
"""Prefix of the names of evaluation metrics."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The checked configuration of a run, used by everything below the command line."""

    seed: int = field(0, "Random seed of the initial weights, the batches and every training step.")
    steps: int = field(1000, "Number of training steps.", low=1)
    log_every: int = field(10, "Number of steps between lines of metrics.jsonl.", low=1)
    eval_every: int = field(500, "Number of steps between evaluations.", low=1)
    checkpoint_every: int = field(
        0, "Number of steps between checkpoints; 0: the value of eval_every.", low=0
    )
    max_nonfinite: int = field(
        10, "End the run after this many consecutive steps that are not finite.", low=1
    )
    peak_flops: float = field(
        0.0, "Peak FLOP/s of one device, for MFU; 0: looked up by its kind.", low=0.0
    )
    best_metric: str = field("", "Metric that selects the best checkpoint, such as eval/NAME.")
    evaluate: str = field("emoji", "Evaluation during training, by name; '': none.")
    mesh: tuple[int, int, int] = field(
        (-1, 1, 1), "Devices along data, fsdp and tensor; one may be -1: all remaining devices."
    )
    init_from: str = field(
        "", "Initial weights: a model, run or Hugging Face directory; '': random."
    )
    model: ModelSection = field(doc="The model and how it is run.")
    data: DataConfig = field(doc="The batches and their sources.")
    loss: LossSection = field(doc="The objective.")
    optim: OptimConfig = field(doc="The optimiser.")

    def __post_init__(self):
        check(self, "config")
        if self.best_metric and not self.best_metric.startswith(EVAL):
            raise ConfigError(
                f"config.best_metric {self.best_metric!r} does not begin with {EVAL!r}, as every "
                "metric of an evaluation does"
            )
        if any(size < 1 and size != -1 for size in self.mesh) or self.mesh.count(-1) > 1:
            raise ConfigError(
                f"config.mesh = {self.mesh}: expected numbers of devices (data, fsdp, tensor), of "
                "which one may be -1"
            )
        self.loss.check_buckets(self.data.buckets)

    @staticmethod
    def of(config: TrainConfig | ConfigDict | Mapping[str, Any]) -> TrainConfig:
        """The checked config of a recipe; keys it leaves out have the schema's defaults.

        Raises:
          ConfigError: an unknown key, a value of another type or out of its bounds, or values that
            contradict each other; the message names the key.
        """
        if isinstance(config, TrainConfig):
            return config
        return tree.build(TrainConfig, fill(config))

    def to_dict(self) -> dict[str, Any]:
        """The config in JSON types, with every key."""
        return json.loads(json.dumps(fill(dataclasses.asdict(self))))


def fill(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config, with the schema's defaults for the keys it leaves out."""
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    filled = tree.fill(TrainConfig, values)
    if not filled["init_from"] and isinstance(filled["model"], dict):
        filled["model"] = _from_scratch(filled["model"])
    return filled


def complete(config: ConfigDict) -> ConfigDict:
    """Adds the schema's defaults for missing keys to a config, in place, and returns it."""
    _add(config, tree.fill(TrainConfig, config.to_dict()))
    return config


def default_config() -> ConfigDict:
    """A config with every key at its default; required keys are None."""
    return ConfigDict(tree.fill(TrainConfig, {}), type_safe=False)


def _from_scratch(model: dict[str, Any]) -> dict[str, Any]:
    """The model section of a run from scratch: unset keys get the default of the model config."""
    nodes, scratch = tree.keys_of(ModelSection), dict(model)
    for name, node in nodes.items():
        if node.partial and isinstance(model[name], dict):
            keys = node.below(name, model[name], f"model.{name}")
            scratch[name] = {**model[name], **_defaults(keys, model[name])}
    return {**scratch, **_defaults(nodes, scratch)}


def _defaults(nodes: Mapping[str, tree.Node], values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: node.key.scratch
        for name, node in nodes.items()
        if values.get(name) is None and node.key.scratch is not REQUIRED
    }


def _add(config: ConfigDict, filled: Mapping[str, Any]) -> None:
    for name, value in filled.items():
        there = config.get(name)
        if isinstance(there, ConfigDict):
            _add(there, value)
        elif there is None and (value is not None or name not in config):
            config[name] = value
