"""Int8 weights of the decoder, for serving: a quarter of float32's bytes, half of bfloat16's.

Each kernel W of a decoder layer becomes integers Q in -127..127 and one float scale per output
channel, s = max|W| / 127 over the inputs, so that W ≈ Q s. As s depends on the output alone,
`Dense` computes (x Q) s and never materialises W. Embedding, norms, biases and the vision tower
are not quantised.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from crem_jax import trees

_INPUTS = (
    (r"backbone/layers/o/kernel", 2),
    (r"backbone/layers/([qkv]|mlp/(gate|up|down))/kernel", 1),
)
"""Number of input axes of each kernel, after the leading axis of the layers."""


def quantise(params: trees.Tree, dtype: str) -> dict[str, Any]:
    """Quantises the decoder's kernels to int8, each with a `kernel_scale`, float32 [L, *outputs].

    Args:
      params: arrays of any kind; LazyArrays are read layer by layer.
      dtype: type of the other leaves.

    Returns:
      The parameters as numpy arrays.
    """
    inputs = trees.flatten(trees.match(_INPUTS, params, where="int8", default=0))
    leaves: dict[str, Any] = {}
    for path, kernel in trees.flatten(params).items():
        if not inputs[path]:
            leaves[path] = np.asarray(kernel, jnp.dtype(dtype))
            continue
        axes = tuple(range(1, 1 + inputs[path]))
        whole = np.empty(kernel.shape, np.int8)
        scales = np.empty((kernel.shape[0], *kernel.shape[1 + inputs[path] :]), np.float32)
        for layer in range(kernel.shape[0]):
            at = slice(layer, layer + 1)
            values = np.asarray(kernel[at], np.float32)
            scale = np.max(np.abs(values), axis=axes, keepdims=True) / 127
            scale[scale == 0] = 1
            whole[at] = np.rint(values / scale)
            scales[at] = scale.squeeze(axes)
        leaves[path] = whole
        leaves[f"{path}_scale"] = scales
    return trees.unflatten(leaves)
