"""The schema of a run's configuration: every key with its type, default, bounds and meaning.

`TrainConfig` is the whole; `docs/config.md` is written from it. Nothing here imports JAX.
"""

from crem_jax.configs.schema.train import TrainConfig, complete, default_config, fill

__all__ = ["TrainConfig", "complete", "default_config", "fill"]
