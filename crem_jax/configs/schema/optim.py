"""`optim`: the optimiser and its learning rate."""

from __future__ import annotations

import dataclasses

from crem_jax.config import DTYPES
from crem_jax.configs.fields import ConfigError, check, field


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser. Adafactor keeps one row and one column of second moments for each matrix in
    place of two full moments. Muon orthogonalises the updates of the layers' matrices and scales
    them to the size of AdamW's; embeddings, norms and biases are trained by AdamW at `adam_lr`.
    """

    name: str = field("adamw", "The optimiser.", choices=("adamw", "adafactor", "muon"))
    lr: float = field(1e-4, "Peak learning rate.", low=0.0)
    adam_lr: float | None = field(
        None, "With muon, the peak rate of embeddings, norms and biases; None: lr.", low=0.0
    )
    warmup: int = field(0, "Steps of linear warm-up.", low=0)
    decay: str = field("cosine", "Shape of the decay after warm-up.", choices=("cosine", "linear"))
    final: float = field(0.0, "Learning rate at the end, as a share of the peak.", low=0.0)
    b1: float = field(0.9, "Decay rate of the first moment.", low=0, high=1)
    b2: float = field(0.98, "Decay rate of the second moment.", low=0, high=1)
    eps: float = field(1e-8, "Added to the square root of the second moment.", low=0.0)
    weight_decay: float = field(0.01, "Weight decay of kernels, embeddings and adapters.", low=0.0)
    clip: float = field(1.0, "Maximum global norm of the gradient; 0: no clipping.", low=0.0)
    mu_dtype: str = field(
        "", "Data type of the first moment; '': that of the parameter.", choices=("", *DTYPES)
    )
    rates: tuple[tuple[str, float], ...] = field(
        (),
        "(pattern of a whole parameter path, multiplier of lr); the first match wins; 0 freezes.",
    )
    frozen_dtype: str = field(
        "float32", "Data type in which frozen parameters are stored.", choices=DTYPES
    )

    def __post_init__(self):
        check(self, "optim")
        for pattern, value in self.rates:
            if value < 0:
                raise ConfigError(f"optim.rates: {pattern!r} has the multiplier {value}, below 0")
