"""`optim`: the optimiser and its learning rate."""

from __future__ import annotations

import dataclasses

from crem_jax.config import DTYPES
from crem_jax.configs.fields import ConfigError, check, field


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Adafactor keeps a row and a column of second moments for a matrix instead of two moments of
    its size. Muon orthogonalises the updates of the layers' matrices, which it scales to the size
    of AdamW's, and leaves embeddings, norms and biases to AdamW at the rate `adam_lr`.
    """

    name: str = field("adamw", "The rule.", choices=("adamw", "adafactor", "muon"))
    lr: float = field(1e-4, "Peak learning rate.", low=0.0)
    adam_lr: float | None = field(
        None, "With muon, the peak of what is no matrix; None: lr.", low=0.0
    )
    warmup: int = field(0, "Steps of linear warm-up.", low=0)
    decay: str = field("cosine", "How the rate falls after it.", choices=("cosine", "linear"))
    final: float = field(0.0, "The rate at the end, over the peak.", low=0.0)
    b1: float = field(0.9, "Of the first moment.", low=0, high=1)
    b2: float = field(0.98, "Of the second moment.", low=0, high=1)
    eps: float = field(1e-8, "Added to the root of the second moment.", low=0.0)
    weight_decay: float = field(0.01, "Of kernels, embeddings and adapters.", low=0.0)
    clip: float = field(1.0, "The global norm gradients are clipped to; 0 leaves them.", low=0.0)
    mu_dtype: str = field(
        "", "Type of the first moment; '': that of the parameter.", choices=("", *DTYPES)
    )
    rates: tuple[tuple[str, float], ...] = field(
        (),
        "(pattern of whole parameter paths, multiplier of lr); the first that matches; 0 freezes.",
    )
    frozen_dtype: str = field(
        "float32", "Type in which frozen parameters are stored.", choices=DTYPES
    )

    def __post_init__(self):
        check(self, "optim")
        for pattern, value in self.rates:
            if value < 0:
                raise ConfigError(f"optim.rates: {pattern!r} has the multiplier {value}, below 0")
